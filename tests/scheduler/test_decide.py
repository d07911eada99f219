"""Decisions, pure: who fits where, what is best, and what people are told when nothing fits."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.scheduler.decide import decide, enough
from wherry.scheduler.decision import Code, compact
from wherry.scheduler.filters import fits, refusals
from wherry.scheduler.objects import Node, Pod, Service
from wherry.scheduler.resources import request_of
from wherry.scheduler.state import PodInfo, State
from wherry.scheduler.topology import topology_of

Json = dict[str, Any]


def node(name: str, *, labels: Json | None = None, taints: list[Json] | None = None, **amounts: str) -> Node:
    allocatable = {"cpu": "4", "memory": "8Gi", "pods": "110", **amounts}
    body = {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": {"taints": taints or []},
        "status": {"allocatable": allocatable},
    }
    return msgspec.convert(body, Node)


def pod(name: str = "p", *, on: str = "", labels: Json | None = None, owner: str = "", **spec: Any) -> Pod:
    cpu, memory = spec.pop("cpu", None), spec.pop("memory", None)
    requests = {key: value for key, value in (("cpu", cpu), ("memory", memory)) if value is not None}
    owners = [{"kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}] if owner else []
    body = {
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels or {}, "ownerReferences": owners},
        "spec": {"containers": [{"resources": {"requests": requests}}], "nodeName": on, **spec},
    }
    return msgspec.convert(body, Pod)


def state_of(*objects: Node | Pod | Service) -> State:
    state = State()
    for one in objects:
        if isinstance(one, Node):
            state.set_node(one)
        elif isinstance(one, Pod):
            state.set_pod(one)
        else:
            state.services.setdefault(one.metadata.namespace, {})[one.metadata.name] = one
    return state


def chosen(one: Pod, *objects: Node | Pod | Service) -> str:
    return decide(PodInfo(one), state_of(*objects), 0.0).node


def codes(one: Pod, *objects: Node | Pod) -> set[Code]:
    found = decide(PodInfo(one), state_of(*objects), 0.0)
    assert found.node == ""
    return set(found.codes)


# Filters ---------------------------------------------------------------------------------------------------------------

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def near(match: Json, key: str = "kubernetes.io/hostname") -> list[Json]:
    return [{"labelSelector": {"matchLabels": match}, "topologyKey": key}]


def disk(value: str, operator: str = "In") -> Json:
    term = {"matchExpressions": [{"key": "disk", "operator": operator, "values": [value]}]}
    return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [term]}}}


def spread(skew: int = 1, **more: Any) -> Json:
    one = {"maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    return {"topologySpreadConstraints": [{**one, "labelSelector": {"matchLabels": {"app": "web"}}, **more}]}


@pytest.mark.parametrize(
    ("one", "there", "code"),
    [
        (pod(cpu="5"), [node("a")], Code.CPU),
        (pod(cpu="2"), [node("a"), pod("q", on="a", cpu="2500m")], Code.CPU),
        (pod(memory="9Gi"), [node("a")], Code.MEMORY),
        (pod(), [node("a", pods="1"), pod("q", on="a")], Code.PODS),
        (pod(), [node("a", taints=[{"key": "k", "effect": "NoSchedule"}])], Code.TAINT),
        (pod(nodeSelector={"disk": "ssd"}), [node("a")], Code.NODE_AFFINITY),
        (pod(affinity=disk("ssd")), [node("a", labels={"disk": "hdd"})], Code.NODE_AFFINITY),
        (pod(affinity=disk("5", "Gt")), [node("a", labels={"disk": "5"})], Code.NODE_AFFINITY),
        (
            pod(containers=[{"ports": [{"hostPort": 80}]}]),
            [node("a"), pod("q", on="a", containers=[{"ports": [{"hostPort": 80, "hostIP": "10.0.0.1"}]}])],
            Code.PORTS,
        ),
        (pod(affinity={"podAffinity": {REQUIRED: near({"app": "db"})}}), [node("a")], Code.AFFINITY),
        (
            pod(affinity={"podAntiAffinity": {REQUIRED: near({"app": "web"})}}),
            [node("a"), pod("q", on="a", labels={"app": "web"})],
            Code.ANTI_AFFINITY,
        ),
        (
            pod(labels={"app": "web"}),
            [node("a"), pod("q", on="a", affinity={"podAntiAffinity": {REQUIRED: near({"app": "web"})}})],
            Code.REFUSED_BY_PODS,
        ),
        (pod(labels={"app": "web"}, **spread()), [node("a")], Code.SPREAD_LABEL),
        (pod(containers=[{"resources": {"limits": {"example.com/gpu": "1"}}}]), [node("a")], Code.RESOURCE),
    ],
)
def test_what_does_not_fit_says_why(one: Pod, there: list[Node | Pod], code: Code) -> None:
    assert codes(one, *there) == {code}


@pytest.mark.parametrize(
    ("one", "there"),
    [
        (pod(cpu="4", memory="8Gi"), [node("a")]),
        (pod(tolerations=[{"operator": "Exists"}]), [node("a", taints=[{"key": "k", "effect": "NoExecute"}])]),
        (pod(), [node("a", taints=[{"key": "k", "effect": "PreferNoSchedule"}])]),
        (pod(affinity=disk("ssd")), [node("a", labels={"disk": "ssd"})]),
        (pod(affinity=disk("ssd", "NotIn")), [node("a")]),
        (
            pod(containers=[{"ports": [{"hostPort": 80, "hostIP": "10.0.0.2"}]}]),
            [node("a"), pod("q", on="a", containers=[{"ports": [{"hostPort": 80, "hostIP": "10.0.0.1"}]}])],
        ),
        (
            pod(affinity={"podAffinity": {REQUIRED: near({"app": "db"})}}),
            [node("a"), pod("q", on="a", labels={"app": "db"})],
        ),
        (pod(labels={"app": "db"}, affinity={"podAffinity": {REQUIRED: near({"app": "db"})}}), [node("a")]),
        (pod(cpu="2"), [node("a"), msgspec.structs.replace(pod("q", on="a", cpu="3"), status=msgspec.convert(
            {"phase": "Succeeded"}, type(Pod().status)))]),
    ],
)  # fmt: skip
def test_what_fits_goes_there(one: Pod, there: list[Node | Pod]) -> None:
    assert chosen(one, *there) == "a"


def test_a_cordoned_node_takes_nothing_new() -> None:
    cordoned = msgspec.convert({"metadata": {"name": "a"}, "spec": {"unschedulable": True}}, Node)
    assert codes(pod(), cordoned) == {Code.UNSCHEDULABLE}
    tolerant = pod(tolerations=[{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}])
    assert chosen(tolerant, cordoned) == "a"


def test_zones_fill_evenly() -> None:
    nodes = [node(name, labels={"zone": name[0]}) for name in ("a1", "a2", "b1")]
    web = {"app": "web"}
    there = [pod("q", on="a1", labels=web)]
    assert chosen(pod(labels=web, **spread()), *nodes, *there) == "b1"
    both = [*there, pod("r", on="b1", labels=web)]
    assert chosen(pod(labels=web, **spread()), *nodes, *both) in ("a1", "a2", "b1")
    full = [*nodes[:2], node("b1", labels={"zone": "b"}, cpu="0"), *there]
    assert codes(pod(labels=web, cpu="1", **spread()), *full) == {Code.SPREAD, Code.CPU}
    assert codes(pod(labels=web, **spread(minDomains=3)), *nodes, *both) == {Code.SPREAD}
    assert chosen(pod(labels=web, cpu="1", **spread(whenUnsatisfiable="ScheduleAnyway")), *full) == "a2"


def test_anti_affinity_reaches_over_a_whole_zone() -> None:
    nodes = [node("a1", labels={"zone": "a"}), node("a2", labels={"zone": "a"}), node("b1", labels={"zone": "b"})]
    alone = {"podAntiAffinity": {REQUIRED: near({"app": "web"}, "zone")}}
    web = {"app": "web"}
    assert chosen(pod(labels=web, affinity=alone), *nodes, pod("q", on="a1", labels=web)) == "b1"


@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        ({"containers": [{"resources": {"requests": {"cpu": "1"}}}] * 2}, 2000),
        ({"containers": [{"resources": {"limits": {"cpu": "1"}}}]}, 1000),
        (
            {
                "containers": [{"resources": {"requests": {"cpu": "1"}}}],
                "initContainers": [{"resources": {"requests": {"cpu": "3"}}}],
            },
            3000,
        ),
        (
            {
                "containers": [{"resources": {"requests": {"cpu": "1"}}}],
                "initContainers": [
                    {"resources": {"requests": {"cpu": "1"}}, "restartPolicy": "Always"},
                    {"resources": {"requests": {"cpu": "2500m"}}},
                ],
                "overhead": {"cpu": "100m"},
            },
            3600,
        ),
    ],
)
def test_a_pod_asks_for_what_its_containers_need_at_once(spec: Json, cpu: int) -> None:
    assert request_of(msgspec.convert(spec, type(Pod().spec)))["cpu"] == cpu


# Scores ----------------------------------------------------------------------------------------------------------------


def test_the_emptier_node_is_better() -> None:
    assert chosen(pod(cpu="1"), node("a"), node("b"), pod("q", on="a", cpu="2")) == "b"
    assert chosen(pod(), node("a"), node("b"), pod("q", on="a")) == "b"  # also where nobody asks for anything


def test_pods_of_one_owner_and_of_one_service_lie_apart() -> None:
    busy = pod("q", on="b", cpu="1", memory="2Gi")
    sibling = pod("r", on="a", owner="web")
    assert chosen(pod(owner="web"), node("a"), node("b"), sibling, busy) == "b"
    service = msgspec.convert({"metadata": {"name": "s", "namespace": "n"}, "spec": {"selector": {"x": "y"}}}, Service)
    same = pod("r", on="a", labels={"x": "y"})
    assert chosen(pod(labels={"x": "y"}), node("a"), node("b"), same, busy, service) == "b"


def test_preferences_count() -> None:
    term = {"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
    liking = pod(affinity={"nodeAffinity": {PREFERRED: [term]}})
    assert chosen(liking, node("a"), node("b", labels={"disk": "ssd"})) == "b"
    assert chosen(pod(), node("a", taints=[{"key": "k", "effect": "PreferNoSchedule"}]), node("b")) == "b"
    liked = [{"weight": 50, "podAffinityTerm": near({"app": "db"})[0]}]
    beside = pod(affinity={"podAffinity": {PREFERRED: liked}})
    assert chosen(beside, node("a"), node("b"), pod("q", on="b", labels={"app": "db"})) == "b"
    away = pod(affinity={"podAntiAffinity": {PREFERRED: liked}})
    assert chosen(away, node("a"), node("b"), pod("q", on="a", labels={"app": "db"})) == "b"


# What people are told --------------------------------------------------------------------------------------------------


def test_the_message_counts_the_reasons_of_all_nodes() -> None:
    found = decide(
        PodInfo(pod(cpu="2", memory="1Gi")),
        state_of(
            node("a", cpu="1", memory="512Mi"),
            node("b", taints=[{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}], cpu="1"),
            node("c", taints=[{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]),
            node("d", cpu="1500m"),
        ),
        5.0,
    )
    assert found.message == (
        "0/4 nodes are available: 1 Insufficient memory, 2 Insufficient cpu, "
        "2 node(s) had untolerated taint {node.kubernetes.io/unreachable: }."
    )
    assert found.nearest == "d"  # lacks one amount, and least of it
    assert {refusal.code for refusal in found.refusals["b"]} == {Code.TAINT, Code.CPU}  # all that stands against it
    told = json.loads(compact(found, nodes=2))
    assert told["of"] == 4
    assert list(told["nodes"]) == ["d", "c"]
    assert told["nodes"]["d"] == [["InsufficientCpu", "cpu: asks for 2, 1500m free"]]
    assert decide(PodInfo(pod()), State(), 0.0).message == "no nodes available to schedule pods"


def test_codes_are_stable() -> None:
    assert sorted(code.value for code in Code) == [
        "ExistingPodAntiAffinity",
        "HostPortTaken",
        "InsufficientCpu",
        "InsufficientEphemeralStorage",
        "InsufficientMemory",
        "InsufficientResource",
        "NoNodes",
        "NodeAffinityMismatch",
        "NodeNameMismatch",
        "NodeUnschedulable",
        "PodAffinityMismatch",
        "PodAntiAffinityConflict",
        "SchedulingGated",
        "TooManyPods",
        "TopologyLabelMissing",
        "TopologySpread",
        "UntoleratedTaint",
    ]


# Properties ------------------------------------------------------------------------------------------------------------

NODES = st.lists(
    st.builds(
        lambda cpu, pods, zone, tainted: (cpu, pods, zone, tainted),
        st.integers(0, 8),
        st.integers(0, 6),
        st.sampled_from("xyz"),
        st.booleans(),
    ),
    min_size=0,
    max_size=5,
)
PODS = st.lists(
    st.tuples(
        st.integers(0, 4000),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["", "80", "443"]),
        st.booleans(),
    ),
    max_size=25,
)


def made(specs: list[tuple[int, int, str, bool]]) -> list[Node]:
    taint = [{"key": "t", "effect": "NoSchedule"}]
    return [
        node(f"n{i}", cpu=str(cpu), pods=str(pods), labels={"zone": zone}, taints=taint if tainted else None)
        for i, (cpu, pods, zone, tainted) in enumerate(specs)
    ]


def wish(i: int, spec: tuple[int, bool, bool, bool, str, bool]) -> Pod:
    cpu, tolerates, spreads, alone, port, _ = spec
    more: Json = spread() if spreads else {}
    if alone:
        more["affinity"] = {"podAntiAffinity": {REQUIRED: near({"app": "web"})}}
    if tolerates:
        more["tolerations"] = [{"operator": "Exists"}]
    ports = [{"hostPort": int(port)}] if port else []
    container = {"resources": {"requests": {"cpu": f"{cpu}m"}}, "ports": ports}
    return pod(f"p{i}", labels={"app": "web"} if spreads or alone else {}, containers=[container], **more)


def overcommitted(state: State) -> list[str]:
    return [
        each.name
        for each in state.nodes.values()
        for name, used in each.used.items()
        if used > each.free_of.get(name, 0)
    ]


@settings(max_examples=150, deadline=None)
@given(NODES, PODS)
def test_no_node_is_ever_overcommitted(nodes: list[Any], pods: list[Any]) -> None:
    """Through every order of deciding, binding, failing to bind, and pods that go: what is asked for is there."""
    state = state_of(*made(nodes))
    for i, spec in enumerate(pods):
        info = PodInfo(wish(i, spec))
        decision = decide(info, state, 0.0, start=i)
        if decision.node:
            assert fits(info, state.nodes[decision.node], topology_of(info, state))
            state.assume(info, decision.node)
            if spec[0] % 3 == 0:
                state.forget(info.uid)
            elif spec[5]:
                bound = msgspec.structs.replace(info.pod.spec, node_name=decision.node)
                state.set_pod(msgspec.structs.replace(info.pod, spec=bound))
                state.forget(info.uid)  # too late: a view has shown it
                assert state.is_placed(info.uid)
            if spec[0] % 7 == 0:
                state.remove_pod(info.uid)
        else:
            assert set(decision.refusals) == set(state.nodes)
            assert all(decision.refusals.values())
        assert overcommitted(state) == []
    ports = [
        port
        for each in state.nodes.values()
        for one in each.pods.values()
        for port in ((each.name, p) for p in one.ports)
    ]
    assert len(ports) == len(set(ports))


@settings(max_examples=150, deadline=None)
@given(NODES, PODS, st.integers(0, 4000))
def test_filters_are_monotonic(nodes: list[Any], pods: list[Any], more_cpu: int) -> None:
    """What does not fit does not fit any better when it asks for more, or when there are more pods on the node."""
    state = state_of(*made(nodes))
    for i, spec in enumerate(pods):
        info = PodInfo(wish(i, spec))
        asking_more = PodInfo(wish(i, (spec[0] + more_cpu, *spec[1:])))
        topology = topology_of(info, state)
        for each in state.nodes.values():
            against = {refusal.code for refusal in refusals(info, each, topology)}
            assert against <= {refusal.code for refusal in refusals(asking_more, each, topology)}
            assert fits(info, each, topology) is (not against)
        decision = decide(info, state, 0.0)
        if decision.node:
            unlike = {Code.CPU, Code.PODS, Code.PORTS, Code.TAINT}
            before = {
                each.name: {r.code for r in refusals(info, each, topology)} & unlike for each in state.nodes.values()
            }
            state.assume(PodInfo(wish(i + 1000, spec)), decision.node)
            for each in state.nodes.values():
                assert before[each.name] <= {r.code for r in refusals(info, each, topology)}


@settings(max_examples=60, deadline=None)
@given(NODES, PODS)
def test_the_same_state_gives_the_same_answer(nodes: list[Any], pods: list[Any]) -> None:
    def run() -> list[str]:
        state = state_of(*made(nodes))
        placed: list[str] = []
        for i, spec in enumerate(pods):
            info = PodInfo(wish(i, spec))
            decision = decide(info, state, 0.0)
            placed.append(decision.node)
            if decision.node:
                state.assume(info, decision.node)
        return placed

    assert run() == run()


def test_large_clusters_are_searched_in_turn() -> None:
    assert enough(100) == 100
    assert enough(1000) == 420
    assert enough(10_000) == 500
    state = state_of(*(node(f"n{i:04}") for i in range(1000)))
    first = decide(PodInfo(pod()), state, 0.0)
    other = decide(PodInfo(pod()), state, 0.0, start=500)
    assert len(first.scores) == len(other.scores) == 420
    assert first.node != other.node
