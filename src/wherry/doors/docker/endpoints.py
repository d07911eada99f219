"""Ports and networks of a container: what a client asks for at its creation, and how they are shown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from wherry.engine.pools import check_mac
from wherry.engine.types import Container, Endpoint, Join, State
from wherry.errors import BadRequest, Unsupported
from wherry.network.ranges import mac_of
from wherry.network.types import PortBinding, PublishedPort

Json = dict[str, Any]
_PORT = re.compile(r"(\d{1,5})(?:/(tcp|udp|sctp))?", re.ASCII)
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_DEFAULT = ("default", "bridge")
_SHOWN_ONLY = (
    "NetworkID", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "DNSNames", "IPv6Gateway", "GlobalIPv6Address",
    "GlobalIPv6PrefixLen",
)  # fmt: skip
"""Fields of an endpoint that clients send back as they were shown."""


def read_port(text: str) -> tuple[int, str]:
    """Read `80/tcp`. Raises BadRequest."""
    found = _PORT.fullmatch(text)
    if found is None or not 0 < int(found[1]) < 65536:
        raise BadRequest(f"invalid port specification: {text!r}")
    return int(found[1]), found[2] or "tcp"


def read_bindings(bindings: Mapping[str, Any]) -> Sequence[PortBinding]:
    """Read HostConfig.PortBindings. Raises BadRequest."""
    result: list[PortBinding] = []
    for text, places in bindings.items():
        number, protocol = read_port(text)
        if places is not None and not isinstance(places, list):
            raise BadRequest(f"HostConfig.PortBindings.{text}: a list is wanted")
        for place in places or [{}]:
            if not isinstance(place, dict):
                raise BadRequest(f"HostConfig.PortBindings.{text}: a list of objects is wanted")
            first, last = _range(str(place.get("HostPort") or ""))
            result.append(PortBinding(number, protocol, str(place.get("HostIp") or ""), first, last))
    return result


def _range(text: str) -> tuple[int, int]:
    if text in ("", "0"):
        return 0, 0
    found = _RANGE.fullmatch(text)
    if found is None:
        raise BadRequest(f"invalid port specification: {text!r}")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 0 < first <= last < 65536:
        raise BadRequest(f"invalid port specification: {text!r}")
    return first, last


def read_exposed(*ports: Mapping[str, Any] | None) -> Sequence[str]:
    """Read ExposedPorts of a body and of an image: `80/tcp` each, without doubles. Raises BadRequest."""
    found = [read_port(text) for each in ports for text in each or {}]
    return [f"{number}/{protocol}" for number, protocol in dict.fromkeys(found)]


def read_networks(config: Mapping[str, Any], mode: str) -> tuple[str, Sequence[Join]]:
    """Read NetworkMode and NetworkingConfig: the engine's kind of network and those of one's own. Raises BadRequest."""
    endpoints = config.get("EndpointsConfig") or {}
    if not isinstance(endpoints, dict):
        raise BadRequest("NetworkingConfig.EndpointsConfig: an object is wanted")
    mode = mode or "default"
    own: dict[str, Join] = {}
    for name, endpoint in endpoints.items():
        join = read_join(name, endpoint)
        if name in (*_DEFAULT, "host", "none") or name.startswith("container:"):
            if join.aliases:
                raise BadRequest("network-scoped alias is supported only for containers in user defined networks")
            if join.address or join.address6:
                raise BadRequest("user specified IP address is supported on user defined networks only")
            if join.priority:
                raise Unsupported(f"NetworkingConfig.EndpointsConfig.{name}.GwPriority is not supported by wherry")
        else:
            own[name] = join
    if mode in ("host", "none") or mode.startswith("container:"):
        if own:
            raise BadRequest(f"conflicting options: {mode} networking and networks of one's own")
        return mode, ()
    if mode not in _DEFAULT:
        if any(name in endpoints for name in _DEFAULT):
            raise Unsupported(
                "the default bridge beside a network of one's own that comes first is not supported by wherry"
            )
        return "user", [own.pop(mode, Join(mode)), *own.values()]
    if own and not any(name in endpoints for name in _DEFAULT):
        return "user", list(own.values())
    return "pod", list(own.values())


def read_join(name: str, endpoint: Any) -> Join:
    """Read one EndpointSettings. Raises BadRequest, Unsupported."""
    if endpoint is not None and not isinstance(endpoint, dict):
        raise BadRequest(f"NetworkingConfig.EndpointsConfig.{name}: an object is wanted")
    settings: Json = endpoint or {}
    for field, value in settings.items():
        if value and field not in ("Aliases", "IPAMConfig", "Links", "MacAddress", "GwPriority", *_SHOWN_ONLY):
            raise Unsupported(f"NetworkingConfig.EndpointsConfig.{name}.{field} is not supported by wherry: {value!r}")
    ipam = settings.get("IPAMConfig") or {}
    for field, value in ipam.items():
        if value and field not in ("IPv4Address", "IPv6Address"):
            raise Unsupported(f"NetworkingConfig.EndpointsConfig.{name}.IPAMConfig.{field} is not supported by wherry")
    aliases = settings.get("Aliases") or []
    if not isinstance(aliases, list):
        raise BadRequest(f"NetworkingConfig.EndpointsConfig.{name}.Aliases: a list is wanted")
    priority = settings.get("GwPriority") or 0
    if not isinstance(priority, int):
        raise BadRequest(f"NetworkingConfig.EndpointsConfig.{name}.GwPriority: a number is wanted")
    return Join(
        name, [str(each) for each in aliases], str(ipam.get("IPv4Address") or ""), str(ipam.get("IPv6Address") or ""),
        check_mac(str(settings.get("MacAddress") or "")), priority,
    )  # fmt: skip


def network_mode(container: Container) -> str:
    """Name the network mode as the client did."""
    if other := container.spec.join.get("network"):
        return f"container:{other}"
    sandbox = container.spec.sandbox_spec
    if sandbox is None or sandbox.network == "pod":
        return "bridge"
    if sandbox.network == "user":
        return sandbox.networks[0].network
    return sandbox.network


def _hosts(port: PublishedPort) -> Sequence[str]:
    return [port.host_address or "0.0.0.0", *(["::"] if port.both else [])]


def ports_list(container: Container) -> Sequence[Json]:
    """The Ports of `docker ps`: published ones, and those that are only named."""
    shown = [
        {"IP": host, "PrivatePort": port.port, "PublicPort": port.host_port, "Type": port.protocol}
        for port in container.ports
        for host in _hosts(port)
    ]
    published = {(port.port, port.protocol) for port in container.ports}
    if container.state in (State.RUNNING, State.PAUSED):
        for text in _exposed(container):
            number, protocol = read_port(text)
            if (number, protocol) not in published:
                shown.append({"PrivatePort": number, "Type": protocol})
    return shown


def ports_map(container: Container) -> Json:
    """NetworkSettings.Ports."""
    running = container.state in (State.RUNNING, State.PAUSED)
    shown: Json = dict.fromkeys(_exposed(container)) if running else {}
    for port in container.ports:
        places = shown.get(f"{port.port}/{port.protocol}") or []
        places += [{"HostIp": host, "HostPort": str(port.host_port)} for host in _hosts(port)]
        shown[f"{port.port}/{port.protocol}"] = places
    return shown


def bindings_map(container: Container) -> Json:
    """HostConfig.PortBindings, as it was asked for."""
    shown: Json = {}
    for each in container.spec.sandbox_spec.ports if container.spec.sandbox_spec else ():
        last = f"-{each.host_last}" if each.host_last > each.host_first else ""
        place = {"HostIp": each.host_address, "HostPort": f"{each.host_first}{last}" if each.host_first else ""}
        shown.setdefault(f"{each.port}/{each.protocol}", []).append(place)
    return shown


def _exposed(container: Container) -> Sequence[str]:
    sandbox = container.spec.sandbox_spec
    if sandbox is None:
        return ()
    return list(dict.fromkeys([*sandbox.exposed, *(f"{each.port}/{each.protocol}" for each in sandbox.ports)]))


def exposed_map(container: Container) -> Json | None:
    """Config.ExposedPorts."""
    return {text: {} for text in _exposed(container)} or None


def endpoint_id(network: str, sandbox: str) -> str:
    """Make an endpoint's id: always the same for the same place."""
    return sha256(f"{network}/{sandbox}".encode()).hexdigest()


def networks_map(container: Container) -> Json:
    """NetworkSettings.Networks. Addresses are shown while it runs."""
    sandbox = container.spec.sandbox_spec
    kind = sandbox.network if sandbox is not None else "pod"
    shown: Json = {each.name: _endpoint(container, each) for each in container.endpoints}
    taken = {each.address for each in container.endpoints}
    if kind in ("host", "none") or (kind == "pod" and container.address not in taken):
        name = {"pod": "bridge"}.get(kind, kind)
        id = sha256(f"wherry/{name}".encode()).hexdigest()
        own = sandbox.mac if sandbox is not None else ""
        place = Endpoint(id, name, "", "", container.address, container.gateway, 32, mac=own)
        shown[name] = _settings(place, endpoint_id(id, container.sandbox), ())
    return shown


def _endpoint(container: Container, each: Endpoint) -> Json:
    aliases = [*each.aliases, container.id[:12]]
    names = [container.name, *aliases]
    if container.state not in (State.RUNNING, State.PAUSED):
        return _settings(replace(each, gateway="", address="", gateway6="", address6=""), "", each.aliases, names, each)
    return _settings(each, endpoint_id(each.network, container.sandbox), aliases, names, each)


def _settings(
    place: Endpoint, id: str, aliases: Sequence[str], names: Sequence[str] = (), wish: Endpoint | None = None
) -> Json:
    wishes: Json = {}
    if wish is not None:
        wishes = {"IPv4Address": wish.address * wish.fixed, "IPv6Address": wish.address6 * wish.fixed6}
    address, address6 = place.address, place.address6
    return {
        "IPAMConfig": {key: value for key, value in wishes.items() if value} or None, "Links": None,
        "Aliases": list(aliases) or None, "NetworkID": place.network, "EndpointID": id, "Gateway": place.gateway,
        "IPAddress": address, "IPPrefixLen": place.prefix if address else 0, "IPv6Gateway": place.gateway6,
        "GlobalIPv6Address": address6, "GlobalIPv6PrefixLen": place.prefix6 if address6 else 0,
        "MacAddress": place.mac or (mac_of(address, inside=True) if address else ""), "DriverOpts": None,
        "GwPriority": place.priority, "DNSNames": list(names) or None,
    }  # fmt: skip


def linked_by_networks(body: Mapping[str, Any]) -> Sequence[str]:
    """Read the links of all endpoints of a new container: `name:alias` each."""
    endpoints = (body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
    return [str(each) for endpoint in endpoints.values() for each in (endpoint or {}).get("Links") or ()]
