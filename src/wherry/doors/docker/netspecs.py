"""What a client asks for when it makes a network: Docker's fields and driver options, read or refused by name."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.engine.types import NetworkSpec, Pool
from wherry.errors import BadRequest, Forbidden, Unavailable, Unsupported

Json = dict[str, Any]
_KNOWN = (
    "Name", "CheckDuplicate", "Driver", "Internal", "Attachable", "IPAM", "Options", "Labels", "EnableIPv4", "EnableIPv6",
    "Ingress", "Scope", "ConfigFrom",
)  # fmt: skip
_BRIDGE = "com.docker.network.bridge"
_MTU = "com.docker.network.driver.mtu"
_NOT_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try '
    "again."
)


def read_network(body: Json) -> NetworkSpec:
    """Read `POST /networks/create`. Raises BadRequest, Forbidden, Unavailable (for swarm), Unsupported."""
    name = body.get("Name")
    if not isinstance(name, str) or not name:
        raise BadRequest("network name cannot be empty")
    _refuse(name, body)
    options = _strings(body, "Options")
    for option in options:
        if option not in OPTIONS:
            raise Unsupported(
                f"network {name}: option {option}={options[option]} is not supported by wherry; see SCOPE.md"
            )
    further: Json = {}
    for option, text in options.items():
        field, read = OPTIONS[option]
        value = read(name, option, text)
        further |= {field: value} if field else {}
    pool, pool6 = _pools(name, body.get("IPAM") or {})
    return NetworkSpec(
        name,
        subnet=pool.subnet,
        gateway=pool.gateway,
        ip_range=pool.ip_range,
        reserved=pool.reserved,
        internal=bool(body.get("Internal")),
        attachable=bool(body.get("Attachable")),
        labels=_strings(body, "Labels"),
        options=options,
        ipv6=bool(body.get("EnableIPv6")),
        pool6=pool6,
        **further,
    )


def _refuse(name: str, body: Json) -> None:
    for field, value in body.items():
        if value and field not in _KNOWN:
            raise Unsupported(f"network {name}: {field} is not supported by wherry: {value!r}; see SCOPE.md")
    if (body.get("ConfigFrom") or {}).get("Network"):
        raise Unsupported(f"network {name}: ConfigFrom is not supported by wherry; see SCOPE.md")
    if body.get("Scope") == "swarm":
        raise Unavailable(_NOT_SWARM)
    if body.get("Scope") not in (None, "", "local"):
        raise BadRequest(f"network {name}: invalid scope {body['Scope']!r}: local or swarm")
    if body.get("Ingress"):
        raise Forbidden("Ingress network can only be global scope network")
    if body.get("EnableIPv4") is False:
        raise Unsupported(f"network {name}: EnableIPv4=false is not supported by wherry")
    if body.get("Driver") not in (None, "", "default", "bridge"):
        raise Unsupported(f"network {name}: driver {body['Driver']!r}: only bridge is supported by wherry")


def _pools(name: str, ipam: Any) -> tuple[Pool, Pool]:
    """Read the pools of IPv4 and IPv6 that are asked for, at most one of each."""
    if not isinstance(ipam, dict):
        raise BadRequest(f"network {name}: IPAM: an object is wanted")
    if ipam.get("Driver") not in (None, "", "default") or ipam.get("Options"):
        raise Unsupported(f"network {name}: only the default IPAM driver is supported by wherry, without options")
    found = {4: Pool(), 6: Pool()}
    for config in filter(None, ipam.get("Config") or ()):
        if not isinstance(config, dict):
            raise BadRequest(f"network {name}: IPAM.Config: a list of objects is wanted")
        for field, value in config.items():
            if value and field not in ("Subnet", "Gateway", "IPRange", "AuxiliaryAddresses"):
                raise Unsupported(f"network {name}: IPAM.Config.{field} is not supported by wherry: {value!r}")
        pool = Pool(
            str(config.get("Subnet") or ""),
            str(config.get("Gateway") or "").partition("/")[0],
            str(config.get("IPRange") or ""),
            _strings(config, "AuxiliaryAddresses"),
        )
        version = 6 if any(":" in text for text in (pool.subnet, pool.gateway, pool.ip_range)) else 4
        if found[version] != Pool():
            raise BadRequest("bridge driver doesn't support multiple subnets")
        found[version] = pool
    return found[4], found[6]


def _strings(body: Json, field: str) -> dict[str, str]:
    value = body.get(field) or {}
    if not isinstance(value, dict):
        raise BadRequest(f"{field}: an object of strings is wanted")
    return {str(key): str(text) for key, text in value.items()}


def _flag(name: str, option: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "t", "f"):
        raise BadRequest(f"network {name}: {option}={text}: true or false is wanted")
    return text.lower() in ("true", "1", "t")


def _text(name: str, option: str, text: str) -> str:
    if not text:
        raise BadRequest(f"network {name}: {option}: a value is wanted")
    return text


def _bytes(name: str, option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or (int(text) and not 68 <= int(text) <= 65535):
        raise BadRequest(f"network {name}: {option}={text}: a number of bytes from 68 to 65535")
    return int(text)


def _only(*values: str) -> Callable[[str, str, str], None]:
    def read(name: str, option: str, text: str) -> None:
        if text not in values:
            raise Unsupported(f"network {name}: {option}={text} is not supported by wherry: {' or '.join(values)}")

    return read


OPTIONS: Mapping[str, tuple[str, Callable[[str, str, str], Any]]] = {
    _MTU: ("mtu", _bytes),
    f"{_BRIDGE}.name": ("link", _text),
    f"{_BRIDGE}.enable_icc": ("icc", _flag),
    f"{_BRIDGE}.enable_ip_masquerade": ("masquerade", _flag),
    f"{_BRIDGE}.host_binding_ipv4": ("host_address", _text),
    "com.docker.network.container_iface_prefix": ("interface", _text),
    f"{_BRIDGE}.default_bridge": ("", _only("false")),
    f"{_BRIDGE}.gateway_mode_ipv4": ("", _only("nat")),
    f"{_BRIDGE}.gateway_mode_ipv6": ("", _only("nat")),
}
"""The driver's options: the field of NetworkSpec that each sets ("": none), and what reads its value."""
