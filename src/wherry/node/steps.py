"""What a node does next with a pod: a pure function of the pod, what the machine has of it, and the time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from wherry.node.pods import ContainerDef, Pod
from wherry.node.runtime import ContainerState, Phase, PodState

BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 60.0
BACKOFF_RESET_S = 60.0
"""A container that ran this long starts over with the first back-off."""


class Do(Enum):
    """The kind of a step."""

    PREPARE = "prepare"  # volumes, sandbox
    START = "start"
    STOP = "stop"  # one container: its probe failed, or its pod is over
    END = "end"  # the whole pod, in order
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. `until` is the time at which to look again (0: only when something happens)."""

    do: Do
    container: str = ""
    attempt: int = 0
    until: float = 0.0
    reason: str = ""


def latest(state: PodState | None) -> Mapping[str, ContainerState]:
    """The newest attempt of each container by name."""
    newest: dict[str, ContainerState] = {}
    for each in state.containers if state else ():
        known = newest.get(each.name)
        if known is None or each.attempt > known.attempt:
            newest[each.name] = each
    return newest


def previous(state: PodState | None, name: str) -> ContainerState | None:
    """The attempt before the newest, where it is still known."""
    attempts = sorted(
        (each for each in (state.containers if state else ()) if each.name == name), key=lambda c: c.attempt
    )
    return attempts[-2] if len(attempts) > 1 else None


def backoff_s(failures: int) -> float:
    """Seconds to wait before a restart, after `failures` exits in a row: the first restart comes at once."""
    if failures <= 1:
        return 0.0
    return min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** (failures - 2))


def restarts(policy: str, code: int) -> bool:
    """Whether a container that ended with `code` is started again under a pod's restart policy."""
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def next_step(
    pod: Pod, state: PodState | None, *, now: float, failures: Mapping[str, int], unhealthy: Mapping[str, str]
) -> Step:
    """Say the next thing to do. `failures` counts exits in a row by container; `unhealthy` has the failed liveness probes."""
    if pod.is_deleting or is_past_deadline(pod, now):
        return Step(Do.END)
    if pod.is_finished:
        running = [each for each in latest(state).values() if each.phase is Phase.RUNNING]
        return Step(Do.STOP, running[0].name, running[0].attempt, reason="Finished") if running else Step(Do.WAIT)
    if state is None:
        return Step(Do.PREPARE)
    newest = latest(state)
    for definition in pod.spec.init_containers:
        current = newest.get(definition.name)
        if current is not None and current.exit is not None and current.exit.code == 0:
            continue
        policy = "Never" if pod.spec.restart_policy == "Never" else "OnFailure"
        return _advance(definition, current, policy, now, failures, unhealthy) or Step(Do.WAIT)
    waits: list[float] = []
    for definition in pod.spec.containers:
        step = _advance(definition, newest.get(definition.name), pod.spec.restart_policy, now, failures, unhealthy)
        if step is None:
            continue
        if step.do is not Do.WAIT:
            return step
        waits.append(step.until)
    until = min((each for each in waits if each), default=0.0)
    deadline = _deadline(pod)
    return Step(Do.WAIT, until=min(until or deadline, deadline or until))


def _advance(
    definition: ContainerDef,
    current: ContainerState | None,
    policy: str,
    now: float,
    failures: Mapping[str, int],
    unhealthy: Mapping[str, str],
) -> Step | None:
    """The next step for one container; None when it is as it should be for good."""
    name = definition.name
    if current is None:
        return Step(Do.START, name, 0)
    if current.phase is Phase.RUNNING:
        if name in unhealthy:
            return Step(Do.STOP, name, current.attempt, reason=unhealthy[name])
        return Step(Do.WAIT)
    if current.phase is Phase.WAITING or current.exit is None:
        return Step(Do.START, name, current.attempt)
    if not restarts(policy, current.exit.code):
        return None
    due = current.exit.time + backoff_s(failures.get(name, 1))
    if due > now:
        return Step(Do.WAIT, name, current.attempt, until=due, reason="CrashLoopBackOff")
    return Step(Do.START, name, current.attempt + 1)


def _deadline(pod: Pod) -> float:
    from wherry.node.pods import seconds_of

    if pod.spec.active_deadline_seconds is None or not pod.status.start_time:
        return 0.0
    return seconds_of(pod.status.start_time) + pod.spec.active_deadline_seconds


def is_past_deadline(pod: Pod, now: float) -> bool:
    """Whether activeDeadlineSeconds are over."""
    deadline = _deadline(pod)
    return bool(deadline) and now >= deadline


def stop_order(pod: Pod, state: PodState | None) -> Sequence[ContainerState]:
    """The running containers of a pod, to be ended together."""
    return [each for each in latest(state).values() if each.phase is Phase.RUNNING]
