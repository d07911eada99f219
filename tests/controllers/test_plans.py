"""Plans, pure: by tables where people wrote them down, by properties where they must hold whatever happens."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.client.objects import Meta, OwnerReference
from wherry.client.taints import Taint, Toleration
from wherry.controllers import endpointslice, eviction, garbage, nodelife, progress, replicaset, rollout
from wherry.controllers.garbage import Owner, Verdict
from wherry.controllers.objects import (
    Deployment,
    DeploymentStatus,
    EndpointSlice,
    Node,
    Pod,
    ReplicaSet,
    Service,
)

Json = dict[str, Any]

# ReplicaSets -----------------------------------------------------------------------------------------------------------


def pod(
    name: str = "p", *, node: str = "n", phase: str = "Running", ready: str | None = "2026-01-01T00:00:00Z", **meta: Any
) -> Pod:
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": ready}] if ready else []
    body = {
        "metadata": {"name": name, "namespace": "d", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", **meta},
        "spec": {"nodeName": node},
        "status": {"phase": phase, "conditions": conditions},
    }
    return msgspec.convert(body, Pod)


@pytest.mark.parametrize(
    ("wanted", "pods", "missing", "surplus"),
    [
        (3, [], 3, []),
        (2, [pod("a"), pod("b")], 0, []),
        (2, [pod("a"), pod("b", phase="Failed"), pod("c", deletionTimestamp="2026-01-01T00:00:00Z")], 1, []),
        (1, [pod("a", node="x"), pod("b", node="", phase="Pending", ready=None)], 0, ["b"]),  # no node yet
        (1, [pod("a", node="x", phase="Pending", ready=None), pod("b", node="y")], 0, ["a"]),  # not running
        (1, [pod("a", node="x"), pod("b", node="y", ready=None)], 0, ["b"]),  # not ready
        (1, [pod("a", annotations={replicaset.DELETION_COST: "5"}), pod("b")], 0, ["b"]),  # cheaper
        (2, [pod("a", node="x"), pod("b", node="y"), pod("c", node="y", ready="2026-01-02T00:00:00Z")], 0, ["c"]),
        (1, [pod("a", node="x", ready="2026-01-03T00:00:00Z"), pod("b", node="y")], 0, ["a"]),  # ready for less long
        (1, [pod("a", node="x", creationTimestamp="2026-01-02T00:00:00Z"), pod("b", node="y")], 0, ["a"]),  # younger
        (0, [pod("a", annotations={replicaset.DELETION_COST: "words"})], 0, ["a"]),
    ],
)
def test_missing_and_surplus_pods(wanted: int, pods: list[Pod], missing: int, surplus: list[str]) -> None:
    change = replicaset.plan(wanted, pods)
    assert change.missing == missing
    assert [one.metadata.name for one in change.surplus] == surplus


@given(
    st.integers(0, 8),
    st.lists(st.tuples(st.sampled_from(["", "x", "y"]), st.booleans(), st.booleans(), st.booleans()), max_size=12),
)
def test_a_plan_brings_the_number_and_spares_ready_pods(wanted: int, specs: list[Any]) -> None:
    pods = [
        pod(
            f"p{i}",
            node=node,
            phase="Failed" if failed else "Running" if node else "Pending",
            ready="2026-01-01T00:00:00Z" if ready and node else None,
            **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if going else {}),
        )
        for i, (node, ready, failed, going) in enumerate(specs)
    ]
    change = replicaset.plan(wanted, pods)
    live = [one for one in pods if one.is_active]
    assert len(live) + change.missing - len(change.surplus) == wanted
    assert not (change.missing and change.surplus)
    gone = {one.metadata.name for one in change.surplus}
    if any(one.is_ready for one in change.surplus):
        assert all(one.is_ready for one in live if one.metadata.name not in gone)


# Rollouts --------------------------------------------------------------------------------------------------------------


def deployed(replicas: int, surge: int | str = "25%", unavailable: int | str = "25%", **spec: Any) -> Deployment:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    body = {"metadata": {"name": "web", "uid": "u"}, "spec": {"replicas": replicas, "strategy": strategy, **spec}}
    return msgspec.json.decode(msgspec.json.encode(body), type=Deployment)


def replica_set(name: str, size: int, available: int | None = None, *, age: int = 0, **annotations: str) -> ReplicaSet:
    available = size if available is None else available
    created = f"2026-01-01T00:{age:02}:00Z"
    keys = {"desired": rollout.DESIRED, "maximum": rollout.MAXIMUM, "revision": rollout.REVISION}
    body = {
        "metadata": {
            "name": name,
            "creationTimestamp": created,
            "generation": 1,
            "annotations": {keys[key]: value for key, value in annotations.items()},
        },
        "spec": {"replicas": size},
        "status": {
            "replicas": size,
            "availableReplicas": available,
            "readyReplicas": available,
            "observedGeneration": 1,
        },
    }
    return msgspec.convert(body, ReplicaSet)


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (10, "25%", "25%", (3, 2)),
        (1, "25%", "25%", (1, 0)),
        (4, 2, 1, (2, 1)),
        (3, 0, 0, (0, 1)),
        (3, "0%", "10%", (0, 1)),
        (2, 1, 5, (1, 2)),
        (0, "25%", "25%", (0, 0)),
    ],
)
def test_bounds(replicas: int, surge: int | str, unavailable: int | str, expected: tuple[int, int]) -> None:
    found = rollout.bounds(deployed(replicas, surge, unavailable))
    assert (found.surge, found.unavailable) == expected


def sizes(scales: Sequence[rollout.Scale]) -> dict[str, int]:
    return {scale.replica_set.metadata.name: scale.replicas for scale in scales}


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        (replica_set("new", 0), [replica_set("old", 10)], {"new": 3}),  # room for the surge
        (replica_set("new", 3, 0), [replica_set("old", 10)], {"old": 8}),  # two may be away
        (replica_set("new", 3, 0), [replica_set("old", 8)], {"new": 5}),
        (replica_set("new", 5, 0), [replica_set("old", 8)], {}),  # wait
        (replica_set("new", 5, 5), [replica_set("old", 8)], {"old": 3}),
        (replica_set("new", 10, 10), [replica_set("old", 3)], {"old": 0}),
        (replica_set("new", 5, 0), [replica_set("old", 8, 4)], {}),
        (replica_set("new", 3, 0), [replica_set("old", 10, 4)], {"old": 8}),  # of its pods, those that serve nobody
        (replica_set("new", 12, 12), [], {"new": 10}),
        (replica_set("new", 3, 3), [replica_set("a", 5, age=1), replica_set("b", 5, age=2)], {"a": 0}),
        # a status that lags behind a scaling is not believed
        (replica_set("new", 4, 4), [replica_set("old", 7, 10)], {"new": 6}),
        (replica_set("new", 6, 4), [replica_set("old", 7, 10)], {"old": 4}),
    ],
)
def test_steps_of_a_rollout_of_ten(new: ReplicaSet, old: list[ReplicaSet], expected: dict[str, int]) -> None:
    assert sizes(rollout.roll(deployed(10), new, old)) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 5),
    st.integers(0, 5),
    st.lists(st.integers(0, 12), max_size=3),
    st.lists(st.integers(0, 100), min_size=1, max_size=200),
)
def test_a_rollout_keeps_its_bounds_and_ends(
    wanted: int, surge: int, unavailable: int, olds: list[int], luck: list[int]
) -> None:
    """Play pods that become available in any order: never too many, never too few on our account, and it ends."""
    deployment = deployed(wanted, surge, unavailable)
    limits = rollout.bounds(deployment)
    budget = wanted + limits.surge
    before: list[int] = []
    for size in olds:
        before.append(min(size, budget - sum(before)))
    spec = {"new": 0, **{f"old{i}": size for i, size in enumerate(before)}}
    available = dict(spec)
    start = sum(available.values())

    def view(name: str) -> ReplicaSet:
        return replica_set(name, spec[name], available[name], age=list(spec).index(name))

    for step in range(400):
        scales = rollout.roll(deployment, view("new"), [view(name) for name in spec if name != "new"])
        for name, size in sizes(scales).items():
            assert size >= 0
            assert name == "new" or size <= spec[name]
            spec[name] = size
            available[name] = min(available[name], size)
        assert sum(spec.values()) <= budget
        assert sum(available.values()) >= min(start, wanted - limits.unavailable)
        if available["new"] < spec["new"] and luck[step % len(luck)] < 70:
            available["new"] += 1
        elif not scales and spec["new"] == available["new"]:
            break
        elif step > 250 and available["new"] < spec["new"]:
            available["new"] += 1
        start = (
            min(start, wanted - limits.unavailable) if start >= wanted - limits.unavailable else sum(available.values())
        )
    assert spec == {"new": wanted, **{name: 0 for name in spec if name != "new"}}


def test_rescaling_is_in_proportion() -> None:
    at = {"desired": "10", "maximum": "13"}
    new, old = replica_set("new", 5, age=2, **at), replica_set("old", 8, age=1, **at)
    grown = sizes(rollout.rescale(deployed(20), new, [old]))
    assert grown == {"new": 10, "old": 15}  # 25 in all, as 5 to 8
    shrunk = sizes(rollout.rescale(deployed(5), new, [old]))
    assert sum(shrunk.values()) == 7
    assert shrunk["old"] > shrunk["new"]
    assert sizes(rollout.rescale(deployed(0), new, [old])) == {"new": 0, "old": 0}


def test_rescaling_with_one_active_replica_set_is_all_its_own() -> None:
    only = replica_set("new", 3, desired="3", maximum="4")
    assert sizes(rollout.rescale(deployed(7), only, [replica_set("old", 0)])) == {"new": 7}
    assert sizes(rollout.rescale(deployed(7), None, [only])) == {"new": 7}
    assert rollout.rescale(deployed(3), only, []) == []
    assert rollout.is_resized(deployed(7), [only])
    assert not rollout.is_resized(deployed(3), [only, replica_set("old", 0, desired="9")])


@given(st.integers(0, 40), st.lists(st.integers(0, 20), min_size=2, max_size=5), st.integers(1, 20), st.integers(0, 5))
def test_rescaling_comes_out_even(wanted: int, have: list[int], before: int, surge: int) -> None:
    """In the middle of a rollout the new sizes add up to what is wanted with its surge, and none is negative."""
    at = {"desired": str(before), "maximum": str(before + surge)}
    every = [replica_set(f"r{i}", size, size, age=i, **at) for i, size in enumerate(have)]
    active = [one for one in every if one.spec.replicas > 0]
    new, old = every[-1], every[:-1]
    deployment = deployed(wanted, surge, 1)
    after = {one.metadata.name: one.spec.replicas for one in every} | sizes(rollout.rescale(deployment, new, old))
    assert all(size >= 0 for size in after.values())
    if len(active) > 1 and not (new.spec.replicas == wanted == before):
        assert sum(after.values()) == (wanted + surge if wanted else 0)


def test_history_beyond_the_limit() -> None:
    old = [replica_set(f"r{i}", 0, revision=str(i)) for i in (3, 1, 2)]
    busy = replica_set("r0", 1, revision="0")
    found = rollout.surplus_history(deployed(3, revisionHistoryLimit=1), [*old, busy])
    assert [one.metadata.name for one in found] == ["r1", "r2", "r3"]
    assert rollout.surplus_history(deployed(3, revisionHistoryLimit=3), old) == []
    assert list(rollout.surplus_history(deployed(3), old)) == []


def test_a_templates_hash_tells_templates_apart() -> None:
    one = {"spec": {"containers": [{"name": "a", "image": "x:1"}]}}
    other = {"spec": {"containers": [{"image": "x:1", "name": "a"}]}}
    assert rollout.template_hash(one, 0) == rollout.template_hash(other, 0)
    assert rollout.template_hash(one, 1) != rollout.template_hash(one, 0)
    assert rollout.template_hash({"spec": {}}, 0) != rollout.template_hash(one, 0)
    assert len(rollout.template_hash(one, 0)) == 10


def with_template(container: Json, spec: Json | None = None) -> Json:
    return {"template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container], **(spec or {})}}}


@pytest.mark.parametrize(
    ("container", "spec", "same"),
    [
        ({"image": "x:1"}, {}, True),
        ({"image": "x:1", "tty": False, "stdin": False}, {"hostNetwork": False, "nodeName": None}, True),
        ({"image": "x:1", "ports": [{"hostPort": 0}]}, {}, False),
        ({"image": "x:1", "tty": True}, {}, False),
        ({"image": "x:1", "securityContext": {"runAsUser": 0}}, {}, False),
        ({"image": "x:1"}, {"automountServiceAccountToken": False}, False),
        ({"image": "x:2"}, {}, False),
    ],
)
def test_templates_that_mean_the_same_are_the_same(container: Json, spec: Json, same: bool) -> None:
    """As kubectl's rollout undo needs it: the old template comes back in JSON, and was created in protobuf."""
    deployment = deployed(1, **with_template({"image": "x:1"}))
    body = with_template(container, spec)
    body["template"]["metadata"]["labels"][rollout.HASH_LABEL] = "abc"
    found = msgspec.json.decode(msgspec.json.encode({"metadata": {"name": "web-abc"}, "spec": body}), type=ReplicaSet)
    assert (rollout.find_new(deployment, [found]) is not None) is same


# Progress --------------------------------------------------------------------------------------------------------------

T0 = 1_767_225_600.0


def test_progress_goes_from_moving_to_done() -> None:
    deployment = deployed(2, progressDeadlineSeconds=60)
    status = progress.with_progress(
        deployment, progress.counts(deployment, replica_set("new", 2, 1), [], T0), replica_set("new", 2, 1), T0
    )
    assert [(one.type, one.status, one.reason) for one in status.conditions] == [
        ("Available", "True", "MinimumReplicasAvailable") if progress.bounds(deployment).unavailable else
        ("Available", "False", "MinimumReplicasUnavailable"),
        ("Progressing", "True", "ReplicaSetUpdated"),
    ]  # fmt: skip
    later = msgspec.structs.replace(deployment, status=status)
    assert progress.seconds_left(later, status.conditions[1], T0 + 50) == 10
    late = progress.with_progress(
        later, progress.counts(later, replica_set("new", 2, 1), [], T0 + 61), replica_set("new", 2, 1), T0 + 61
    )
    assert (late.conditions[1].status, late.conditions[1].reason) == ("False", "ProgressDeadlineExceeded")
    overdue = msgspec.structs.replace(deployment, status=late)
    new = replica_set("new", 2)
    done = progress.with_progress(overdue, progress.counts(overdue, new, [], T0 + 70), new, T0 + 70)
    assert (done.conditions[1].status, done.conditions[1].reason) == ("True", "NewReplicaSetAvailable")
    steady = msgspec.structs.replace(deployment, status=done)
    assert progress.with_progress(steady, progress.counts(steady, new, [], T0 + 999), new, T0 + 999) == done


def test_without_a_deadline_nobody_judges_progress() -> None:
    for deployment in (deployed(1), deployed(1, progressDeadlineSeconds=progress.NO_DEADLINE)):
        status = DeploymentStatus(conditions=[progress.progressing("True", "x", "x", T0)])
        assert progress.with_progress(deployment, status, None, T0).conditions == []


# Endpoints -------------------------------------------------------------------------------------------------------------


def service(**spec: Any) -> Service:
    ports = [{"name": "http", "port": 80, "targetPort": "web"}]
    return msgspec.convert({"metadata": {"name": "s", "namespace": "d"}, "spec": {"ports": ports, **spec}}, Service)


def backend(number: int, *, port: int = 8080, **more: Any) -> Pod:
    found = pod(f"p{number:03}", **more)
    body: Json = msgspec.to_builtins(found)
    body["spec"]["containers"] = [{"ports": [{"name": "web", "containerPort": port}]}]
    body["status"]["podIP"] = f"10.0.{number // 250}.{number % 250}"
    return msgspec.convert(body, Pod)


def test_conditions_of_endpoints() -> None:
    going = "2026-01-01T00:00:00Z"
    pods = [backend(1), backend(2, ready=None), backend(3, deletionTimestamp=going), backend(4, phase="Failed")]
    (found,) = endpointslice.wanted(service(), pods, {"n": "zone-a"})
    states = [(one.conditions.ready, one.conditions.serving, one.conditions.terminating) for one in found.endpoints]
    assert states == [(True, True, False), (False, False, False), (False, True, True)]
    assert [one.zone for one in found.endpoints] == ["zone-a"] * 3
    (early,) = endpointslice.wanted(service(publishNotReadyAddresses=True), pods[1:2], {})
    assert early.endpoints[0].conditions.ready
    assert [port.port for port in found.ports] == [8080]


def test_pods_with_other_numbers_for_a_named_port_have_their_own_slice() -> None:
    found = endpointslice.wanted(service(), [backend(1), backend(2, port=9090)], {})
    assert sorted(one.ports[0].port or 0 for one in found) == [8080, 9090]
    nameless = service(ports=[{"port": 80}])
    assert endpointslice.wanted(nameless, [backend(1)], {})[0].ports[0].port == 80
    unknown = service(ports=[{"port": 80, "targetPort": "missing"}])
    assert endpointslice.wanted(unknown, [backend(1)], {})[0].ports == ()


def apply(change: endpointslice.Change, have: list[EndpointSlice]) -> list[EndpointSlice]:
    gone = {one.metadata.name for one in change.delete}
    new = {one.metadata.name: want for one, want in change.update}
    after: list[EndpointSlice] = []
    for one in have:
        if one.metadata.name in gone:
            assert one.metadata.name not in new
            continue
        want = new.get(one.metadata.name)
        if want is not None:
            one = msgspec.structs.replace(one, endpoints=list(want.endpoints), ports=list(want.ports))
        after.append(one)
    for i, want in enumerate(change.create):
        meta = Meta(name=f"s-{len(have)}-{i}-{id(want)}")
        after.append(EndpointSlice(meta, want.family, list(want.endpoints), list(want.ports)))
    return after


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 260), max_size=230), min_size=1, max_size=4), st.integers(1, 3))
def test_slices_follow_with_few_changes(rounds: list[set[int]], step: int) -> None:
    """After any sequence of changes each backend is in exactly one slice, none is too full, and nothing is left to do."""
    have: list[EndpointSlice] = []
    for numbers in rounds:
        pods = [backend(number, port=8080 + number % step) for number in sorted(numbers)]
        want = endpointslice.wanted(service(), pods, {})
        have = apply(endpointslice.plan(want, have), have)
        found = [one.addresses[0] for slice in have for one in slice.endpoints or ()]
        assert sorted(found) == sorted(f"10.0.{number // 250}.{number % 250}" for number in numbers)
        assert all(len(slice.endpoints or ()) <= endpointslice.FULL for slice in have)
        assert have  # an empty one at least
        again = endpointslice.plan(want, have)
        assert again == endpointslice.Change()


def test_one_more_backend_changes_one_slice() -> None:
    pods = [backend(number) for number in range(150)]
    have = apply(endpointslice.plan(endpointslice.wanted(service(), pods, {}), []), [])
    assert sorted(len(one.endpoints or ()) for one in have) == [50, 100]
    change = endpointslice.plan(endpointslice.wanted(service(), [*pods, backend(200)], {}), have)
    assert (len(change.create), len(change.update), len(change.delete)) == (0, 1, 0)


# Garbage ---------------------------------------------------------------------------------------------------------------


def own(uid: str) -> OwnerReference:
    return OwnerReference(kind="Deployment", name=uid, uid=uid)


@pytest.mark.parametrize(
    ("owners", "meta", "has_dependents", "expected"),
    [
        ([], Meta(), False, Verdict()),
        ([Owner.SOLID], Meta(), False, Verdict()),
        ([Owner.ABSENT], Meta(), False, Verdict(delete="Background")),
        ([Owner.ABSENT, Owner.SOLID], Meta(), False, Verdict(drop=frozenset({"0"}))),
        ([Owner.WAITING, Owner.SOLID], Meta(), True, Verdict(drop=frozenset({"0"}))),
        ([Owner.WAITING], Meta(), True, Verdict(delete="Foreground")),
        ([Owner.WAITING], Meta(), False, Verdict(delete="Background")),
        ([Owner.ABSENT], Meta(finalizers=[garbage.ORPHAN]), False, Verdict(delete="Orphan")),
        ([Owner.ABSENT], Meta(finalizers=[garbage.FOREGROUND]), False, Verdict(delete="Foreground")),
        ([Owner.ABSENT], Meta(deletion_timestamp="2026-01-01T00:00:00Z"), False, Verdict()),
    ],
)
def test_verdicts_on_dependents(owners: list[Owner], meta: Meta, has_dependents: bool, expected: Verdict) -> None:
    found = garbage.judge(meta, [(own(str(i)), state) for i, state in enumerate(owners)], has_dependents=has_dependents)
    if Owner.SOLID in owners and len(owners) == 1:
        assert found == Verdict(drop=frozenset())
    else:
        assert found == expected


# Nodes -----------------------------------------------------------------------------------------------------------------


def node(ready: str | None = "True", *, unschedulable: bool = False, **conditions: str) -> Node:
    found = [{"type": type, "status": status} for type, status in conditions.items()]
    if ready is not None:
        found.append({"type": "Ready", "status": ready, "lastHeartbeatTime": "2026-01-01T00:00:00Z"})
    spec = {"unschedulable": unschedulable, "taints": [{"key": "mine", "effect": "NoSchedule"}]}
    return msgspec.convert({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": found}}, Node)


def taints_of(one: Node, silent_s: float = 0.0, *, others_live: bool = True) -> set[str]:
    judgement = nodelife.judge(one, silent_s, 40.0, T0, others_live=others_live)
    assert "mine" in {taint.key for taint in judgement.taints}
    return {f"{taint.key.rpartition('/')[2]}:{taint.effect}" for taint in judgement.taints if taint.key != "mine"}


@pytest.mark.parametrize(
    ("one", "silent_s", "others_live", "expected"),
    [
        (node(), 0, True, set()),
        (node(), 39.9, True, set()),
        (node(), 40, True, {"unreachable:NoSchedule", "unreachable:NoExecute"}),
        (node(), 40, False, {"unreachable:NoSchedule"}),
        (node("False"), 0, True, {"not-ready:NoSchedule", "not-ready:NoExecute"}),
        (node(None), 0, True, {"not-ready:NoSchedule"}),
        (node(unschedulable=True), 0, True, {"unschedulable:NoSchedule"}),
        (node(DiskPressure="True"), 0, True, {"disk-pressure:NoSchedule"}),
        (node(NetworkUnavailable="True"), 0, True, {"network-unavailable:NoSchedule"}),
    ],
)
def test_taints_of_nodes(one: Node, silent_s: float, others_live: bool, expected: set[str]) -> None:
    assert taints_of(one, silent_s, others_live=others_live) == expected


def test_judging_twice_changes_nothing_more() -> None:
    first = nodelife.judge(node(MemoryPressure="False"), 41, 40.0, T0, others_live=True)
    assert {(one.type, one.status) for one in first.conditions} == {("MemoryPressure", "Unknown"), ("Ready", "Unknown")}
    body = msgspec.to_builtins(node())
    body["spec"]["taints"] = msgspec.to_builtins(first.taints)
    body["status"]["conditions"] = msgspec.to_builtins(first.conditions)
    second = nodelife.judge(msgspec.convert(body, Node), 55, 40.0, T0 + 15, others_live=True)
    assert second == first
    ready = next(one for one in second.conditions if one.type == "Ready")
    assert ready.last_heartbeat_time == "2026-01-01T00:00:00Z"  # when it was last heard of is not ours to change


LEAVE = Taint("k", "NoExecute")
OTHER = Taint("l", "NoExecute")


@pytest.mark.parametrize(
    ("taints", "tolerations", "expected"),
    [
        ([], [], None),
        ([LEAVE], [], 0.0),
        ([LEAVE], [Toleration("k", "Exists")], None),
        ([LEAVE], [Toleration("k", "Exists", toleration_seconds=300)], 400.0),
        ([LEAVE], [Toleration("k", "Exists", effect="NoSchedule")], 0.0),
        ([LEAVE], [Toleration("k", "Equal", "v")], 0.0),
        ([LEAVE], [Toleration(operator="Exists", toleration_seconds=-5)], 100.0),
        ([LEAVE, OTHER], [Toleration("k", "Exists"), Toleration("l", "Exists", toleration_seconds=7)], 107.0),
        ([LEAVE, OTHER], [Toleration("k", "Exists")], 0.0),
        (
            [LEAVE],
            [Toleration("k", "Exists", toleration_seconds=50), Toleration(operator="Exists", toleration_seconds=9)],
            109.0,
        ),
    ],
)
def test_when_a_pod_must_leave(taints: list[Taint], tolerations: list[Toleration], expected: float | None) -> None:
    assert eviction.due([(taint, 100.0) for taint in taints], tolerations) == expected


def test_fences_are_promises_of_the_node() -> None:
    assert eviction.fence_s(msgspec.convert({"metadata": {"annotations": {eviction.FENCE: "3.5"}}}, Node)) == 3.5
    assert eviction.fence_s(msgspec.convert({"metadata": {"labels": {eviction.FENCE: "3.5"}}}, Node)) == 3.5
    assert eviction.fence_s(msgspec.convert({"metadata": {"labels": {eviction.FENCE: "soon"}}}, Node)) is None
    assert eviction.fence_s(node()) is None
