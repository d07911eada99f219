"""What the instances of one machine have taken: subnets, names and ports, so that they never meet.

One JSON file for each instance in a directory on /run, written under one machine-wide lock. What others have (routes and
addresses of the machine, dockerd's networks) is looked at each time. A reboot forgets all: an instance then asks for
what it had, and gets it if it is still free.
"""

import fcntl
import os
import socket
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec

from wherry.errors import AlreadyExists, Broken, Conflict, Unavailable
from wherry.host import kernel, netlink, processes
from wherry.host.processes import Identity
from wherry.network import ranges

DIRECTORY = "/run/wherry/claims"
POD_PREFIX, SERVICE_PREFIX, LINKS_PREFIX, NETWORK_PREFIX = 16, 20, 24, 24

Subnet = IPv4Network | IPv6Network


class Claim(msgspec.Struct, frozen=True):
    """What one instance has. `links` is the range for links to nodes in namespaces; `root` its state directory.

    `owner` is the process that has it now; `before` says how machine-wide settings were before the first of us came.
    `networks` are subnets of people's own networks, `holders` says which of the instance's engines has each.
    """

    instance: str
    root: str
    owner: tuple[str, int, int]
    pods: str
    services: str
    links: str
    name: str = ""
    ports: tuple[int, ...] = ()
    before: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    networks: tuple[str, ...] = ()
    holders: dict[str, str] = msgspec.field(default_factory=dict[str, str])

    @property
    def is_alive(self) -> bool:
        """Whether its owner still runs."""
        return processes.is_alive(Identity(*self.owner))

    @property
    def is_stale(self) -> bool:
        """Whether nobody will come back for it: its owner has ended and its state is gone."""
        return not self.is_alive and not os.path.exists(self.root)

    def link_pair(self, number: int) -> tuple[str, str]:
        """Return (the host's address, the node's) of the link to the node with this number, each with /30."""
        base = IPv4Network(self.links)[4 * number]
        return f"{base + 1}/30", f"{base + 2}/30"


class Claims:
    """The claims of this machine. Each call takes the lock for some milliseconds; safe among many processes.

    `pool` is where subnets are cut from. `busy` says what is taken by others; None looks at routes and addresses.
    """

    def __init__(
        self,
        directory: str = DIRECTORY,
        *,
        pool: str = ranges.DEFAULT_POOL,
        busy: Sequence[str] | None = None,
    ) -> None:
        self._directory, self._pool, self._busy = directory, pool, busy

    def claim(
        self,
        instance: str,
        root: str,
        *,
        name: str = "",
        owner: int = 0,
        pods: str = "",
        services: str = "",
        links: str = "",
    ) -> Claim:
        """Take ranges for an instance, or find those it has; the process `owner` (0: we) has them from now on.

        What this process has it may hand over to `owner`. `pods`, `services` and `links` are wishes, granted if they
        are free. Raises AlreadyExists when another live process has the instance, or another instance the `name`, and
        Unavailable when the pool is used up.
        """
        process = processes.identify(owner or os.getpid())
        if process is None:
            raise Broken(f"process {owner} has ended")
        who = (process.boot_id, process.pid, process.start_ticks)
        own = processes.identify(os.getpid())
        ourselves = (own.boot_id, own.pid, own.start_ticks) if own is not None else who
        with self._locked():
            held = {claim.instance: claim for claim in self._read_all()}
            mine = held.pop(instance, None)
            if mine is not None and mine.owner not in (who, ourselves) and mine.is_alive:
                raise AlreadyExists(f"instance {instance} ({mine.root}) is in the hands of process {mine.owner[1]}")
            for other in held.values():
                if name and other.name == name:
                    raise AlreadyExists(f"the name {name!r} belongs to the instance in {other.root}")
            if mine is not None:
                mine = msgspec.structs.replace(mine, owner=who, root=root, name=name or mine.name)
            else:
                taken = _fours([*self._taken_by_others(), *_networks(held.values())])
                got = ranges.first_free(self._pool, POD_PREFIX, taken, preferred=pods)
                taken.append(IPv4Network(got))
                served = ranges.first_free(self._pool, SERVICE_PREFIX, taken, from_end=True, preferred=services)
                taken.append(IPv4Network(served))
                linked = ranges.first_free(self._pool, LINKS_PREFIX, taken, from_end=True, preferred=links)
                mine = Claim(instance, root, who, got, served, linked, name)
            self._write(mine)
            return mine

    def claim_port(self, instance: str, preferred: Iterable[int] = (), *, address: str = "127.0.0.1") -> int:
        """Take a TCP port for an instance: the first of `preferred` that is free, else any. Raises Unavailable."""
        with self._locked():
            held = {claim.instance: claim for claim in self._read_all()}
            mine = held.get(instance)
            if mine is None:
                raise Unavailable(f"instance {instance} has no claim yet")
            others = {port for claim in held.values() if claim is not mine for port in claim.ports}
            for port in [*preferred, *[0] * 20]:
                if port in others:
                    continue
                if port in mine.ports:
                    return port
                found = _try_port(address, port)
                if found and found not in others:
                    self._write(msgspec.structs.replace(mine, ports=(*mine.ports, found)))
                    return found
        raise Unavailable(f"no TCP port of {address} is free")

    def claim_network(self, instance: str, wanted: str = "", *, six: bool = False, holder: str = "") -> str:
        """Take a subnet for a network of an instance: `wanted`, or any of the pool; what it has it gets again.

        `holder` names the engine that takes it, where an instance has several: see `keep_networks`.
        `six`: any of IPv6, from a range that is made of the instance's id, as RFC 4193 has it.

        Raises Conflict when `wanted` overlaps what somebody has, Unavailable without a claim or with the pool used up.
        """
        with self._locked():
            held = {claim.instance: claim for claim in self._read_all()}
            mine = held.get(instance)
            if mine is None:
                raise Unavailable(f"instance {instance} has no claim yet")
            if wanted and wanted in mine.networks:
                return wanted
            taken = [*self._taken_by_others(), *_networks(held.values())]
            if not wanted:
                got = (
                    ranges.first_free6(ranges.unique_local(instance), taken)
                    if six
                    else ranges.first_free(self._pool, NETWORK_PREFIX, _fours(taken), from_end=True)
                )
            else:
                got = wanted
            clash = next((other for other in taken if wanted and overlap(other, ip_network(wanted))), None)
            if clash is not None:
                raise Conflict(f"Pool overlaps with other one on this address space: {wanted} with {clash}")
            holders = {**mine.holders, got: holder}
            self._write(msgspec.structs.replace(mine, networks=(*mine.networks, got), holders=holders))
            return got

    def keep_networks(self, instance: str, wanted: Collection[str], *, holder: str = "") -> None:
        """Give back the subnets of one engine but `wanted`: it was killed before it wrote down what they are for."""
        with self._locked():
            for claim in self._read_all():
                lost = {subnet for subnet, each in claim.holders.items() if each == holder} - set(wanted)
                if claim.instance == instance and lost:
                    self._write(_without(claim, lost))

    def release_network(self, instance: str, subnet: str) -> None:
        """Give a network's subnet back; nothing if it is not the instance's."""
        with self._locked():
            for claim in self._read_all():
                if claim.instance == instance and subnet in claim.networks:
                    self._write(_without(claim, {subnet}))

    def note_before(self, instance: str, setting: str, value: str) -> None:
        """Remember how a machine-wide setting was before this instance changed it; the first note stays."""
        with self._locked():
            for claim in self._read_all():
                if claim.instance == instance and setting not in claim.before:
                    self._write(msgspec.structs.replace(claim, before={**claim.before, setting: value}))

    def release(self, instance: str) -> dict[str, str]:
        """Give everything of an instance back; nothing if it has nothing.

        Returns settings to be put back as they were: only once no other instance is left; else one of those takes
        over the duty.
        """
        with self._locked():
            claims = {claim.instance: claim for claim in self._read_all()}
            mine = claims.pop(instance, None)
            with suppress(FileNotFoundError):
                os.unlink(self._path(instance))
            if mine is None or not mine.before:
                return {}
            for heir in claims.values():
                self._write(msgspec.structs.replace(heir, before=mine.before | heir.before))
                return {}
            return mine.before

    def all(self) -> list[Claim]:
        """List the claims, without stale ones."""
        with self._locked():
            return self._read_all()

    def _read_all(self) -> list[Claim]:
        found: list[Claim] = []
        for entry in sorted(os.listdir(self._directory)):
            if not entry.endswith(".json"):
                continue
            path = f"{self._directory}/{entry}"
            try:
                with open(path, "rb") as file:
                    claim = msgspec.json.decode(file.read(), type=Claim)
            except (msgspec.DecodeError, FileNotFoundError):
                continue  # written by another version: its links and routes still count as taken
            if claim.is_stale:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                continue
            found.append(claim)
        return found

    def _write(self, claim: Claim) -> None:
        path = self._path(claim.instance)
        try:
            with open(f"{path}.new", "wb") as file:
                file.write(msgspec.json.encode(claim))
            os.replace(f"{path}.new", path)
        except OSError as error:
            raise kernel.refused(f"write {path}", error.errno or 0) from error

    def _path(self, instance: str) -> str:
        return f"{self._directory}/{instance}.json"

    def _taken_by_others(self) -> list[Subnet]:
        return [ip_network(text) for text in self._busy] if self._busy is not None else networks_in_use()

    @contextmanager
    def _locked(self) -> Generator[None]:
        try:
            os.makedirs(self._directory, mode=0o755, exist_ok=True)
            lock = os.open(f"{self._directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise kernel.refused(f"open {self._directory}/lock", error.errno or 0) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def networks_in_use() -> list[Subnet]:
    """List what this machine's addresses and routes cover, and its resolvers; the default route covers nothing."""
    found: list[Subnet] = []
    with netlink.Netlink() as net:
        found += [address.interface.network for address in net.addresses()]
        found += [route.destination for route in net.routes() if route.destination.prefixlen > 0]
        found += [network for network in net.networks6() if network.prefixlen > 0]
    with suppress(OSError), open("/etc/resolv.conf", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            words = line.split()
            if words[:1] == ["nameserver"] and len(words) > 1:
                with suppress(ValueError):
                    found.append(ip_network(ip_address(words[1])))
    return found


def overlap(one: Subnet, other: Subnet) -> bool:
    """Say whether two subnets share an address."""
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def _without(claim: Claim, subnets: Collection[str]) -> Claim:
    return msgspec.structs.replace(
        claim,
        networks=tuple(each for each in claim.networks if each not in subnets),
        holders={each: holder for each, holder in claim.holders.items() if each not in subnets},
    )


def _fours(networks: Iterable[Subnet]) -> list[IPv4Network]:
    return [each for each in networks if isinstance(each, IPv4Network)]


def _networks(claims: Iterable[Claim]) -> list[Subnet]:
    return [ip_network(text) for claim in claims for text in (claim.pods, claim.services, claim.links, *claim.networks)]


def _try_port(address: str, port: int) -> int:
    """Return the port when it can be bound now (0: any that can), else 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])
