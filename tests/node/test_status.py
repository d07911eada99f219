"""A pod's status from what is: phases, conditions, container states."""

from typing import Any

import pytest

from tests.node.pods import ended, pod, running, state
from wherry.engine.types import Exit
from wherry.node.pods import Pod
from wherry.node.runtime import ContainerState, Phase, PodState
from wherry.node.status import Health, Waiting, pod_status, qos_class


def status(subject: Pod, has: PodState | None, *, health: Health | None = None, **more: Any) -> dict[str, Any]:
    return pod_status(
        subject,
        has,
        now=1020.0,
        host_address="10.0.0.1",
        health=health or Health(),
        waiting=more.get("waiting", {}),
        failures=more.get("failures", {}),
        last={},
        failed=more.get("failed"),
    )


def condition(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["conditions"] if each["type"] == name)


@pytest.mark.parametrize(
    ("policy", "containers", "phase"),
    [
        ("Always", (), "Pending"),
        ("Always", (running(),), "Running"),
        ("Always", (ended(0),), "Running"),
        ("Never", (ended(0),), "Succeeded"),
        ("Never", (ended(1),), "Failed"),
        ("OnFailure", (ended(0),), "Succeeded"),
        ("OnFailure", (ended(1),), "Running"),
    ],
)
def test_the_phase(policy: str, containers: tuple[ContainerState, ...], phase: str) -> None:
    assert status(pod(policy=policy), state(*containers))["phase"] == phase


def test_a_running_pod_is_ready_and_says_where_it_is() -> None:
    found = status(pod(), state(running()))
    assert condition(found, "Ready")["status"] == "True"
    assert (found["podIP"], found["hostIP"]) == ("10.64.0.5", "10.0.0.1")
    assert found["containerStatuses"][0]["state"] == {"running": {"startedAt": "1970-01-01T00:16:40Z"}}
    assert found["containerStatuses"][0]["containerID"] == "wherry://app-0"


def test_a_readiness_probe_decides_and_a_startup_probe_comes_first() -> None:
    probed = pod({"name": "app", "readinessProbe": {"exec": {"command": ["x"]}}, "startupProbe": {"exec": {}}})
    has = state(running())
    assert condition(status(probed, has), "Ready")["message"] == "containers with unready status: [app]"
    started = Health(started={"app": True})
    assert status(probed, has, health=started)["containerStatuses"][0]["started"] is True
    assert condition(status(probed, has, health=started), "Ready")["status"] == "False"
    good = Health(ready={"app": True}, started={"app": True})
    assert condition(status(probed, has, health=good), "Ready")["status"] == "True"


def test_a_crash_loop_shows_the_pause_and_the_last_exit() -> None:
    found = status(pod(), state(ended(1, attempt=0), ended(3, attempt=1)), failures={"app": 2})
    container = found["containerStatuses"][0]
    assert container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert container["lastState"]["terminated"]["exitCode"] == 3
    assert container["restartCount"] == 1


def test_an_oom_kill_is_named() -> None:
    killed = ContainerState("c", "app", 0, Phase.TERMINATED, 1000.0, Exit(137, 1005.0, oom=True))
    terminated = status(pod(policy="Never"), state(killed))["containerStatuses"][0]["state"]["terminated"]
    assert (terminated["reason"], terminated["signal"]) == ("OOMKilled", 9)


def test_what_is_awaited_is_said() -> None:
    found = status(pod(), state(), waiting={"app": Waiting("ErrImagePull", "image web:1: not found")})
    assert found["containerStatuses"][0]["state"]["waiting"] == {
        "reason": "ErrImagePull",
        "message": "image web:1: not found",
    }
    init = status(pod(init=[{"name": "first"}]), state(running("first")))
    assert init["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
    assert condition(init, "Initialized")["message"] == "containers with incomplete status: [first]"


def test_conditions_of_others_stay_and_times_change_only_with_the_status() -> None:
    before = [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        {"type": "DisruptionTarget", "status": "True"},
    ]
    found = status(pod(status={"phase": "Running", "conditions": before}), state(running()))
    assert condition(found, "Ready")["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert condition(found, "DisruptionTarget")["status"] == "True"


def test_a_pod_that_is_refused_fails_with_the_reason() -> None:
    found = status(pod(), None, failed=Waiting("UnsupportedFeature", "volume 'x': nfs volumes are not supported"))
    assert (found["phase"], found["reason"]) == ("Failed", "UnsupportedFeature")


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}, "Burstable"),
    ],
)
def test_quality_of_service(resources: dict[str, Any], wanted: str) -> None:
    assert qos_class(pod({"name": "app", "resources": resources})) == wanted
