"""EndpointSlices: for each service with a selector, the addresses and ports of the pods behind it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from wherry.client.objects import Key
from wherry.client.protocol import Json
from wherry.controllers.cluster import Cluster, Controller, Watch, by_namespace, itself, together
from wherry.controllers.objects import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Node,
    Pod,
    Service,
    ServicePort,
    TargetRef,
)
from wherry.model.kinds import ENDPOINTSLICES, NODES, PODS, SERVICES
from wherry.model.selectors import LabelSelector

SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
HEADLESS = "service.kubernetes.io/headless"
ZONE = "topology.kubernetes.io/zone"

FULL = 100
"""Endpoints in one slice at most: a change of one pod is sent to every node with the whole slice."""

Ports = tuple[EndpointPort, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Slices as they should be: all endpoints of one family that have the same ports."""

    family: str
    ports: Ports
    endpoints: Sequence[Endpoint]


@dataclass(slots=True)
class Change:
    """What to do to a service's slices."""

    create: list[Wanted] = field(default_factory=list[Wanted])
    update: list[tuple[EndpointSlice, Wanted]] = field(default_factory=list[tuple[EndpointSlice, Wanted]])
    delete: list[EndpointSlice] = field(default_factory=list[EndpointSlice])


def wanted(service: Service, pods: Sequence[Pod], zones: Mapping[str, str]) -> Sequence[Wanted]:
    """Say which endpoints a service has. Pods that are ending stay in, marked so; finished ones do not.

    `zones` names the zone of each node. A named port that a pod's containers do not have is left out for that pod.
    """
    groups: dict[tuple[str, Ports], list[Endpoint]] = {}
    for family in service.spec.ip_families or ["IPv4"]:
        for pod in sorted(pods, key=lambda pod: pod.metadata.name):
            address = _address(pod, family)
            if address and not pod.is_finished:
                ports = _ports(service, pod)
                groups.setdefault((family, ports), []).append(_endpoint(service, pod, address, zones))
    return [Wanted(family, ports, endpoints) for (family, ports), endpoints in groups.items()]


def plan(want: Sequence[Wanted], have: Sequence[EndpointSlice]) -> Change:
    """Change as few slices as can be: each endpoint stays where it is, new ones fill slices that change anyway.

    A service without endpoints keeps one empty slice, so that readers can tell "none" from "not known yet".
    """
    change = Change()
    left: dict[tuple[str, Ports], list[EndpointSlice]] = {}
    for one in have:
        left.setdefault((one.address_type, tuple(one.ports or ())), []).append(one)
    for group in want:
        _plan_group(group, left.pop((group.family, group.ports), []), change)
    change.delete.extend(one for rest in left.values() for one in rest)
    if not change.create and len(change.delete) == len(have):
        if change.delete:
            spare = change.delete.pop()
            if spare.endpoints:
                change.update.append((spare, Wanted(spare.address_type, tuple(spare.ports or ()), ())))
        else:
            change.create.append(Wanted("IPv4", (), ()))
    return change


async def reconcile(key: Key, cluster: Cluster) -> None:
    """Bring one service's slices up to date. Services without a selector keep what others write for them."""
    service = cluster.get(SERVICES, Service, key)
    if service is None or service.metadata.is_deleting or not service.spec.selector:
        return  # slices of a service that is gone go through their owner references
    if service.spec.type == "ExternalName":
        return
    selector = LabelSelector.equal(service.spec.selector)
    pods = [
        pod for pod in cluster.view(PODS, Pod).by_index("namespace", key[0]) if selector.matches(pod.metadata.labels)
    ]
    nodes = cluster.view(NODES, Node)
    zones = {node.metadata.name: node.metadata.labels.get(ZONE, "") for node in nodes.list()}
    have = cluster.view(ENDPOINTSLICES, EndpointSlice).by_index("service", "/".join(key))
    have = sorted((one for one in have if not one.metadata.is_deleting), key=lambda one: one.metadata.name)
    change = plan(wanted(service, pods, zones), have)
    labels = _labels(service)
    touched = {one.metadata.name for one, _ in change.update} | {one.metadata.name for one in change.delete}
    relabel = [
        (one, Wanted(one.address_type, tuple(one.ports or ()), one.endpoints or ()))
        for one in have
        if one.metadata.name not in touched and one.metadata.labels != labels
    ]
    # New addresses first: a reader never sees none while there are some.
    await together(_create(cluster, service, labels, one) for one in change.create)
    await together(_update(cluster, labels, one, now) for one, now in (*change.update, *relabel))
    await together(cluster.delete(ENDPOINTSLICES, one.metadata) for one in change.delete)


def _plan_group(group: Wanted, slices: Sequence[EndpointSlice], change: Change) -> None:
    missing = {_identity(endpoint): endpoint for endpoint in group.endpoints}
    kept: list[tuple[EndpointSlice, list[Endpoint]]] = []
    for one in slices:
        stay = [missing.pop(_identity(old)) for old in one.endpoints or () if _identity(old) in missing]
        kept.append((one, stay))
    new = list(missing.values())
    changing = [(one, stay) for one, stay in kept if stay != list(one.endpoints or ())]
    quiet = [(one, stay) for one, stay in kept if stay == list(one.endpoints or ())]
    for _, stay in (*changing, *sorted(quiet, key=lambda pair: -len(pair[1]))):
        room = FULL - len(stay)
        stay.extend(new[:room])
        del new[:room]
    for one, stay in kept:
        if not stay:
            change.delete.append(one)
        elif stay != list(one.endpoints or ()):
            change.update.append((one, Wanted(group.family, group.ports, stay)))
    for start in range(0, len(new), FULL):
        change.create.append(Wanted(group.family, group.ports, new[start : start + FULL]))


def _identity(endpoint: Endpoint) -> tuple[str, str]:
    target = endpoint.target_ref
    return (target.uid if target is not None else "", endpoint.addresses[0])


def _address(pod: Pod, family: str) -> str:
    addresses = [one.ip for one in pod.status.pod_ips] or ([pod.status.pod_ip] if pod.status.pod_ip else [])
    return next((address for address in addresses if (":" in address) == (family == "IPv6")), "")


def _ports(service: Service, pod: Pod) -> Ports:
    found: list[EndpointPort] = []
    for port in service.spec.ports:
        number = _target(port, pod)
        if number is not None:
            found.append(EndpointPort(port.name, port.protocol, number, port.app_protocol))
    return tuple(found)


def _target(port: ServicePort, pod: Pod) -> int | None:
    """The number that a service's port has on a pod."""
    target = port.target_port
    if target is None or target in (0, ""):
        return port.port
    if isinstance(target, int):
        return target
    for container in pod.spec.containers:
        for one in container.ports:
            if one.name == target and one.protocol == port.protocol:
                return one.container_port
    return int(target) if target.isdigit() else None


def _endpoint(service: Service, pod: Pod, address: str, zones: Mapping[str, str]) -> Endpoint:
    ready = pod.is_ready and not pod.is_deleting
    named = bool(pod.spec.hostname) and pod.spec.subdomain == service.metadata.name
    return Endpoint(
        addresses=[address],
        conditions=EndpointConditions(
            ready=ready or service.spec.publish_not_ready_addresses,
            serving=pod.is_ready,
            terminating=pod.is_deleting,
        ),
        hostname=pod.spec.hostname if named else None,
        node_name=pod.spec.node_name or None,
        zone=zones.get(pod.spec.node_name) or None,
        target_ref=TargetRef("Pod", pod.metadata.namespace, pod.metadata.name, pod.metadata.uid),
    )


def _labels(service: Service) -> dict[str, str]:
    labels = dict(service.metadata.labels)
    labels.pop(HEADLESS, None)
    if service.spec.cluster_ip == "None":
        labels[HEADLESS] = ""
    return labels | {SERVICE_NAME: service.metadata.name, MANAGED_BY: MANAGER}


def _content(labels: Mapping[str, str], one: Wanted) -> Json:
    return {
        "metadata": {"labels": dict(labels)},
        "endpoints": msgspec.to_builtins(list(one.endpoints)),
        "ports": [
            {"name": port.name, "protocol": port.protocol, "port": port.port}
            | ({"appProtocol": port.app_protocol} if port.app_protocol else {})
            for port in one.ports
        ],
    }


async def _create(cluster: Cluster, service: Service, labels: Mapping[str, str], one: Wanted) -> None:
    body: Json = {
        "apiVersion": ENDPOINTSLICES.api_version,
        "kind": ENDPOINTSLICES.kind,
        "addressType": one.family,
        **_content(labels, one),
    }
    body["metadata"] |= {
        "generateName": f"{service.metadata.name}-",
        "namespace": service.metadata.namespace,
        "ownerReferences": [
            {
                "apiVersion": SERVICES.api_version,
                "kind": SERVICES.kind,
                "name": service.metadata.name,
                "uid": service.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    await cluster.create(ENDPOINTSLICES, body, service.metadata.namespace)


async def _update(cluster: Cluster, labels: Mapping[str, str], slice: EndpointSlice, now: Wanted) -> None:
    patch = _content(labels, now)
    gone = {name: None for name in slice.metadata.labels if name not in labels}
    patch["metadata"]["labels"] |= gone
    await cluster.patch(ENDPOINTSLICES, slice.metadata, patch, guarded=True)


def _by_service(one: EndpointSlice) -> Iterable[str]:
    """Index: the service whose slice it is, if we manage it."""
    labels = one.metadata.labels
    if labels.get(MANAGED_BY) == MANAGER and labels.get(SERVICE_NAME):
        yield f"{one.metadata.namespace}/{labels[SERVICE_NAME]}"


def _wakes_of_slice(cluster: Cluster, before: EndpointSlice | None, now: EndpointSlice | None) -> Iterable[Key]:
    for one in (before, now):
        for key in _by_service(one) if one is not None else ():
            namespace, _, name = key.partition("/")
            yield namespace, name


def _wakes_of_pod(cluster: Cluster, before: Pod | None, now: Pod | None) -> Iterable[Key]:
    """The services that select the pod, or did."""
    for pod in (before, now):
        if pod is None:
            continue
        for service in cluster.view(SERVICES, Service).by_index("namespace", pod.metadata.namespace):
            selector = service.spec.selector
            if selector and selector.items() <= pod.metadata.labels.items():
                yield service.key


CONTROLLER = Controller(
    "endpointslice-controller",
    (
        Watch(SERVICES, Service, itself, {"namespace": by_namespace}),
        Watch(PODS, Pod, _wakes_of_pod, {"namespace": by_namespace}),
        Watch(ENDPOINTSLICES, EndpointSlice, _wakes_of_slice, {"service": _by_service}),
        Watch(NODES, Node),
    ),
    reconcile,
    workers=5,
)
