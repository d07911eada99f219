"""Networks of people's own, who is on them, and the ports that the machine answers for.

A row is written before anything of a network or an endpoint is made, and goes after it is unmade; what a kill leaves
between the two is taken up or away by the next `open`.
"""

import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network

from wherry.clock import machine
from wherry.engine.events import Events
from wherry.engine.names import Names, NameServers
from wherry.engine.records import Records
from wherry.engine.types import Endpoint, Join, Network, NetworkSpec, SandboxSpec
from wherry.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound, Unsupported, WherryError
from wherry.network.bridges import Bridges, bridge_link, port_link
from wherry.network.ports import Ports
from wherry.network.types import BridgeNetwork, BridgePort, PortBinding, PublishedPort

log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_. -]*[a-zA-Z0-9_.-])?")
PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}
"""The networks that are always there, with their drivers."""


@dataclass(frozen=True, slots=True)
class Networking:
    """The machine's part of networks: bridges and published ports; `default_subnet` is where pods' addresses are from."""

    instance: str
    bridges: Bridges
    ports: Ports
    default_subnet: str = ""


class Networks:
    """The networks of one engine. `names_of` tells the names of a sandbox's container while it runs, else none."""

    def __init__(
        self,
        records: Records,
        events: Events,
        networking: Networking | None,
        names_of: Callable[[str], Sequence[str]],
    ) -> None:
        self._records, self._events, self._networking, self._names_of = records, events, networking, names_of
        self._rows: dict[str, Network] = {}
        self._servers = NameServers(self._zone_of)
        self._taken_up = False

    async def open(self, sandboxes: Mapping[str, bool]) -> None:
        """Take up the networks of before, with the endpoints of `sandboxes` (true: what it has must be there)."""
        there = self._networking.bridges.links() if self._networking is not None else ()
        for row in self._records.networks():
            if not row.ready:  # nobody was told of it: its bridge, if there is one, goes as a stray
                await self._forget(row)
                continue
            kept = {
                id: each
                for id, each in row.endpoints.items()
                if id in sandboxes and (each.link in there or not sandboxes[id])
            }
            self._put(replace(row, endpoints=kept))
        if self._networking is None:
            return
        links = [each.link for row in self._rows.values() for each in row.endpoints.values()]
        await self._networking.bridges.start([self._bridge(row) for row in self._rows.values()], links)
        for row in self._rows.values():
            try:
                await self._servers.add(row.id, row.spec.gateway, internal=row.spec.internal)
            except WherryError as error:
                log.warning("network %s: names are not answered: %s", row.spec.name, error.message)

    async def take_up_ports(self, running: Sequence[str]) -> None:
        """Take up the ports of the sandboxes that run; all others are given back."""
        if self._networking is None:
            return
        for sandbox, ports in self._records.ports().items():
            if sandbox in running:
                await self._networking.ports.adopt(sandbox, ports)
            else:
                self._records.put_ports(sandbox, ())
        await self._networking.ports.start()
        self._taken_up = True

    async def close(self) -> None:
        """Let go of everything; networks and ports go on without us."""
        await self._servers.close()
        if self._networking is not None:
            await self._networking.ports.close()
            await self._networking.bridges.close()

    # networks ---------------------------------------------------------------------------------------------------------
    def all(self) -> Sequence[Network]:
        """List them, the predefined first."""
        return [*self._predefined(), *self._rows.values()]

    def find(self, ref: str) -> Network:
        """Find one by id, name or unique id prefix. Raises NotFound, Invalid."""
        everyone = self.all()
        found = [each for each in everyone if ref == each.id] or [each for each in everyone if ref == each.spec.name]
        found = found or [each for each in everyone if ref and each.id.startswith(ref)]
        if len(found) > 1:
            raise Invalid(f"network {ref} is ambiguous ({len(found)} matches found on ID prefix)")
        if not found:
            raise NotFound(f"network {ref} not found")
        return found[0]

    async def create(self, spec: NetworkSpec) -> Network:
        """Make one. Raises AlreadyExists, Invalid, Forbidden (a subnet that somebody has), Unavailable, Broken."""
        networking = self._need()
        if _NAME.fullmatch(spec.name) is None:
            raise Invalid(f"invalid network name {spec.name!r}: letters, digits, '_', '.', '-' and spaces between")
        if spec.name in PREDEFINED:
            raise Forbidden(f"operation is not permitted on predefined {spec.name} network ")
        self._check_name(spec.name)
        check_addresses(spec)
        own_subnet = bool(spec.subnet)
        try:
            subnet = await networking.bridges.subnet(str(IPv4Network(spec.subnet)) if own_subnet else "")
        except Conflict as error:
            raise Forbidden(error.message) from error
        try:
            self._check_name(spec.name)  # somebody may have been faster
        except AlreadyExists:
            await networking.bridges.give_back(subnet)
            raise
        gateway = spec.gateway or str(_first_host(subnet))
        row = Network(
            self._free_id(), replace(spec, subnet=subnet, gateway=gateway), machine.now(), own_subnet=own_subnet
        )
        self._put(row)
        try:
            await networking.bridges.add(self._bridge(row))
            await self._servers.add(row.id, gateway, internal=spec.internal)
        except BaseException:
            await self._unmake(row)
            raise
        row = replace(self._rows[row.id], ready=True)
        self._put(row)
        self._events.tell("network", "create", row.id, {"name": spec.name, "type": row.driver})
        return row

    async def remove(self, ref: str) -> None:
        """Remove one that no running container is on. Raises NotFound, Forbidden."""
        row = self.find(ref)
        if row.predefined:
            raise Forbidden(f"{row.spec.name} is a pre-defined network and cannot be removed")
        active = [sandbox for sandbox in row.endpoints if self._names_of(sandbox)]
        if active:
            raise Forbidden(f"error while removing network: network {row.spec.name} id {row.id} has active endpoints")
        await self._unmake(row)
        self._events.tell("network", "destroy", row.id, {"name": row.spec.name, "type": row.driver})

    def in_use(self, network: Network) -> bool:
        """Whether a running container is on it, or it is always there."""
        return network.predefined or any(self._names_of(sandbox) for sandbox in network.endpoints)

    # endpoints --------------------------------------------------------------------------------------------------------
    def endpoints_of(self, sandbox: str) -> Sequence[Endpoint]:
        """List a sandbox's places, in the order of their interfaces."""
        found = [row.endpoints[sandbox] for row in self._rows.values() if sandbox in row.endpoints]
        return sorted(found, key=lambda each: int(each.interface.removeprefix("eth")))

    async def join_all(self, sandbox: str, netns: str, spec: SandboxSpec, *, on_pods: bool) -> Sequence[Endpoint]:
        """Put a sandbox on its networks, as it was before or as `spec` says. Raises NotFound, Forbidden, Broken."""
        before = self.endpoints_of(sandbox)
        for each in before:
            await self._attach(self._rows[each.network], sandbox, each, netns, on_pods=on_pods)
        if not before:
            for join in spec.networks:
                await self.join(sandbox, netns, join, on_pods=on_pods)
        return self.endpoints_of(sandbox)

    async def join(self, sandbox: str, netns: str, join: Join, *, on_pods: bool) -> Endpoint:
        """Put a sandbox on one network. Raises NotFound, Forbidden, Broken."""
        self._need()
        row = self.find(join.network)
        if row.predefined:
            raise Invalid(f"network {row.spec.name} cannot be joined like this")
        if sandbox in row.endpoints:
            name = (*self._names_of(sandbox), sandbox[:12])[0]
            raise Forbidden(f"endpoint with name {name} already exists in network {row.spec.name}")
        address = self._choose(row, join.address)
        used = {each.interface for each in self.endpoints_of(sandbox)} | ({"eth0"} if on_pods else set())
        interface = next(f"eth{number}" for number in range(len(used) + 1) if f"eth{number}" not in used)
        prefix = IPv4Network(row.spec.subnet).prefixlen
        endpoint = Endpoint(
            row.id, row.spec.name, self._free_link(row, sandbox), interface, address, row.spec.gateway, prefix,
            tuple(join.aliases), bool(join.address),
        )  # fmt: skip
        self._put(replace(row, endpoints={**row.endpoints, sandbox: endpoint}))
        try:
            await self._attach(row, sandbox, endpoint, netns, on_pods=on_pods)
        except BaseException:
            self._drop_endpoint(row.id, sandbox)
            raise
        self._events.tell(
            "network", "connect", row.id, {"container": sandbox, "name": row.spec.name, "type": row.driver}
        )
        return endpoint

    async def leave(self, sandbox: str, network: str, netns: str) -> None:
        """Take a sandbox off one network; what is left leads it out. Raises NotFound, Forbidden."""
        networking = self._need()
        row = self.find(network)
        endpoint = row.endpoints.get(sandbox)
        if endpoint is None:
            raise Forbidden(f"container {sandbox} is not connected to network {row.spec.name}")
        await networking.bridges.detach(endpoint.link)
        self._drop_endpoint(row.id, sandbox)
        self._tell_left(row, sandbox)
        left = next((each for each in self.endpoints_of(sandbox) if not self._rows[each.network].spec.internal), None)
        if left is not None and netns:
            await networking.bridges.set_way_out(netns, left.interface, left.gateway)

    async def leave_all(self, sandbox: str) -> None:
        """Take a sandbox off everything, its ports too; it is going."""
        self.unpublish(sandbox)
        for endpoint in self.endpoints_of(sandbox):
            await self._need().bridges.detach(endpoint.link)
            row = self._rows.get(endpoint.network)
            if row is not None:
                self._drop_endpoint(row.id, sandbox)
                self._tell_left(row, sandbox)

    # ports ------------------------------------------------------------------------------------------------------------
    def ports_of(self, sandbox: str) -> Sequence[PublishedPort]:
        """List what is published now."""
        return self._networking.ports.of(sandbox) if self._networking is not None else ()

    async def publish(self, sandbox: str, spec: SandboxSpec, pod_address: str, pod_gateway: str) -> None:
        """Publish a sandbox's ports; it is about to run. Raises Conflict, Invalid, NotFound for a network that is gone."""
        if spec.network == "user" and not self.endpoints_of(sandbox):
            for join in spec.networks:
                self.find(join.network)
        wanted = wishes(spec)
        if not wanted or spec.network not in ("pod", "user"):
            return
        networking = self._need()
        places = [each for each in self.endpoints_of(sandbox) if not self._rows[each.network].spec.internal]
        if pod_address and spec.network == "pod":
            address, gateway = pod_address, pod_gateway
        elif places:
            address, gateway = places[0].address, places[0].gateway
        else:
            return  # an internal network publishes nothing
        try:
            ports = await networking.ports.publish(sandbox, wanted, address, gateway)
        except Conflict as error:
            name = (*self._names_of(sandbox), sandbox[:12])[0]
            raise Conflict(
                f"driver failed programming external connectivity on endpoint {name} ({sandbox}): {error.message}"
            ) from error
        self._records.put_ports(sandbox, ports)

    def unpublish(self, sandbox: str) -> None:
        """Give a sandbox's ports back: its container has ended. Free for others on return."""
        if self._networking is not None and self._networking.ports.of(sandbox):
            self._networking.ports.unpublish(sandbox)
            self._records.put_ports(sandbox, ())

    # inside -----------------------------------------------------------------------------------------------------------
    def _need(self) -> Networking:
        if self._networking is None:
            raise Unsupported("this engine has no networks of its own and publishes no ports")
        return self._networking

    def _check_name(self, name: str) -> None:
        if any(each.spec.name == name for each in self._rows.values()):
            raise AlreadyExists(f"network with name {name} already exists")

    def _predefined(self) -> Sequence[Network]:
        subnet = self._networking.default_subnet if self._networking is not None else ""
        found: list[Network] = []
        for name, driver in PREDEFINED.items():
            mine = subnet if name == "bridge" else ""
            gateway = str(_first_host(mine)) if mine else ""
            id = sha256(f"wherry/{name}".encode()).hexdigest()
            found.append(Network(id, NetworkSpec(name, mine, gateway), 0.0, driver, predefined=True))
        return found

    def _free_id(self) -> str:
        """Make an id whose bridge nobody has."""
        taken = {each.id[:4] for each in self._rows.values()}
        return next(id for id in iter(lambda: secrets.token_hex(32), "") if id[:4] not in taken)

    def _free_link(self, row: Network, sandbox: str) -> str:
        instance = self._need().instance
        taken = {each.link for other in self._rows.values() for each in other.endpoints.values()}
        return next(
            link for attempt in range(1 << 16) if (link := port_link(instance, row.id, sandbox, attempt)) not in taken
        )

    def _bridge(self, row: Network) -> BridgeNetwork:
        spec = row.spec
        link = bridge_link(self._need().instance, row.id)
        return BridgeNetwork(row.id, link, spec.subnet, spec.gateway, spec.mtu, spec.internal, spec.masquerade)

    def _choose(self, row: Network, wanted: str) -> str:
        spec = row.spec
        network = IPv4Network(spec.subnet)
        taken = {each.address for each in row.endpoints.values()} | {spec.gateway, *spec.reserved.values()}
        if wanted:
            if not row.own_subnet:
                raise Invalid(
                    "user specified IP address is supported only when connecting to networks with user configured subnets"
                )
            if _address(wanted) not in network:
                raise Invalid(f"Invalid address {wanted}: It does not belong to any of this network's subnets")
            if wanted in taken:
                raise Forbidden("Address already in use")
            return wanted
        pool = IPv4Network(spec.ip_range) if spec.ip_range else network
        for address in pool:
            if address in (network.network_address, network.broadcast_address) or str(address) in taken:
                continue
            return str(address)
        raise Forbidden(f"no available IPv4 addresses on this network's address pools: {spec.name} ({row.id})")

    async def _attach(self, row: Network, sandbox: str, endpoint: Endpoint, netns: str, *, on_pods: bool) -> None:
        others = [each for each in self.endpoints_of(sandbox) if not self._rows[each.network].spec.internal]
        first = not on_pods and bool(others) and others[0].network == row.id
        port = BridgePort(endpoint.link, endpoint.interface, endpoint.address)
        await self._need().bridges.attach(self._bridge(row), port, netns, is_way_out=first)

    async def _unmake(self, row: Network) -> None:
        networking = self._need()
        await self._servers.remove(row.id)
        for endpoint in self._rows.get(row.id, row).endpoints.values():
            try:
                await networking.bridges.detach(endpoint.link)
            except WherryError as error:
                log.warning("network %s: %s", row.spec.name, error.message)
        self._rows.pop(row.id, None)
        await networking.bridges.remove(row.id)
        await self._forget(row)

    async def _forget(self, row: Network) -> None:
        if self._networking is not None:
            await self._networking.bridges.give_back(row.spec.subnet)
        self._records.drop_network(row.id)

    def _tell_left(self, row: Network, sandbox: str) -> None:
        said = {"container": sandbox, "name": row.spec.name, "type": row.driver}
        self._events.tell("network", "disconnect", row.id, said)

    def _drop_endpoint(self, network: str, sandbox: str) -> None:
        row = self._rows.get(network)
        if row is not None:
            self._put(replace(row, endpoints={id: each for id, each in row.endpoints.items() if id != sandbox}))

    def _put(self, row: Network) -> None:
        self._records.put_network(row)
        self._rows[row.id] = row

    # names ------------------------------------------------------------------------------------------------------------
    def _zone_of(self, client: str) -> Names:
        """Say what the asker at an address may know."""
        asker = next(
            (id for row in self._rows.values() for id, each in row.endpoints.items() if each.address == client), ""
        )
        rows = [row for row in self._rows.values() if asker in row.endpoints]
        inside = bool(rows) and all(row.spec.internal for row in rows)
        return Names(lambda name: self._addresses(rows, name), lambda address: self._name(rows, address), inside=inside)

    def _addresses(self, rows: Sequence[Network], name: str) -> Sequence[str]:
        found: list[str] = []
        for row in rows:
            for sandbox, endpoint in row.endpoints.items():
                names = self._names_of(sandbox)
                if not names:
                    continue
                known = {each.lower() for each in (*names, sandbox, sandbox[:12], *endpoint.aliases)}
                if name in known or name.removesuffix(f".{row.spec.name.lower()}") in known:
                    found.append(endpoint.address)
        return list(dict.fromkeys(found))

    def _name(self, rows: Sequence[Network], address: str) -> str:
        for row in rows:
            for sandbox, endpoint in row.endpoints.items():
                names = self._names_of(sandbox)
                if endpoint.address == address and names:
                    return f"{names[0]}.{row.spec.name}"
        return ""


def wishes(spec: SandboxSpec) -> Sequence[PortBinding]:
    """List the ports that a sandbox is to publish, those of `publish_all` too. Pure."""
    wanted = list(spec.ports)
    if spec.publish_all:
        named = {(each.port, each.protocol) for each in wanted}
        for text in spec.exposed:
            number, _, protocol = text.partition("/")
            binding = PortBinding(int(number), protocol or "tcp")
            if (binding.port, binding.protocol) not in named:
                wanted.append(binding)
    return wanted


def check_addresses(spec: NetworkSpec) -> None:
    """Refuse addresses that do not fit together. Raises Invalid, Unsupported."""
    if not spec.subnet:
        if spec.gateway or spec.ip_range or spec.reserved:
            raise Invalid(f"network {spec.name}: a gateway, range or reserved address needs a subnet")
        return
    if ":" in spec.subnet:
        raise Unsupported(f"network {spec.name}: subnet {spec.subnet}: IPv6 networks are not supported by wherry yet")
    try:
        network = IPv4Network(spec.subnet, strict=False)
    except ValueError as error:
        raise Invalid(f"invalid subnet {spec.subnet}: {error}") from error
    if str(network) != spec.subnet:
        raise Invalid(f"invalid subnet {spec.subnet}: it should be {network}")
    if network.prefixlen > 30 or network.prefixlen < 8:
        raise Invalid(f"invalid subnet {spec.subnet}: a prefix from 8 to 30 is supported")
    named: Mapping[str, str] = {"gateway": spec.gateway, **spec.reserved}
    for what, text in named.items():
        if text and _address(text) not in network:
            raise Invalid(f"no matching subnet for {what} {text}")
    if spec.ip_range:
        try:
            fits = IPv4Network(spec.ip_range).subnet_of(network)
        except ValueError as error:
            raise Invalid(f"invalid range {spec.ip_range}: {error}") from error
        if not fits:
            raise Invalid(f"no matching subnet for range {spec.ip_range}")


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise Invalid(f"invalid IPv4 address: {text}") from None


def _first_host(subnet: str) -> IPv4Address:
    return IPv4Network(subnet)[1]
