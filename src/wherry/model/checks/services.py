"""Checks of Services, Endpoints and EndpointSlices."""

from typing import Any

from wherry.errors import Cause
from wherry.model import names
from wherry.model.checks.containers import PROTOCOLS
from wherry.model.checks.problems import Object, Problems, each, part

TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_HEADLESS = "None"
_AFFINITY_MOST_S = 86_400
_ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
_MOST_ENDPOINTS = 1000
_MOST_ADDRESSES = 100


def service(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Service; its address may not change while it has one."""
    found = Problems()
    spec = part(obj, "spec")
    kind = spec.get("type")
    found.one_of("spec.type", kind, TYPES)
    is_headless = spec.get("clusterIP") == _HEADLESS
    if not spec.get("ports") and not is_headless and kind != "ExternalName":
        found.required("spec.ports")
    _check_ports(found, spec, is_headless=is_headless)
    found.labels("spec.selector", spec.get("selector"))
    _check_affinity(found, spec)
    _check_addresses(found, spec)
    if kind == "ExternalName":
        name = (spec.get("externalName") or "").removesuffix(".")
        if name:
            found.all_invalid("spec.externalName", name, names.dns_subdomain(name))
        else:
            found.required("spec.externalName")
        if spec.get("clusterIP") not in (None, ""):
            found.forbidden("spec.clusterIP", "may not be set when `type` is 'ExternalName'")
    if kind == "LoadBalancer" and is_headless:
        found.invalid("spec.clusterIP", _HEADLESS, "may not be set to 'None' for LoadBalancer services")
    if kind == "NodePort" and is_headless:
        found.invalid("spec.clusterIP", _HEADLESS, "may not be set to 'None' for NodePort services")
    policy = spec.get("externalTrafficPolicy")
    if policy:
        found.one_of("spec.externalTrafficPolicy", policy, ("Cluster", "Local"))
        if kind == "ClusterIP" and not spec.get("externalIPs"):
            found.invalid("spec.externalTrafficPolicy", policy, "may only be set for externally-accessible services")
    found.one_of("spec.internalTrafficPolicy", spec.get("internalTrafficPolicy"), ("Cluster", "Local"), required=False)
    found.one_of(
        "spec.ipFamilyPolicy",
        spec.get("ipFamilyPolicy"),
        ("SingleStack", "PreferDualStack", "RequireDualStack"),
        required=False,
    )
    for at, block in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        found.all_invalid(f"spec.loadBalancerSourceRanges[{at}]", block, names.cidr(block.strip()))
    if old is not None:
        _check_update(found, spec, part(old, "spec"))
    return found.causes


def _check_ports(found: Problems, spec: Object, *, is_headless: bool) -> None:
    ports = spec.get("ports") or ()
    seen_names: set[str] = set()
    seen: set[tuple[Any, ...]] = set()
    seen_nodes: set[tuple[Any, ...]] = set()
    for here, port in each("spec", spec, "ports"):
        name = port.get("name") or ""
        if not name:
            if len(ports) > 1:
                found.required(f"{here}.name")
        else:
            found.all_invalid(f"{here}.name", name, names.dns_label(name))
            if name in seen_names:
                found.duplicate(f"{here}.name", name)
            seen_names.add(name)
        number = port.get("port") or 0
        found.all_invalid(f"{here}.port", number, names.port_number(number))
        found.one_of(f"{here}.protocol", port.get("protocol"), PROTOCOLS)
        target = port.get("targetPort")
        if target is not None:
            found.port(f"{here}.targetPort", target)
            if is_headless and isinstance(target, int) and target != number:
                found.invalid(
                    f"{here}.targetPort", target, "must be equal to the value of 'port' when clusterIP = None"
                )
        claim = (number, port.get("protocol"))
        if claim in seen:
            found.duplicate(here, {"port": number, "protocol": port.get("protocol")})
        seen.add(claim)
        node_port = port.get("nodePort") or 0
        if node_port:
            if spec.get("type") == "ClusterIP":
                found.forbidden(f"{here}.nodePort", "may not be used when `type` is 'ClusterIP'")
            node_claim = (node_port, port.get("protocol"))
            if node_claim in seen_nodes:
                found.duplicate(f"{here}.nodePort", node_port)
            seen_nodes.add(node_claim)


def _check_affinity(found: Problems, spec: Object) -> None:
    affinity = spec.get("sessionAffinity")
    found.one_of("spec.sessionAffinity", affinity, ("ClientIP", "None"))
    config = spec.get("sessionAffinityConfig")
    if affinity == "ClientIP":
        life_s = part(part(spec, "sessionAffinityConfig"), "clientIP").get("timeoutSeconds")
        if life_s is None:
            found.required("spec.sessionAffinityConfig.clientIP.timeoutSeconds")
        elif not 0 < life_s <= _AFFINITY_MOST_S:
            found.invalid(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                life_s,
                f"must be greater than 0 and less than {_AFFINITY_MOST_S}",
            )
    elif config is not None:
        found.forbidden("spec.sessionAffinityConfig", "must not be set when session affinity is None")


def _check_addresses(found: Problems, spec: Object) -> None:
    first, all_of_them = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    if all_of_them and first and all_of_them[0] != first:
        found.invalid("spec.clusterIPs", all_of_them, "first value must match `clusterIP`")
    if len(all_of_them) > 2:
        found.invalid("spec.clusterIPs", all_of_them, "may only hold up to 2 values")
    for at, text in enumerate(all_of_them or ([first] if first else [])):
        if text != _HEADLESS:
            found.all_invalid(f"spec.clusterIPs[{at}]", text, names.address(text))
    for at, text in enumerate(spec.get("externalIPs") or ()):
        found.all_invalid(f"spec.externalIPs[{at}]", text, names.address(text))


def _check_update(found: Problems, spec: Object, old: Object) -> None:
    had, has = old.get("clusterIP") or "", spec.get("clusterIP") or ""
    if old.get("type") != "ExternalName" and spec.get("type") != "ExternalName" and had and has != had:
        found.invalid("spec.clusterIPs[0]", [has], "may not change once set")


def endpoints(obj: Object, old: Object | None) -> list[Cause]:
    """Check Endpoints."""
    found = Problems()
    for here, subset in each("", obj, "subsets"):
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            found.required(here, "must specify `addresses` or `notReadyAddresses`")
        for name in ("addresses", "notReadyAddresses"):
            for place, one in each(here, subset, name):
                found.all_invalid(f"{place}.ip", one.get("ip") or "", names.address(one.get("ip") or ""))
        _check_endpoint_ports(found, here, subset)
    return found.causes


def endpoint_slice(obj: Object, old: Object | None) -> list[Cause]:
    """Check an EndpointSlice; its type of address never changes."""
    found = Problems()
    kind = obj.get("addressType")
    found.one_of("addressType", kind, _ADDRESS_TYPES)
    listed = obj.get("endpoints") or ()
    if len(listed) > _MOST_ENDPOINTS:
        found.too_many("endpoints", len(listed), _MOST_ENDPOINTS)
    for here, endpoint in each("", obj, "endpoints"):
        addresses = endpoint.get("addresses") or ()
        if not addresses:
            found.required(f"{here}.addresses", "must contain at least 1 address")
        elif len(addresses) > _MOST_ADDRESSES:
            found.too_many(f"{here}.addresses", len(addresses), _MOST_ADDRESSES)
        for at, text in enumerate(addresses):
            rule = names.dns_subdomain if kind == "FQDN" else names.address
            found.all_invalid(f"{here}.addresses[{at}]", text, rule(text))
        if endpoint.get("hostname"):
            found.all_invalid(f"{here}.hostname", endpoint["hostname"], names.dns_label(endpoint["hostname"]))
        if endpoint.get("nodeName"):
            found.all_invalid(f"{here}.nodeName", endpoint["nodeName"], names.dns_subdomain(endpoint["nodeName"]))
    _check_endpoint_ports(found, "", obj)
    if old is not None:
        found.unchanged("addressType", kind, old.get("addressType"))
    return found.causes


def _check_endpoint_ports(found: Problems, path: str, obj: Object) -> None:
    seen: set[str] = set()
    listed = obj.get("ports") or ()
    for here, port in each(path, obj, "ports"):
        name = port.get("name") or ""
        if name:
            found.all_invalid(f"{here}.name", name, names.dns_label(name))
        elif len(listed) > 1 and path:
            found.required(f"{here}.name")
        if name in seen:
            found.duplicate(f"{here}.name", name)
        seen.add(name)
        if port.get("port") is not None:
            found.all_invalid(f"{here}.port", port["port"], names.port_number(port["port"]))
        found.one_of(f"{here}.protocol", port.get("protocol"), PROTOCOLS)
