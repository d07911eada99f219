"""What every cluster has from its first moment: namespaces, roles, priority classes, and the way to the API itself.

Run at every start: what is missing is made, what is there stays as people changed it, but for our own roles, which
follow this version of wherry unless their `autoupdate` annotation is "false".
"""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from wherry.api import roles, strategy
from wherry.api.admission.services import first_address
from wherry.api.core import Core
from wherry.errors import Conflict
from wherry.model import admit, kinds
from wherry.model.kinds import Kind, by_kind
from wherry.store.protocol import Note, Write

Json = dict[str, Any]

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_AUTOUPDATE = "rbac.authorization.kubernetes.io/autoupdate"
_ATTEMPTS = 10
_SLICE_LABELS = {"kubernetes.io/service-name": "kubernetes", "endpointslice.kubernetes.io/managed-by": "wherry-api"}


async def bootstrap(core: Core) -> None:
    """Make what is missing, in one transaction. Several servers may do it at once."""
    for attempt in range(_ATTEMPTS):
        await core.cache.present()
        writes = [*_missing(core), *_advertised(core, core.settings.advertise)]
        if not writes:
            return
        try:
            await core.write_all(writes, note=_note(core))
            return
        except Conflict:  # another server was faster: look again
            if attempt == _ATTEMPTS - 1:
                raise


async def advertise(core: Core, addresses: Sequence[tuple[str, int]]) -> None:
    """Point the Service `kubernetes` at the addresses of this API."""
    for attempt in range(_ATTEMPTS):
        await core.cache.present()
        writes = list(_advertised(core, addresses))
        if not writes:
            return
        try:
            await core.write_all(writes, note=_note(core))
            return
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise


def _note(core: Core) -> Note:
    return Note(core.clock.now(), "system:apiserver", "bootstrap")


def _missing(core: Core) -> Iterator[Write]:
    for obj in _objects(core):
        kind = by_kind(obj["apiVersion"], obj["kind"])
        assert kind is not None, obj["kind"]
        meta: Json = obj["metadata"]
        item = core.find(kind, meta.get("namespace", ""), meta["name"])
        key = kind.key(meta.get("namespace", ""), meta["name"])
        if item is None:
            yield Write(key, _made(core, kind, obj), 0)
        elif kind == kinds.CLUSTERROLES and (item.meta.annotations or {}).get(_AUTOUPDATE) != "false":
            old = item.document()
            if old.get("rules") != obj["rules"]:
                old["metadata"].pop("resourceVersion", None)
                yield Write(key, strategy.encode({**old, "rules": obj["rules"]}), item.version)


def _objects(core: Core) -> Iterator[Json]:
    for name in NAMESPACES:
        labels = {"kubernetes.io/metadata.name": name}
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    yield from roles.objects()
    for name, value in (("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)):
        yield {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": "For what the cluster itself needs; its pods go last.",
        }
    address = first_address(core.settings.service_cidr)
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "type": "ClusterIP",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": _target_port(core)}],
        },
    }


def _target_port(core: Core) -> int:
    return core.settings.advertise[0][1] if core.settings.advertise else 6443


def _advertised(core: Core, addresses: Sequence[tuple[str, int]]) -> Iterator[Write]:
    """The writes that make the EndpointSlice `kubernetes` say these addresses; none when it does already."""
    if not addresses:
        return
    kind = kinds.ENDPOINTSLICES
    hosts = sorted({host for host, _ in addresses})
    wanted: Json = {
        "addressType": "IPv6" if ipaddress.ip_address(hosts[0]).version == 6 else "IPv4",
        "endpoints": [
            {"addresses": [host], "conditions": {"ready": True, "serving": True, "terminating": False}}
            for host in hosts
        ],
        "ports": [{"name": "https", "port": addresses[0][1], "protocol": "TCP"}],
    }
    item = core.find(kind, "default", "kubernetes")
    if item is None:
        meta = {"name": "kubernetes", "namespace": "default", "labels": dict(_SLICE_LABELS)}
        obj: Json = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, **wanted}
        yield Write(kind.key("default", "kubernetes"), _made(core, kind, obj), 0)
        return
    old = item.document()
    if any(old.get(field) != value for field, value in wanted.items()):
        old["metadata"].pop("resourceVersion", None)
        yield Write(item.key, strategy.encode({**old, **wanted}), item.version)


def _made(core: Core, kind: Kind, obj: Json) -> bytes:
    obj = orjson.loads(orjson.dumps(obj))  # our tables stay as they are
    admit.prune(kind, obj)
    strategy.begin(kind, obj, core.clock.now())
    admit.default(kind, obj)
    return strategy.encode(obj)
