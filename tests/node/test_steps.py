"""What a node does next: a table, and the back-off."""

import pytest

from tests.node.pods import ended, pod, running, state
from wherry.node.pods import Pod
from wherry.node.runtime import PodState
from wherry.node.steps import Do, Step, backoff_s, next_step

NOW = 1010.0
INIT = [{"name": "first", "image": "i"}, {"name": "second", "image": "i"}]
DELETING = {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5}


def step(
    subject: Pod, has: PodState | None, failures: dict[str, int] | None = None, unhealthy: dict[str, str] | None = None
) -> Step:
    return next_step(subject, has, now=NOW, failures=failures or {}, unhealthy=unhealthy or {})


@pytest.mark.parametrize(
    ("subject", "has", "wanted"),
    [
        (pod(), None, Step(Do.PREPARE)),
        (pod(), state(), Step(Do.START, "app", 0)),
        (pod(), state(running()), Step(Do.WAIT)),
        (pod(), state(ended(1)), Step(Do.START, "app", 1)),
        (pod(), state(ended(0)), Step(Do.START, "app", 1)),
        (pod(policy="OnFailure"), state(ended(0)), Step(Do.WAIT)),
        (pod(policy="OnFailure"), state(ended(3)), Step(Do.START, "app", 1)),
        (pod(policy="Never"), state(ended(3)), Step(Do.WAIT)),
        (pod(metadata=DELETING), state(running()), Step(Do.END)),
        (pod(metadata=DELETING), None, Step(Do.END)),
        (pod(init=INIT), state(), Step(Do.START, "first", 0)),
        (pod(init=INIT), state(running("first")), Step(Do.WAIT)),
        (pod(init=INIT), state(ended(0, "first")), Step(Do.START, "second", 0)),
        (pod(init=INIT), state(ended(2, "first")), Step(Do.START, "first", 1)),
        (pod(init=INIT, policy="Never"), state(ended(2, "first")), Step(Do.WAIT)),
        (pod(init=INIT), state(ended(0, "first"), ended(0, "second")), Step(Do.START, "app", 0)),
        (pod({"name": "a"}, {"name": "b"}), state(running("a")), Step(Do.START, "b", 0)),
        (pod(status={"phase": "Failed"}), state(running()), Step(Do.STOP, "app", 0, reason="Finished")),
        (pod(status={"phase": "Failed"}), None, Step(Do.WAIT)),
    ],
)
def test_the_next_step(subject: Pod, has: PodState | None, wanted: Step) -> None:
    assert step(subject, has) == wanted


def test_a_failed_liveness_probe_stops_the_container() -> None:
    found = step(pod(), state(running()), unhealthy={"app": "liveness probe failed"})
    assert (found.do, found.container, found.reason) == (Do.STOP, "app", "liveness probe failed")


def test_a_crash_loop_waits_longer_each_time_and_tells_until_when() -> None:
    found = step(pod(), state(ended(1, attempt=3, time=1009.5)), failures={"app": 4})
    assert found == Step(Do.WAIT, until=1009.5 + 4.0)


def test_the_first_restart_comes_at_once_and_the_pause_is_bounded() -> None:
    assert [backoff_s(n) for n in range(1, 10)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_a_pod_past_its_active_deadline_ends() -> None:
    late = pod(activeDeadlineSeconds=5, status={"startTime": "1970-01-01T00:16:40Z"})
    assert step(late, state(running())).do is Do.END
    early = pod(activeDeadlineSeconds=50, status={"startTime": "1970-01-01T00:16:40Z"})
    assert step(early, state(running())) == Step(Do.WAIT, until=1050.0)
