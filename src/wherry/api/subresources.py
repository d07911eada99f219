"""The parts of objects with a path of their own: scale, binding, eviction, token, finalize."""

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from wherry.api import bodies, deletes, node_rules, objects, strategy
from wherry.api.cache import Item, Meta
from wherry.api.core import Core
from wherry.api.errors import About, invalid, success
from wherry.api.target import Target
from wherry.api.tokens import Bound
from wherry.clock import rfc3339
from wherry.errors import BadRequest, Cause, Conflict, Forbidden, NotFound, TooManyRequests
from wherry.model import kinds
from wherry.model.kinds import EVICTIONS, PODS, SCALES, TOKENREQUESTS, Kind
from wherry.model.selectors import LabelSelector
from wherry.model.users import User
from wherry.wire.http import Request, Response

Json = dict[str, Any]
Part = Callable[[Core, User, Target, Request], Awaitable[Response]]

_TOKEN_S = (600, 2**32)
_DEFAULT_TOKEN_S = 3600


# --- scale --------------------------------------------------------------------------------------------------------------


async def get_scale(core: Core, user: User, target: Target, request: Request) -> Response:
    """How many replicas a workload wants and has, as autoscaling/v1 Scale."""
    del user, request
    await core.cache.present()
    item = core.find(target.kind, target.namespace, target.name)
    if item is None:
        raise target.missing()
    return Response.json(_scale(item.document()))


async def put_scale(core: Core, user: User, target: Target, request: Request) -> Response:
    """Set how many replicas a workload wants."""
    options = bodies.options_of(request)
    body = await bodies.read(request, SCALES, options, limit=core.settings.body_bytes)

    async def change(item: Item) -> Json:
        return _scaled(item.document(), body)

    return await _write_scale(core, user, target, request, change, options)


async def patch_scale(core: Core, user: User, target: Target, request: Request) -> Response:
    """Patch how many replicas a workload wants."""
    options = bodies.options_of(request)
    apply = await objects.read_patch(core, SCALES, request)

    async def change(item: Item) -> Json:
        obj = item.document()
        wanted = apply(_scale(obj))
        bodies.clean(SCALES, wanted, options)
        return _scaled(obj, wanted)

    return await _write_scale(core, user, target, request, change, options)


async def _write_scale(
    core: Core, user: User, target: Target, request: Request, change: objects.Change, options: bodies.WriteOptions
) -> Response:
    note = objects.note(core, user, request.method, target)
    written = await objects.alter(core, user, target, change, options, note)
    return Response.json(_scale(bodies.decode(written.data, bodies.JSON)), 200, options.headers)


def _scaled(obj: Json, scale: Json) -> Json:
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if replicas < 0:
        cause = Cause(
            "spec.replicas", "FieldValueInvalid", f"Invalid value: {replicas}: must be greater than or equal to 0"
        )
        raise invalid("Scale", "autoscaling", str(obj["metadata"].get("name", "")), [cause])
    meta = strategy.metadata(scale)
    obj["metadata"]["resourceVersion"] = meta.get("resourceVersion", "")
    if meta.get("uid"):
        obj["metadata"]["uid"] = meta["uid"]
    obj["spec"] = {**(obj.get("spec") or {}), "replicas": replicas}
    return obj


def _scale(obj: Json) -> Json:
    meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    selector = spec.get("selector")
    by_labels = selector is not None and ("matchLabels" in selector or "matchExpressions" in selector)
    chosen = LabelSelector.of(selector) if by_labels else LabelSelector.equal(selector)
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            key: meta[key]
            for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
            if key in meta
        },
        "spec": {"replicas": spec.get("replicas", 1)},
        "status": {"replicas": status.get("replicas", 0), "selector": str(chosen)},
    }


# --- binding ------------------------------------------------------------------------------------------------------------


async def bind(core: Core, user: User, target: Target, request: Request) -> Response:
    """POST pods/NAME/binding, or bindings: put a pod on a node. Raises Conflict when it is on one already."""
    options = bodies.options_of(request)
    body = await bodies.read(request, kinds.BINDINGS, options, limit=core.settings.body_bytes)
    name = target.name or str(strategy.metadata(body).get("name") or "")
    node = str((body.get("target") or {}).get("name") or "")
    kind = str((body.get("target") or {}).get("kind") or "Node")
    if not node or kind != "Node":
        cause = Cause("target.name", "FieldValueRequired", "Required value: name a Node")
        raise invalid("Binding", "", name, [cause])
    meta = strategy.metadata(body)
    at = core.clock.now()

    async def change(item: Item) -> Json:
        pod = item.document()
        if meta.get("uid") and meta["uid"] != item.meta.uid:
            raise Conflict(f'Operation cannot be fulfilled on pods/binding "{name}": the pod is another one (uid)')
        if item.meta.deletion_timestamp:
            raise Conflict(f'Operation cannot be fulfilled on pods/binding "{name}": pod {name} is being deleted')
        bound = (pod.get("spec") or {}).get("nodeName")
        if bound:
            raise Conflict(
                f'Operation cannot be fulfilled on pods/binding "{name}": pod {name} is already assigned to node "{bound}"'
            )
        pod["spec"]["nodeName"] = node
        pod["metadata"].pop("resourceVersion")
        for field in ("annotations", "labels"):
            if meta.get(field):
                pod["metadata"][field] = {**(pod["metadata"].get(field) or {}), **meta[field]}
        status: Json = pod.setdefault("status", {})
        others = [c for c in status.get("conditions") or () if c.get("type") != "PodScheduled"]
        scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": rfc3339(at)}
        status["conditions"] = [*others, scheduled]
        return pod

    pod_target = Target("update", PODS, target.namespace, name, "binding")
    note = objects.note(core, user, request.method, pod_target)
    await objects.alter(core, user, pod_target, change, options, note)
    return Response.json(success(About()) | {"code": 201}, 201, options.headers)


# --- eviction -----------------------------------------------------------------------------------------------------------


class _Condition(msgspec.Struct, frozen=True):
    type: str = ""
    status: str = ""


class _PodStatus(msgspec.Struct, frozen=True):
    phase: str = ""
    conditions: tuple[_Condition, ...] | None = None


class _Pod(msgspec.Struct, frozen=True):
    metadata: Meta
    status: _PodStatus = _PodStatus()

    @property
    def is_ready(self) -> bool:
        """Whether it counts as healthy for a budget."""
        ready = any(c.type == "Ready" and c.status == "True" for c in self.status.conditions or ())
        return ready and not self.metadata.deletion_timestamp


class _BudgetSpec(msgspec.Struct, frozen=True, rename="camel"):
    min_available: int | str | None = None
    max_unavailable: int | str | None = None
    selector: dict[str, Any] | None = None


class _Budget(msgspec.Struct, frozen=True):
    metadata: Meta
    spec: _BudgetSpec = _BudgetSpec()


class _ReplicasSpec(msgspec.Struct, frozen=True):
    replicas: int = 1


class _Replicas(msgspec.Struct, frozen=True):
    spec: _ReplicasSpec = _ReplicasSpec()


async def evict(core: Core, user: User, target: Target, request: Request) -> Response:
    """POST pods/NAME/eviction: delete a pod if its disruption budget allows. Raises TooManyRequests when it does not."""
    options = bodies.options_of(request)
    body = await bodies.read(request, EVICTIONS, options, limit=core.settings.body_bytes)
    given = body.get("deleteOptions") or {}
    how = replace(deletes.delete_options(given), dry_run=options.dry_run or bool(given.get("dryRun")))
    # Alone, so that two evictions do not both take the last disruption allowed.
    async with core.allocating:
        await core.cache.present()
        item = core.find(PODS, target.namespace, target.name)
        if item is None:
            raise target.missing()
        pod = item.view(_Pod)
        if pod.status.phase not in ("Succeeded", "Failed", "Pending") and not pod.metadata.deletion_timestamp:
            _must_allow(core, item)
        note = objects.note(core, user, request.method, target)
        await deletes.remove(core, user, Target("delete", PODS, target.namespace, target.name), how, note)
    return Response.json(success(About()) | {"code": 201}, 201, options.headers)


def _must_allow(core: Core, item: Item) -> None:
    budgets = [
        one
        for one in core.shelf(kinds.PODDISRUPTIONBUDGETS).all(kinds.PODDISRUPTIONBUDGETS.prefix(item.meta.namespace))
        if LabelSelector.of(one.view(_Budget).spec.selector).matches(item.labels)
    ]
    if len(budgets) > 1:
        raise Forbidden(
            f'pod "{item.meta.name}" has more than one PodDisruptionBudget, which eviction does not support'
        )
    if not budgets or not item.view(_Pod).is_ready:
        return  # a pod that is not healthy protects nobody
    budget = budgets[0].view(_Budget)
    chosen = LabelSelector.of(budget.spec.selector)
    pods = [p for p in core.shelf(PODS).all(PODS.prefix(item.meta.namespace)) if chosen.matches(p.labels)]
    healthy = sum(1 for p in pods if p.view(_Pod).is_ready)
    needed = _needed(budget.spec, _expected(core, pods))
    if healthy - 1 < needed:
        raise TooManyRequests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            retry_after_s=10,
            causes=[
                Cause(
                    "",
                    "DisruptionBudget",
                    f"The disruption budget {budget.metadata.name} needs {needed} healthy pods and has {healthy} currently",
                )
            ],
        )


def _expected(core: Core, pods: list[Item]) -> int:
    """How many pods there should be: the replicas of the workloads behind them; a pod without any counts for itself."""
    workloads: dict[str, Kind] = {
        "ReplicaSet": kinds.REPLICASETS,
        "StatefulSet": kinds.STATEFULSETS,
        "ReplicationController": kinds.REPLICATIONCONTROLLERS,
    }
    owners: dict[str, int] = {}
    single = 0
    for pod in pods:
        owner = next((one for one in pod.meta.owner_references or () if one.controller), None)
        kind = workloads.get(owner.kind) if owner is not None else None
        found = core.find(kind, pod.meta.namespace, owner.name) if kind is not None and owner is not None else None
        if owner is None or found is None:
            single += 1
        else:
            owners[owner.uid] = found.view(_Replicas).spec.replicas
    return single + sum(owners.values())


def _needed(spec: _BudgetSpec, expected: int) -> int:
    if spec.max_unavailable is not None:
        return max(0, expected - _share(spec.max_unavailable, expected))
    return _share(spec.min_available if spec.min_available is not None else 1, expected)


def _share(amount: int | str, whole: int) -> int:
    """A number, or a percentage rounded up."""
    return amount if isinstance(amount, int) else math.ceil(int(amount.rstrip("%")) * whole / 100)


# --- tokens -------------------------------------------------------------------------------------------------------------


async def token(core: Core, user: User, target: Target, request: Request) -> Response:
    """POST serviceaccounts/NAME/token: a token for the account, bound to what the request names."""
    options = bodies.options_of(request)
    body = await bodies.read(request, TOKENREQUESTS, options, limit=core.settings.body_bytes)
    await core.cache.present()
    item = core.find(target.kind, target.namespace, target.name)
    if item is None:
        raise target.missing()
    spec: Json = body.setdefault("spec", {})
    seconds = int(spec.get("expirationSeconds") or _DEFAULT_TOKEN_S)
    low, high = _TOKEN_S
    if not low <= seconds <= high:
        bound_text = "less than 10 minutes" if seconds < low else "larger than 2^32 seconds"
        message = f"may not specify a duration {bound_text}"
        cause = Cause("spec.expirationSeconds", "FieldValueInvalid", f"Invalid value: {seconds}: {message}")
        raise invalid("TokenRequest", "authentication.k8s.io", target.name, [cause])
    bound, node = _bound(core, user, target, spec)
    audiences = spec.get("audiences") or list(core.settings.api_audiences)
    text, expires = core.tokens.make(
        target.namespace, target.name, item.meta.uid, audiences=audiences, seconds=seconds, bound=bound, node=node
    )
    spec |= {"audiences": audiences, "expirationSeconds": seconds}
    spec.setdefault("boundObjectRef", None)
    body["metadata"] = {
        "name": target.name,
        "namespace": target.namespace,
        "creationTimestamp": rfc3339(core.clock.now()),
    }
    body["status"] = {"token": text, "expirationTimestamp": rfc3339(expires)}
    return Response.json(body, 201, options.headers)


def _bound(core: Core, user: User, target: Target, spec: Json) -> tuple[Bound | None, tuple[str, str] | None]:
    """The object that a token is bound to, and the node that a bound pod is on. Raises NotFound, Conflict, Forbidden."""
    reference: Json | None = spec.get("boundObjectRef")
    node = node_rules.node_of(user)
    if not reference:
        if node:
            raise Forbidden(f"node {node!r} may only request tokens that are bound to a pod: set spec.boundObjectRef")
        return None, None
    known = {"Pod": PODS, "Secret": kinds.SECRETS, "Node": kinds.NODES}
    kind = known.get(str(reference.get("kind", "")))
    if kind is None:
        raise BadRequest(f"cannot bind token to object of type {reference.get('kind')!r}: write Pod, Secret or Node")
    name = str(reference.get("name", ""))
    item = core.find(kind, target.namespace if kind.namespaced else "", name)
    if item is None:
        raise NotFound(f'{kind.qualified} "{name}" not found')
    uid = str(reference.get("uid") or item.meta.uid)
    if uid != item.meta.uid:
        raise Conflict(
            f'Operation cannot be fulfilled on {kind.qualified} "{name}": the UID in the bound object reference ({uid}) '
            f"does not match the UID in record. The object might have been deleted and then recreated"
        )
    place: tuple[str, str] | None = None
    if kind == PODS:
        view = item.view(node_rules.NodePod).spec
        if view.service_account_name != target.name:
            raise BadRequest(
                f"cannot bind token for serviceaccount {target.name!r} to pod running with different serviceaccount name."
            )
        if node and view.node_name != node:
            raise Forbidden(f"node {node!r} may not request tokens for a pod that is not on it")
        host = core.find(kinds.NODES, "", view.node_name) if view.node_name else None
        place = (view.node_name, host.meta.uid) if host is not None else None
    elif node:
        raise Forbidden(f"node {node!r} may only request tokens that are bound to a pod")
    return Bound(str(reference["kind"]), name, uid), place


# --- namespaces ---------------------------------------------------------------------------------------------------------


async def finalize(core: Core, user: User, target: Target, request: Request) -> Response:
    """PUT namespaces/NAME/finalize: set spec.finalizers; a terminating namespace without any is removed."""
    options = bodies.options_of(request)
    body = await bodies.read(request, target.kind, options, limit=core.settings.body_bytes)
    wanted = (body.get("spec") or {}).get("finalizers") or []
    meta = strategy.metadata(body)

    async def change(item: Item) -> Json:
        obj = item.document()
        obj["metadata"]["resourceVersion"] = meta.get("resourceVersion", "")
        obj["spec"] = {"finalizers": wanted} if wanted else {}
        return obj

    note = objects.note(core, user, request.method, target)
    written = await objects.alter(core, user, target, change, options, note)
    return Response.json(written.data, 200, options.headers)


PARTS: Mapping[tuple[str, str], Part] = {
    # (sub-resource, verb); status and other plain parts go the way of the object itself
    ("scale", "get"): get_scale,
    ("scale", "update"): put_scale,
    ("scale", "patch"): patch_scale,
    ("binding", "create"): bind,
    ("eviction", "create"): evict,
    ("token", "create"): token,
    ("finalize", "update"): finalize,
}
