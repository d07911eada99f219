"""The addresses and ports of a Service: chosen, or checked when they are asked for.

What is taken is read from the services themselves, so there is nothing to repair after a restart. The caller holds
`Core.allocating` until the write is committed. IPv4 only. Source: Kubernetes, "Service ClusterIP allocation".
"""

import ipaddress
import random
from collections.abc import Iterator
from typing import Any

import msgspec

from wherry.api.admission.call import Call
from wherry.api.errors import invalid
from wherry.errors import Cause
from wherry.model.kinds import SERVICES

Json = dict[str, Any]

HEADLESS = "None"
_NODE_TYPES = ("NodePort", "LoadBalancer")
_IP_TYPES = ("ClusterIP", *_NODE_TYPES)
_BALANCED = ("allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort")
"""Fields that only a LoadBalancer has; an update to another type that leaves them as they were lets go of them."""


class _Port(msgspec.Struct, frozen=True, rename="camel"):
    node_port: int = 0
    protocol: str = "TCP"


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    ports: tuple[_Port, ...] | None = None
    health_check_node_port: int = 0


class _Service(msgspec.Struct, frozen=True):
    spec: _Spec = _Spec()


def allocate(call: Call) -> None:
    """Give a Service its cluster address and node ports. Raises Invalid for one that is taken or out of range."""
    if call.kind != SERVICES or call.operation == "DELETE" or call.subresource:
        return
    spec = call.spec
    if call.old is not None:
        _carry(spec, call.old.get("spec") or {})
    others = [
        item.view(_Service).spec
        for item in call.core.shelf(SERVICES).all()
        if item.key != SERVICES.key(call.namespace, call.name)
    ]
    causes: list[Cause] = []
    if spec.get("type", "ClusterIP") in _IP_TYPES:
        causes += _address(call, spec, {other.cluster_ip for other in others})
    else:  # ExternalName
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            spec.pop(field, None)
    causes += _node_ports(call, spec, others)
    if causes:
        raise invalid("Service", "", call.name, causes)


def first_address(cidr: str) -> str:
    """The address of the Service `kubernetes`: the first of the block."""
    return str(ipaddress.ip_network(cidr)[1])


def _address(call: Call, spec: Json, taken: set[str]) -> list[Cause]:
    network = ipaddress.ip_network(call.core.settings.service_cidr)
    families = spec.get("ipFamilies") or ["IPv4"]
    if "IPv6" in families or spec.get("ipFamilyPolicy") == "RequireDualStack":
        message = f'Invalid value: "{families[-1]}": this cluster is not configured for dual-stack or IPv6 services'
        return [Cause("spec.ipFamilies", "FieldValueInvalid", message)]
    given = spec.get("clusterIP") or next(iter(spec.get("clusterIPs") or ()), "")
    if not given:
        found = _choose(network, taken)
        if found is None:
            return [
                Cause("spec.clusterIPs", "FieldValueInvalid", f"Invalid value: []: no address is free in {network}")
            ]
        given = found
    elif given != HEADLESS:
        problem = _refused(given, network, taken)
        if problem:
            message = f'Invalid value: ["{given}"]: failed to allocate IP {given}: {problem}'
            return [Cause("spec.clusterIPs", "FieldValueInvalid", message)]
    spec["clusterIP"] = given
    spec["clusterIPs"] = [given]
    spec["ipFamilies"] = ["IPv4"]
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    return []


def _refused(given: str, network: "ipaddress.IPv4Network | ipaddress.IPv6Network", taken: set[str]) -> str:
    try:
        address = ipaddress.ip_address(given)
    except ValueError:
        return "it is not an IP address"
    if address not in network or address in (network[0], network[-1]):
        return f"the provided network address is not in the valid range. The range of valid IPs is {network}"
    return "provided IP is already allocated" if given in taken else ""


def _choose(network: "ipaddress.IPv4Network | ipaddress.IPv6Network", taken: set[str]) -> str | None:
    """A free address from the upper band first; the lower one is left to those who ask by number, while it can be."""
    size = network.num_addresses - 2
    band = min(max(16, size // 16), 256) if size > 32 else 0
    start = random.randrange(size - band)
    upper = (band + (start + step) % (size - band) for step in range(size - band))
    for offset in (*_some(upper, len(taken) + 1), *range(band)):
        address = str(network[offset + 1])
        if address not in taken:
            return address
    return None


def _some(values: Iterator[int], count: int) -> Iterator[int]:
    """As many as can be taken, and one: then one of them is free, unless all are taken."""
    for value, _ in zip(values, range(count), strict=False):
        yield value


def _carry(spec: Json, old: Json) -> None:
    """Keep what was allocated where the update leaves it out, and let go of what the new type has not."""
    kind, was = spec.get("type", "ClusterIP"), old.get("type", "ClusterIP")
    if kind in _IP_TYPES and was in _IP_TYPES and not spec.get("clusterIP") and not spec.get("clusterIPs"):
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if field in old:
                spec[field] = old[field]
    before = {
        (port.get("protocol", "TCP"), port.get("port")): port.get("nodePort", 0) for port in old.get("ports") or ()
    }
    for port in spec.get("ports") or ():
        held = before.get((port.get("protocol", "TCP"), port.get("port")), 0)
        if kind in _NODE_TYPES and not port.get("nodePort") and held:
            port["nodePort"] = held
        elif kind not in _NODE_TYPES and port.get("nodePort") == held:
            port.pop("nodePort", None)
    if kind == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local" and "healthCheckNodePort" in old:
        spec.setdefault("healthCheckNodePort", old["healthCheckNodePort"])
    dropped = (
        () if kind == "LoadBalancer" else _BALANCED if kind == "NodePort" else (*_BALANCED, "externalTrafficPolicy")
    )
    for field in dropped:
        if field in spec and spec[field] == old.get(field):
            del spec[field]


def _node_ports(call: Call, spec: Json, others: list[_Spec]) -> list[Cause]:
    ports: list[Json] = spec.get("ports") or []
    kind = spec.get("type", "ClusterIP")
    wanted = kind == "NodePort" or (kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False)
    taken = {(port.protocol, port.node_port) for other in others for port in other.ports or ()}
    taken |= {("TCP", other.health_check_node_port) for other in others}
    causes: list[Cause] = []
    for index, port in enumerate(ports):
        number, protocol = port.get("nodePort") or 0, port.get("protocol", "TCP")
        if not number:
            continue
        if kind in _NODE_TYPES:
            causes += _port_causes(call, f"spec.ports[{index}].nodePort", protocol, number, taken)
        taken.add((protocol, number))
    if causes or not wanted:
        return causes
    chosen: dict[int, int] = {}
    for index, port in enumerate(ports):
        if port.get("nodePort"):
            continue
        protocol = port.get("protocol", "TCP")
        # Two protocols of one port share the number, as DNS over UDP and TCP should.
        number = chosen.get(port.get("port", 0), 0)
        if not number or (protocol, number) in taken:
            number = _free(call, taken, protocol)
        if not number:
            return [
                Cause(f"spec.ports[{index}].nodePort", "FieldValueInvalid", "Invalid value: 0: no node port is free")
            ]
        port["nodePort"] = chosen[port.get("port", 0)] = number
        taken.add((protocol, number))
    if kind == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local" and not spec.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = _free(call, taken, "TCP")
    return []


def _port_causes(call: Call, field: str, protocol: str, number: int, taken: set[tuple[str, int]]) -> list[Cause]:
    first, last = call.core.settings.node_ports
    if not first <= number <= last:
        message = (
            f"Invalid value: {number}: provided port is not in the valid range. "
            f"The range of valid ports is {first}-{last}"
        )
        return [Cause(field, "FieldValueInvalid", message)]
    if (protocol, number) in taken:
        return [Cause(field, "FieldValueInvalid", f"Invalid value: {number}: provided port is already allocated")]
    return []


def _free(call: Call, taken: set[tuple[str, int]], protocol: str) -> int:
    first, last = call.core.settings.node_ports
    count = last - first + 1
    start = random.randrange(count)
    for step in range(count):
        number = first + (start + step) % count
        if (protocol, number) not in taken:
            return number
    return 0
