"""Checks of Ingresses, IngressClasses and NetworkPolicies."""

import ipaddress

from wherry.errors import Cause
from wherry.model import names
from wherry.model.checks.containers import PROTOCOLS
from wherry.model.checks.problems import Object, Problems, each, part

_PATH_TYPES = ("Exact", "Prefix", "ImplementationSpecific")
_WRONG_PARTS = ("//", "/./", "/../", "%2f", "%2F")
_WRONG_ENDS = ("/..", "/.")


def ingress(obj: Object, old: Object | None) -> list[Cause]:
    """Check an Ingress."""
    found = Problems()
    spec = part(obj, "spec")
    if not spec.get("rules") and not isinstance(spec.get("defaultBackend"), dict):
        found.invalid("spec", spec, "either `defaultBackend` or `rules` must be specified")
    if isinstance(spec.get("defaultBackend"), dict):
        _check_backend(found, "spec.defaultBackend", spec["defaultBackend"])
    for here, rule in each("spec", spec, "rules"):
        _check_host(found, f"{here}.host", rule.get("host") or "")
        http = rule.get("http")
        if isinstance(http, dict):
            if not http.get("paths"):
                found.required(f"{here}.http.paths")
            for place, path in each(f"{here}.http", http, "paths"):
                _check_path(found, place, path)
    for here, tls in each("spec", spec, "tls"):
        for at, host in enumerate(tls.get("hosts") or ()):
            _check_host(found, f"{here}.hosts[{at}]", host)
    name = spec.get("ingressClassName")
    if name is not None:
        found.all_invalid("spec.ingressClassName", name, names.dns_subdomain(name))
    return found.causes


def _check_host(found: Problems, path: str, host: str) -> None:
    if not host:
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        rule = names.wildcard_subdomain if "*" in host else names.dns_subdomain
        found.all_invalid(path, host, rule(host))
    else:
        found.invalid(path, host, "must be a DNS name, not an IP address")


def _check_path(found: Problems, path: str, obj: Object) -> None:
    kind, text = obj.get("pathType"), obj.get("path") or ""
    if kind is None:
        found.required(f"{path}.pathType", "pathType must be specified")
    else:
        found.one_of(f"{path}.pathType", kind, _PATH_TYPES)
    if kind in ("Exact", "Prefix") or text:
        if not text.startswith("/"):
            found.invalid(f"{path}.path", text, "must be an absolute path")
        elif kind in ("Exact", "Prefix"):
            for wrong in _WRONG_PARTS:
                if wrong in text:
                    found.invalid(f"{path}.path", text, f"must not contain '{wrong}'")
            for wrong in _WRONG_ENDS:
                if text.endswith(wrong):
                    found.invalid(f"{path}.path", text, f"cannot end with '{wrong}'")
    _check_backend(found, f"{path}.backend", part(obj, "backend"))


def _check_backend(found: Problems, path: str, backend: Object) -> None:
    service, resource = backend.get("service"), backend.get("resource")
    if service is not None and resource is not None:
        found.invalid(path, "", "cannot set both resource and service backends")
    elif isinstance(resource, dict):
        for field in ("kind", "name"):
            if not resource.get(field):
                found.required(f"{path}.resource.{field}")
    elif isinstance(service, dict):
        if not service.get("name"):
            found.required(f"{path}.service.name")
        else:
            found.all_invalid(f"{path}.service.name", service["name"], names.dns_label(service["name"]))
        port = part(service, "port")
        if port.get("name") and port.get("number"):
            found.invalid(path, "", "cannot set both port name & port number")
        elif port.get("name"):
            found.all_invalid(f"{path}.service.port.name", port["name"], names.port_name(port["name"]))
        elif port.get("number"):
            found.all_invalid(f"{path}.service.port.number", port["number"], names.port_number(port["number"]))
        else:
            found.required(path, "port name or number is required")
    else:
        found.required(path, "resource or service backend is required")


def ingress_class(obj: Object, old: Object | None) -> list[Cause]:
    """Check an IngressClass; its controller never changes."""
    found = Problems()
    spec = part(obj, "spec")
    controller = spec.get("controller") or ""
    if not controller:
        found.required("spec.controller")
    elif "/" not in controller:
        found.invalid("spec.controller", controller, 'must be a domain-prefixed path (such as "acme.io/foo")')
    if old is not None:
        found.unchanged("spec.controller", controller, part(old, "spec").get("controller") or "")
    return found.causes


def network_policy(obj: Object, old: Object | None) -> list[Cause]:
    """Check a NetworkPolicy."""
    found = Problems()
    spec = part(obj, "spec")
    found.selector("spec.podSelector", spec.get("podSelector"))
    for rules, peers in (("ingress", "from"), ("egress", "to")):
        for here, rule in each("spec", spec, rules):
            for place, port in each(here, rule, "ports"):
                _check_port(found, place, port)
            for place, peer in each(here, rule, peers):
                _check_peer(found, place, peer)
    for at, kind in enumerate(spec.get("policyTypes") or ()):
        found.one_of(f"spec.policyTypes[{at}]", kind, ("Ingress", "Egress"))
    return found.causes


def _check_port(found: Problems, path: str, port: Object) -> None:
    found.one_of(f"{path}.protocol", port.get("protocol"), PROTOCOLS, required=False)
    first, last = port.get("port"), port.get("endPort")
    if first is not None:
        found.port(f"{path}.port", first)
    if last is not None:
        if first is None:
            found.required(f"{path}.port", "must be specified when `endPort` is specified")
        elif isinstance(first, str):
            found.invalid(f"{path}.endPort", last, "may not be specified when `port` is non-numeric")
        elif last < first:
            found.invalid(f"{path}.endPort", last, "must be greater than or equal to `port`")
        found.all_invalid(f"{path}.endPort", last, names.port_number(last))


def _check_peer(found: Problems, path: str, peer: Object) -> None:
    block = peer.get("ipBlock")
    if not peer:
        found.required(path, "must specify a peer")
    if block is not None and len(peer) > 1:
        found.forbidden(path, "may not specify both ipBlock and another peer")
    found.selector(f"{path}.podSelector", peer.get("podSelector"))
    found.selector(f"{path}.namespaceSelector", peer.get("namespaceSelector"))
    if isinstance(block, dict):
        text = block.get("cidr") or ""
        if not text:
            found.required(f"{path}.ipBlock.cidr")
            return
        wrong = names.cidr(text)
        found.all_invalid(f"{path}.ipBlock.cidr", text, wrong)
        for at, inner in enumerate(block.get("except") or ()):
            inner_wrong = names.cidr(inner)
            found.all_invalid(f"{path}.ipBlock.except[{at}]", inner, inner_wrong)
            if not wrong and not inner_wrong and not _is_inside(inner, text):
                found.invalid(f"{path}.ipBlock.except[{at}]", inner, "must be a strict subset of `cidr`")


def _is_inside(inner: str, outer: str) -> bool:
    one, other = ipaddress.ip_network(inner, strict=False), ipaddress.ip_network(outer, strict=False)
    if isinstance(one, ipaddress.IPv4Network) and isinstance(other, ipaddress.IPv4Network):
        return one != other and one.subnet_of(other)
    if isinstance(one, ipaddress.IPv6Network) and isinstance(other, ipaddress.IPv6Network):
        return one != other and one.subnet_of(other)
    return False
