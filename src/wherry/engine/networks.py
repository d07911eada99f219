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
from ipaddress import ip_network

from wherry.clock import machine
from wherry.engine import pools
from wherry.engine.events import Events
from wherry.engine.names import Names, NameServers
from wherry.engine.records import Records
from wherry.engine.types import Endpoint, Join, Network, NetworkSpec, Pool, SandboxSpec
from wherry.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound, Unsupported, WherryError
from wherry.network.bridges import Bridges, bridge_link, port_link
from wherry.network.ports import Ports
from wherry.network.types import BridgeNetwork, BridgePort, PortBinding, PortTarget, PublishedPort

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
        self.resolvers: dict[str, Sequence[str]] = {}
        """By sandbox, the DNS servers that it asks for the world's names instead of the machine's."""
        self.netns_of: Callable[[str], tuple[str, bool]] = lambda sandbox: ("", False)
        """The path of a sandbox's network namespace ("" while there is none), and whether it is on the pod network."""
        self._rows: dict[str, Network] = {}
        self._by_address: dict[str, str] = {}
        self._steady: dict[str, dict[str, list[str]]] = {}
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
        links = {each.link: row.id for row in self._rows.values() for each in row.endpoints.values()}
        bridges = [self._bridge(row) for row in self._rows.values()]
        await self._networking.bridges.start(bridges, links, again=self._attach_again)
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
        pools.check(spec)
        if spec.link and any(self._bridge(row).link == spec.link for row in self._rows.values()):
            raise Forbidden(f"cannot create network {spec.name}: bridge name {spec.link} is another network's")
        own, own6 = bool(spec.subnet), bool(spec.pool6.subnet)
        pool, pool6 = await self._claim(spec)
        try:
            self._check_name(spec.name)  # somebody may have been faster
        except AlreadyExists:
            await self._give_back(pool.subnet, pool6.subnet)
            raise
        whole = replace(
            spec, subnet=pool.subnet, gateway=pool.gateway, ip_range=pool.ip_range, reserved=pool.reserved, pool6=pool6
        )  # fmt: skip
        row = Network(self._free_id(), whole, machine.now(), own_subnet=own, own_subnet6=own6)
        self._put(row)
        try:
            await networking.bridges.add(self._bridge(row))
            await self._servers.add(row.id, pool.gateway, internal=spec.internal)
        except BaseException as error:
            await self._unmake(row)
            if isinstance(error, Conflict):
                raise Forbidden(error.message) from error
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

    def runs(self, sandbox: str) -> bool:
        """Whether the container of a sandbox runs."""
        return bool(self._names_of(sandbox))

    # endpoints --------------------------------------------------------------------------------------------------------
    def endpoints_of(self, sandbox: str) -> Sequence[Endpoint]:
        """List a sandbox's places, in the order of their interfaces."""
        found = [row.endpoints[sandbox] for row in self._rows.values() if sandbox in row.endpoints]
        return sorted(found, key=lambda each: _number_of(each.interface))

    def way_out(self, sandbox: str, *, six: bool = False, on_pods: bool = False) -> Endpoint | None:
        """Find the place that leads a sandbox to everywhere; None: there is none, or it is the pod network (`on_pods`).

        The highest priority leads, then the first name, as with Docker; the pod network leads unless one is above 0.
        """
        found = [
            each
            for each in self.endpoints_of(sandbox)
            if not self._rows[each.network].spec.internal and (each.address6 or not six)
        ]
        best = min(found, key=lambda each: (-each.priority, each.name), default=None)
        return None if best is not None and on_pods and not six and best.priority <= 0 else best

    async def lead(self, sandbox: str, netns: str, pods: tuple[str, str] | None) -> None:
        """Lead a sandbox out, and its ports in, after a change. `pods`: its address and gateway on the pod network."""
        networking = self._need()
        for six in (False, True):
            place = self.way_out(sandbox, six=six, on_pods=pods is not None)
            if netns and place is not None:
                gateway = place.gateway6 if six else place.gateway
                await networking.bridges.set_way_out(netns, place.interface, gateway)
            elif netns and pods is not None and not six:
                await networking.bridges.set_way_out(netns, "eth0", pods[1])
        if networking.ports.of(sandbox):
            ports = await networking.ports.retarget(sandbox, self._target(sandbox, pods))
            self._records.put_ports(sandbox, ports)

    async def join_all(self, sandbox: str, netns: str, spec: SandboxSpec, *, on_pods: bool) -> Sequence[Endpoint]:
        """Put a sandbox on its networks, as it was before or as `spec` says. Raises NotFound, Forbidden, Broken."""
        before = self.endpoints_of(sandbox)
        for each in before:
            await self._attach(self._rows[each.network], sandbox, each, netns, on_pods=on_pods)
        if not before:
            for place, join in enumerate(spec.networks):
                mac = join.mac or (spec.mac if place == 0 and not on_pods else "")
                await self.join(sandbox, netns, replace(join, mac=mac), on_pods=on_pods)
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
        address, address6 = pools.choose(row, join.address), pools.choose(row, join.address6, six=True)
        if join.address6 and not address6:
            raise Invalid(f"Invalid address {join.address6}: It does not belong to any of this network's subnets")
        used = {_number_of(each.interface) for each in self.endpoints_of(sandbox)} | ({0} if on_pods else set())
        number = next(number for number in range(len(used) + 1) if number not in used)
        spec = row.spec
        endpoint = Endpoint(
            row.id, spec.name, self._free_link(row, sandbox), f"{spec.interface}{number}", address, spec.gateway,
            ip_network(spec.subnet).prefixlen, tuple(join.aliases), bool(join.address), address6, spec.pool6.gateway,
            ip_network(spec.pool6.subnet).prefixlen if address6 else 0, bool(join.address6), pools.check_mac(join.mac),
            join.priority,
        )  # fmt: skip
        self._put(replace(row, endpoints={**row.endpoints, sandbox: endpoint}))
        try:
            if netns:
                await self._attach(row, sandbox, endpoint, netns, on_pods=on_pods)
        except BaseException:
            self._drop_endpoint(row.id, sandbox)
            raise
        if self._names_of(sandbox):  # else it is told of when the container starts
            self._events.tell(
                "network", "connect", row.id, {"container": sandbox, "name": row.spec.name, "type": row.driver}
            )
        return endpoint

    async def leave(self, sandbox: str, network: str) -> None:
        """Take a sandbox off one network; `lead` it out afterwards. Raises NotFound, Forbidden."""
        networking = self._need()
        row = self.find(network)
        endpoint = row.endpoints.get(sandbox)
        if endpoint is None:
            raise Forbidden(f"container {sandbox} is not connected to network {row.spec.name}")
        await networking.bridges.detach(endpoint.link)
        self._drop_endpoint(row.id, sandbox)
        self._tell_left(row, sandbox)

    async def leave_all(self, sandbox: str) -> None:
        """Take a sandbox off everything, its ports too; it is going."""
        self.unpublish(sandbox)
        self.resolvers.pop(sandbox, None)
        for endpoint in self.endpoints_of(sandbox):
            await self._need().bridges.detach(endpoint.link)
            row = self._rows.get(endpoint.network)
            if row is not None:
                self._drop_endpoint(row.id, sandbox)

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
        pods = (pod_address, pod_gateway) if pod_address and spec.network == "pod" else None
        target = self._target(sandbox, pods)
        if not target.address:
            return  # an internal network publishes nothing
        place = self.way_out(sandbox, on_pods=pods is not None)
        usual = self._rows[place.network].spec.host_address if place is not None else ""
        try:
            ports = await networking.ports.publish(
                sandbox, [each if each.host_address else replace(each, host_address=usual) for each in wanted], target
            )
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
    def _target(self, sandbox: str, pods: tuple[str, str] | None) -> PortTarget:
        """Say where a sandbox's ports lead."""
        place, six = (self.way_out(sandbox, six=six, on_pods=pods is not None) for six in (False, True))
        address, gateway = (place.address, place.gateway) if place is not None else pods or ("", "")
        return PortTarget(address, gateway, six.address6, six.gateway6) if six else PortTarget(address, gateway)

    async def _claim(self, spec: NetworkSpec) -> tuple[Pool, Pool]:
        """Claim a network's subnets: of IPv4, and of IPv6 where it has that."""
        bridges = self._need().bridges
        pool, pool6 = pools.tidy(spec.pool), pools.tidy(spec.pool6)
        try:
            pool = replace(pool, subnet=await bridges.subnet(pool.subnet))
            if spec.ipv6:
                try:
                    pool6 = replace(pool6, subnet=await bridges.subnet(pool6.subnet, six=True))
                except BaseException:
                    await bridges.give_back(pool.subnet)
                    raise
        except Conflict as error:
            raise Forbidden(error.message) from error
        pool = replace(pool, gateway=pool.gateway or pools.first_host(pool.subnet))
        return pool, replace(pool6, gateway=pool6.gateway or pools.first_host(pool6.subnet)) if spec.ipv6 else Pool()

    async def _give_back(self, *subnets: str) -> None:
        for subnet in filter(None, subnets):
            await self._need().bridges.give_back(subnet)

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
            gateway = pools.first_host(mine) if mine else ""
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
        link = spec.link or bridge_link(self._need().instance, row.id)
        return BridgeNetwork(
            row.id, link, spec.subnet, spec.gateway, spec.mtu, spec.internal, spec.masquerade, spec.pool6.subnet,
            spec.pool6.gateway, spec.icc,
        )  # fmt: skip

    async def _attach(self, row: Network, sandbox: str, endpoint: Endpoint, netns: str, *, on_pods: bool) -> None:
        ways = [self.way_out(sandbox, six=six, on_pods=on_pods) for six in (False, True)]
        leads, leads6 = (way is not None and way.network == row.id for way in ways)
        port = BridgePort(endpoint.link, endpoint.interface, endpoint.address, endpoint.address6, endpoint.mac)
        await self._need().bridges.attach(self._bridge(row), port, netns, is_way_out=leads, is_way_out6=leads6)

    async def _attach_again(self, link: str) -> None:
        """Make a link anew that somebody took away."""
        for row in tuple(self._rows.values()):
            for sandbox, endpoint in row.endpoints.items():
                netns, on_pods = self.netns_of(sandbox) if endpoint.link == link else ("", False)
                if netns:
                    await self._attach(row, sandbox, endpoint, netns, on_pods=on_pods)

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
            await self._give_back(row.spec.subnet, row.spec.pool6.subnet)
        self._records.drop_network(row.id)
        self._index()

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
        self._index()

    def _index(self) -> None:
        """Find askers and names that do not change with their containers: ids and aliases."""
        self._by_address = {each.address: id for row in self._rows.values() for id, each in row.endpoints.items()}
        self._steady = {}
        for row in self._rows.values():
            known = self._steady[row.id] = dict[str, list[str]]()
            for sandbox, endpoint in row.endpoints.items():
                for name in {sandbox, sandbox[:12], *(each.lower() for each in endpoint.aliases)}:
                    known.setdefault(name, []).append(sandbox)

    # names ------------------------------------------------------------------------------------------------------------
    def _zone_of(self, client: str) -> Names:
        """Say what the asker at an address may know."""
        asker = self._by_address.get(client, "")
        rows = [row for row in self._rows.values() if asker in row.endpoints]
        inside = bool(rows) and all(row.spec.internal for row in rows)
        return Names(
            lambda name: self._addresses(rows, name), lambda address: self._name(rows, address), inside=inside,
            servers=self.resolvers.get(asker, ()),
        )  # fmt: skip

    def _addresses(self, rows: Sequence[Network], name: str) -> Sequence[str]:
        found: list[str] = []
        for row in rows:
            wanted = (name, name.removesuffix(f".{row.spec.name.lower()}"))
            steady = self._steady.get(row.id, {})
            mine = {sandbox for each in wanted for sandbox in steady.get(each, ())}
            for sandbox, endpoint in row.endpoints.items():
                names = self._names_of(sandbox)
                if names and (sandbox in mine or names[0].lower() in wanted):
                    found += [endpoint.address, endpoint.address6]
        return [each for each in dict.fromkeys(found) if each]

    def _name(self, rows: Sequence[Network], address: str) -> str:
        for row in rows:
            for sandbox, endpoint in row.endpoints.items():
                names = self._names_of(sandbox)
                if address in (endpoint.address, endpoint.address6) and names:
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


def _number_of(interface: str) -> int:
    """Read the number at the end of a link's name."""
    return int(interface[len(interface.rstrip("0123456789")) :])
