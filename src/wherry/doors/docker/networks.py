"""Docker's endpoints about networks."""

from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any

from wherry.clock import Clock
from wherry.doors.docker import answers, filters
from wherry.doors.docker.containers import json_body
from wherry.doors.docker.endpoints import endpoint_id, read_join
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.netspecs import read_network
from wherry.doors.docker.times import read_moment
from wherry.engine.types import Container, Network, Pool, State
from wherry.errors import BadRequest, Forbidden, NotFound, Unsupported
from wherry.network.ranges import mac_of
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

LIST = ("name", "id", "label", "driver", "scope", "type", "dangling")
PRUNE = ("label", "label!", "until")

Json = dict[str, Any]


class Networks:
    """The handlers."""

    def __init__(self, engine: DockerEngine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def routes(self) -> tuple[Route, ...]:
        """All endpoints about networks."""
        return (
            Route("GET", "/networks", self._list),
            Route("POST", "/networks/create", self._create),
            Route("POST", "/networks/prune", self._prune),
            Route("GET", "/networks/{name}", self._inspect),
            Route("DELETE", "/networks/{name}", self._remove),
            Route("POST", "/networks/{name}/connect", self._connect),
            Route("POST", "/networks/{name}/disconnect", self._disconnect),
        )

    async def _list(self, request: Request) -> Response:
        wanted = filters.parse(request.first("filters"), LIST)
        for value in wanted.get("type", ()):
            if value not in ("custom", "builtin"):
                raise BadRequest(f"invalid filter: 'type'='{value}'")
        used = self._engine.networks.in_use
        found = [each for each in self._engine.networks.all() if matches(each, wanted, used)]
        return Response.json([show(each) for each in found])

    async def _inspect(self, request: Request) -> Response:
        network = self._engine.networks.find(request.params["name"])
        return Response.json(show(network, await self._engine.containers()))

    async def _create(self, request: Request) -> Response:
        made = await self._engine.networks.create(read_network(await json_body(request)))
        return Response.json({"Id": made.id, "Warning": ""}, status=201)

    async def _remove(self, request: Request) -> Response:
        await self._engine.networks.remove(request.params["name"])
        return Response(204)

    async def _connect(self, request: Request) -> Response:
        network, body = self._engine.networks.find(request.params["name"]), await json_body(request)
        endpoint = body.get("EndpointConfig")
        join = read_join(network.id, endpoint)
        if endpoint and endpoint.get("Links"):
            raise Unsupported("EndpointConfig.Links is not supported by wherry when a network is joined: use aliases")
        if network.predefined and join.aliases:
            raise BadRequest("network-scoped alias is supported only for containers in user defined networks")
        container = await self._container(body)
        if network.spec.name in ("host", "none"):
            raise Forbidden(f"container cannot be connected to {network.spec.name} network")
        await self._engine.connect(container.id, join)
        return Response(200)

    async def _disconnect(self, request: Request) -> Response:
        network, body = self._engine.networks.find(request.params["name"]), await json_body(request)
        try:
            container = await self._container(body)
        except NotFound:
            if body.get("Force"):
                return Response(200)  # its places have gone with it
            raise
        await self._engine.disconnect(container.id, network.id)
        return Response(200)

    async def _prune(self, request: Request) -> Response:
        wanted = filters.parse(request.first("filters"), PRUNE)
        until = max((read_moment(text, "until", self._clock.now()) for text in wanted.get("until", ())), default=0.0)
        gone: list[str] = []
        for each in self._engine.networks.all():
            spared = any(filters.has_labels(each.spec.labels, [label]) for label in wanted.get("label!", ()))
            fits = filters.has_labels(each.spec.labels, wanted.get("label", ()))
            if self._engine.networks.in_use(each) or spared or not fits or (until and each.created > until):
                continue
            await self._engine.networks.remove(each.id)
            gone.append(each.spec.name)
        self._engine.tell("network", "prune", "", {"reclaimed": "0"})
        return Response.json({"NetworksDeleted": gone or None})

    async def _container(self, body: Mapping[str, Any]) -> Container:
        name = str(body.get("Container") or "")
        try:
            return await self._engine.container(name)
        except NotFound:
            raise NotFound(f"No such container: {name}") from None


def show(network: Network, containers: Sequence[Container] = ()) -> Json:
    """A network in Docker's shape; with `containers`, those of them that run and are on it."""
    spec = network.spec
    return {
        "Name": spec.name, "Id": network.id, "Created": answers.moment(network.created), "Scope": "local",
        "Driver": network.driver, "EnableIPv4": True, "EnableIPv6": spec.ipv6,
        "IPAM": {
            "Driver": "default", "Options": None if network.predefined else {},
            "Config": [_pool(each) for each in (spec.pool, spec.pool6) if each.subnet],
        },
        "Internal": spec.internal, "Attachable": spec.attachable, "Ingress": False, "ConfigFrom": {"Network": ""},
        "ConfigOnly": False, "Containers": _inside(network, containers), "Options": dict(spec.options),
        "Labels": dict(spec.labels),
    }  # fmt: skip


def _pool(pool: Pool) -> Json:
    shown: Json = {"Subnet": pool.subnet}
    shown |= {"IPRange": pool.ip_range} if pool.ip_range else {}
    shown |= {"Gateway": pool.gateway} if pool.gateway else {}
    return shown | ({"AuxiliaryAddresses": dict(pool.reserved)} if pool.reserved else {})


def _inside(network: Network, containers: Sequence[Container]) -> Json:
    shown: Json = {}
    for each in containers:
        if each.state not in (State.RUNNING, State.PAUSED):
            continue
        sandbox = each.spec.sandbox_spec
        endpoint = network.endpoints.get(each.sandbox)
        address = f"{endpoint.address}/{endpoint.prefix}" if endpoint is not None else ""
        address6 = f"{endpoint.address6}/{endpoint.prefix6}" if endpoint is not None and endpoint.address6 else ""
        mac = endpoint.mac if endpoint is not None else sandbox.mac if sandbox is not None else ""
        kind = {"bridge": "pod"}.get(network.spec.name, network.spec.name)
        if network.predefined and sandbox is not None and sandbox.network == kind:
            own = {place.address for place in each.endpoints}
            if kind == "pod" and (not each.address or each.address in own):
                continue  # somebody took it off
            prefix = IPv4Network(network.spec.subnet).prefixlen if network.spec.subnet else 32
            address = f"{each.address}/{prefix}" if each.address else ""
        elif endpoint is None:
            continue
        shown[each.id] = {
            "Name": each.name, "EndpointID": endpoint_id(network.id, each.sandbox),
            "MacAddress": (mac or mac_of(address.partition("/")[0], inside=True)) if address else "",
            "IPv4Address": address, "IPv6Address": address6,
        }  # fmt: skip
    return shown


def matches(network: Network, wanted: filters.Filters, is_used: Callable[[Network], bool]) -> bool:
    """Whether a network passes."""
    tests: Mapping[str, Callable[[Sequence[str]], bool]] = {
        "name": lambda values: any(value in network.spec.name for value in values),
        "id": lambda values: any(network.id.startswith(value) for value in values),
        "label": lambda values: filters.has_labels(network.spec.labels, values),
        "driver": lambda values: network.driver in values,
        "scope": lambda values: "local" in values,
        "type": lambda values: ("builtin" if network.predefined else "custom") in values,
        "dangling": lambda values: all((not is_used(network)) == (value in ("1", "true")) for value in values),
    }
    return all(tests[name](values) for name, values in wanted.items())
