"""Events and autoscalers, from one version into the other and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.samples import admitted
from wherry.model import admit, kinds
from wherry.model.convert import convert

V1, V2 = kinds.HORIZONTALPODAUTOSCALERS_V1, kinds.HORIZONTALPODAUTOSCALERS


def test_an_event_has_the_same_parts_by_other_names() -> None:
    event: dict[str, Any] = {
        **admitted(kinds.EVENTS),
        "message": "pulled",
        "reason": "Pulled",
        "type": "Normal",
        "source": {"component": "kubelet"},
        "count": 3,
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "reportingComponent": "kubelet",
    }
    new = convert(event, kinds.EVENTS, kinds.EVENTS_V1)
    assert (new["apiVersion"], new["note"], new["regarding"]["name"]) == ("events.k8s.io/v1", "pulled", "web")
    assert (new["deprecatedCount"], new["reportingController"]) == (3, "kubelet")
    assert not admit.prune(kinds.EVENTS_V1, new).strict
    assert convert(new, kinds.EVENTS_V1, kinds.EVENTS) == event


def test_an_autoscalers_percentage_is_a_metric() -> None:
    old: dict[str, Any] = {
        "apiVersion": "autoscaling/v1",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web", "annotations": {"mine": "x"}},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {}, "targetCPUUtilizationPercentage": 70},
        "status": {"currentReplicas": 1, "desiredReplicas": 1, "currentCPUUtilizationPercentage": 50},
    }
    new = convert(old, V1, V2)
    target = {"type": "Utilization", "averageUtilization": 70}
    assert new["spec"]["metrics"] == [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    assert new["status"]["currentMetrics"][0]["resource"]["current"]["averageUtilization"] == 50
    assert not admit.prune(V2, new).strict
    assert convert(new, V2, V1) == old


_metrics = st.lists(
    st.sampled_from(
        [
            {
                "type": "Resource",
                "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 5}},
            },
            {
                "type": "Pods",
                "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "1k"}},
            },
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "1"}}},
        ]
    ),
    max_size=3,
)


@given(_metrics, st.none() | st.integers(1, 100), st.booleans())
def test_nothing_is_lost_in_the_older_version(metrics: list[Any], percent: int | None, behaves: bool) -> None:
    whole = admitted(V2)
    cpu = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
    }
    whole["spec"]["metrics"] = [*([cpu] if percent else []), *metrics]
    if not whole["spec"]["metrics"]:
        del whole["spec"]["metrics"]
    if behaves:
        whole["spec"]["behavior"] = {"scaleDown": {"selectPolicy": "Disabled"}}
    whole["status"] = {"conditions": [{"type": "AbleToScale", "status": "True"}], "desiredReplicas": 1}
    old = convert(whole, V2, V1)
    assert not admit.prune(V1, old).strict
    assert convert(old, V1, V2) == whole


def test_what_is_no_version_of_the_other() -> None:
    assert convert({"a": 1}, kinds.PODS, kinds.PODS) == {"a": 1}
    with pytest.raises(KeyError):
        convert({}, kinds.PODS, kinds.SERVICES)
