"""Docker's endpoints about networks."""

from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any

from wherry.clock import Clock, parse_rfc3339
from wherry.doors.docker import answers, filters
from wherry.doors.docker.containers import json_body
from wherry.doors.docker.endpoints import endpoint_id, read_join
from wherry.doors.docker.engine import DockerEngine
from wherry.engine.types import Container, Network, NetworkSpec, State
from wherry.errors import BadRequest, Forbidden, NotFound, Unsupported
from wherry.network.ranges import mac_of
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

LIST = ("name", "id", "label", "driver", "scope", "type", "dangling")
PRUNE = ("label", "label!", "until")
_CREATE = ("Name", "CheckDuplicate", "Driver", "Internal", "Attachable", "IPAM", "Options", "Labels", "EnableIPv4")
_MTU = "com.docker.network.driver.mtu"
_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
_HARMLESS = {"com.docker.network.bridge.enable_icc": "true", "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0"}

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
        join = read_join(network.id, body.get("EndpointConfig"))
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
        until = _until(wanted, self._clock.now())
        gone: list[str] = []
        for each in self._engine.networks.all():
            spared = any(filters.has_labels(each.spec.labels, [label]) for label in wanted.get("label!", ()))
            fits = filters.has_labels(each.spec.labels, wanted.get("label", ()))
            if self._engine.networks.in_use(each) or spared or not fits or (until and each.created > until):
                continue
            await self._engine.networks.remove(each.id)
            gone.append(each.spec.name)
        return Response.json({"NetworksDeleted": gone or None})

    async def _container(self, body: Mapping[str, Any]) -> Container:
        name = str(body.get("Container") or "")
        try:
            return await self._engine.container(name)
        except NotFound:
            raise NotFound(f"No such container: {name}") from None


def read_network(body: Json) -> NetworkSpec:
    """Read `POST /networks/create`. Raises BadRequest, Unsupported."""
    name = body.get("Name")
    if not isinstance(name, str) or not name:
        raise BadRequest("network name cannot be empty")
    for field, value in body.items():
        if field == "Scope" and value in ("", "local"):
            continue
        if field == "ConfigFrom" and not (value or {}).get("Network"):
            continue
        if value and field not in _CREATE:
            raise Unsupported(f"network {name}: {field} is not supported by wherry: {value!r}; see SCOPE.md")
    if body.get("EnableIPv4") is False:
        raise Unsupported(f"network {name}: EnableIPv4=false is not supported by wherry")
    if body.get("Driver") not in (None, "", "default", "bridge"):
        raise Unsupported(f"network {name}: driver {body['Driver']!r}: only bridge is supported by wherry")
    options = _strings(body, "Options")
    pool = _pool(name, body.get("IPAM") or {})
    return NetworkSpec(
        name,
        subnet=str(pool.get("Subnet") or ""),
        gateway=str(pool.get("Gateway") or "").partition("/")[0],
        ip_range=str(pool.get("IPRange") or ""),
        reserved={str(key): str(value) for key, value in (pool.get("AuxiliaryAddresses") or {}).items()},
        mtu=_mtu(name, options),
        internal=bool(body.get("Internal")),
        attachable=bool(body.get("Attachable")),
        masquerade=options.get(_MASQUERADE, "true").lower() in ("true", "1"),
        labels=_strings(body, "Labels"),
        options=options,
    )


def _mtu(name: str, options: Mapping[str, str]) -> int:
    for option, value in options.items():
        if option not in (_MTU, _MASQUERADE) and _HARMLESS.get(option) != value:
            raise Unsupported(f"network {name}: option {option}={value} is not supported by wherry; see SCOPE.md")
    text = options.get(_MTU, "0")
    if not (text.isascii() and text.isdigit()) or (int(text) and not 68 <= int(text) <= 65535):
        raise BadRequest(f"network {name}: {_MTU}={text}: a number of bytes from 68 to 65535")
    return int(text)


def _pool(name: str, ipam: Any) -> Json:
    """The only pool of addresses that is asked for, or an empty one."""
    if not isinstance(ipam, dict):
        raise BadRequest(f"network {name}: IPAM: an object is wanted")
    if ipam.get("Driver") not in (None, "", "default") or ipam.get("Options"):
        raise Unsupported(f"network {name}: only the default IPAM driver is supported by wherry, without options")
    pools = [pool for pool in ipam.get("Config") or () if pool]
    if len(pools) > 1:
        raise Unsupported(f"network {name}: {len(pools)} subnets: one IPv4 subnet is supported by wherry")
    return pools[0] if pools else {}


def _strings(body: Json, field: str) -> dict[str, str]:
    value = body.get(field) or {}
    if not isinstance(value, dict):
        raise BadRequest(f"{field}: an object of strings is wanted")
    return {str(key): str(text) for key, text in value.items()}


def show(network: Network, containers: Sequence[Container] = ()) -> Json:
    """A network in Docker's shape; with `containers`, those of them that run and are on it."""
    spec = network.spec
    pool: Json = {"Subnet": spec.subnet, "Gateway": spec.gateway} if spec.subnet else {}
    pool |= {"IPRange": spec.ip_range} if spec.ip_range else {}
    pool |= {"AuxiliaryAddresses": dict(spec.reserved)} if spec.reserved else {}
    return {
        "Name": spec.name, "Id": network.id, "Created": answers.moment(network.created), "Scope": "local",
        "Driver": network.driver, "EnableIPv4": True, "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": [pool] if pool else []},
        "Internal": spec.internal, "Attachable": spec.attachable, "Ingress": False, "ConfigFrom": {"Network": ""},
        "ConfigOnly": False, "Containers": _inside(network, containers), "Options": dict(spec.options),
        "Labels": dict(spec.labels),
    }  # fmt: skip


def _inside(network: Network, containers: Sequence[Container]) -> Json:
    shown: Json = {}
    for each in containers:
        if each.state not in (State.RUNNING, State.PAUSED):
            continue
        sandbox = each.spec.sandbox_spec
        endpoint = network.endpoints.get(each.sandbox)
        address = f"{endpoint.address}/{endpoint.prefix}" if endpoint is not None else ""
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
            "MacAddress": mac_of(address.partition("/")[0], inside=True) if address else "",
            "IPv4Address": address, "IPv6Address": "",
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


def _until(wanted: filters.Filters, now: float) -> float:
    """Read prune's `until`: a time, or how long ago (`24h`)."""
    for text in wanted.get("until", ()):
        units = {"s": 1, "m": 60, "h": 3600}
        if text[:-1].isdigit() and text[-1] in units:
            return now - int(text[:-1]) * units[text[-1]]
        if text.isdigit():
            return float(text)
        try:
            return parse_rfc3339(text)
        except ValueError:
            raise BadRequest(f"invalid until filter: {text!r}") from None
    return 0.0
