"""A pod's status as a pure function of the pod, what the runtime has of it, probe results and messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wherry.clock import rfc3339
from wherry.node.pods import ContainerDef, Pod
from wherry.node.runtime import ContainerState, Phase, PodState
from wherry.node.steps import backoff_s, latest, previous, restarts


@dataclass(slots=True)
class Health:
    """What probes say, by container name. A container without a probe counts as good once it runs."""

    ready: dict[str, bool] = field(default_factory=dict[str, bool])
    started: dict[str, bool] = field(default_factory=dict[str, bool])


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a container does not run: `reason` such as ErrImagePull, CreateContainerConfigError."""

    reason: str
    message: str = ""


def pod_status(
    pod: Pod,
    state: PodState | None,
    *,
    now: float,
    host_address: str,
    health: Health,
    waiting: Mapping[str, Waiting],
    failures: Mapping[str, int],
    last: Mapping[str, ContainerState],
    failed: Waiting | None = None,
) -> dict[str, Any]:
    """Compute the status to report.

    `waiting` has reasons by container name ("" for the whole pod); `last` the attempt before the newest where the
    runtime has removed it; `failed` says that the node refuses the pod for good.
    """
    newest = latest(state)
    phase = pod.status.phase if pod.is_finished else _phase(pod, newest)
    if failed is not None:
        phase = "Failed"
    init = [
        _container(pod, each, state, newest, now, health, waiting, failures, last, init=True)
        for each in pod.spec.init_containers
    ]
    main = [
        _container(pod, each, state, newest, now, health, waiting, failures, last, init=False)
        for each in pod.spec.containers
    ]
    initialised = phase == "Succeeded" or all(_succeeded(newest.get(each.name)) for each in pod.spec.init_containers)
    all_ready = phase == "Running" and all(each["ready"] for each in main)
    unready = [each["name"] for each in main if not each["ready"]]
    not_ready: tuple[str, str] = ("PodCompleted", "") if phase == "Succeeded" else (
        "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    )  # fmt: skip
    uninitialised = [each.name for each in pod.spec.init_containers if not _succeeded(newest.get(each.name))]
    wanted: list[tuple[str, bool, str, str]] = [
        ("PodReadyToStartContainers", state is not None, "", ""),
        (
            "Initialized",
            initialised,
            "ContainersNotInitialized",
            f"containers with incomplete status: [{' '.join(uninitialised)}]",
        ),
        ("Ready", all_ready, not_ready[0], not_ready[1]),
        ("ContainersReady", all_ready, not_ready[0], not_ready[1]),
        ("PodScheduled", True, "", ""),
    ]
    status: dict[str, Any] = {
        "phase": phase,
        "conditions": _conditions(pod, wanted, now),
        "hostIP": host_address,
        "hostIPs": [{"ip": host_address}],
        "startTime": pod.status.start_time or rfc3339(now),
        "containerStatuses": main,
        "qosClass": qos_class(pod),
    }
    if init:
        status["initContainerStatuses"] = init
    address = host_address if pod.spec.host_network else (state.address if state else "")
    if address:
        status["podIP"] = address
        status["podIPs"] = [{"ip": address}]
    why = failed or waiting.get("")
    if why is not None:
        status["reason"] = why.reason
        status["message"] = why.message
    elif phase != "Failed":
        status["reason"] = status["message"] = None  # a merge patch takes the old ones away
    return status


def _succeeded(container: ContainerState | None) -> bool:
    return container is not None and container.exit is not None and container.exit.code == 0


def _phase(pod: Pod, newest: Mapping[str, ContainerState]) -> str:
    policy = pod.spec.restart_policy
    for each in pod.spec.init_containers:
        state = newest.get(each.name)
        if state is not None and state.exit is not None and state.exit.code != 0 and policy == "Never":
            return "Failed"
        if not _succeeded(state):
            return "Pending"
    states = [newest.get(each.name) for each in pod.spec.containers]
    if any(each is None or each.phase is Phase.WAITING for each in states):
        return "Pending" if not any(each and each.phase is Phase.RUNNING for each in states) else "Running"
    ends = [each.exit for each in states if each is not None and each.exit is not None]
    over = len(ends) == len(states) and not any(restarts(policy, end.code) for end in ends)
    if not over or not states:
        return "Running"
    return "Succeeded" if all(end.code == 0 for end in ends) else "Failed"


def _container(
    pod: Pod,
    definition: ContainerDef,
    state: PodState | None,
    newest: Mapping[str, ContainerState],
    now: float,
    health: Health,
    waiting: Mapping[str, Waiting],
    failures: Mapping[str, int],
    last: Mapping[str, ContainerState],
    *,
    init: bool,
) -> dict[str, Any]:
    name = definition.name
    current = newest.get(name)
    before = previous(state, name) or last.get(name)
    running = current is not None and current.phase is Phase.RUNNING
    entry: dict[str, Any] = {
        "name": name,
        "image": definition.image,
        "imageID": current.image_id if current else "",
        "restartCount": current.attempt if current else 0,
        "state": {},
        "lastState": {},
    }
    if current is not None and current.id:
        entry["containerID"] = f"wherry://{current.id}"
    if running and current is not None:
        entry["state"] = {"running": {"startedAt": rfc3339(current.started)}}
    elif current is not None and current.exit is not None:
        policy = ("Never" if pod.spec.restart_policy == "Never" else "OnFailure") if init else pod.spec.restart_policy
        comes_back = restarts(policy, current.exit.code) and not pod.is_deleting and not pod.is_finished
        pause_s = backoff_s(failures.get(name, 1))
        if name in waiting:
            entry["state"] = _waiting(waiting[name])
            before = current
        elif comes_back and pause_s:
            message = f"back-off {pause_s:.0f}s restarting failed container={name} pod={pod.metadata.name}"
            entry["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
            before = current
        else:
            entry["state"] = {"terminated": terminated(current)}
    else:
        pending_init = not init and not all(_succeeded(newest.get(each.name)) for each in pod.spec.init_containers)
        reason = (
            waiting.get(name) or waiting.get("") or Waiting("PodInitializing" if pending_init else "ContainerCreating")
        )
        entry["state"] = _waiting(reason)
    if before is not None and before.exit is not None:
        entry["lastState"] = {"terminated": terminated(before)}
    if init:
        entry["ready"] = _succeeded(current)
        entry["started"] = running
    else:
        started = running and (definition.startup_probe is None or health.started.get(name, False))
        entry["started"] = started
        entry["ready"] = started and (definition.readiness_probe is None or health.ready.get(name, False))
    return entry


def _waiting(why: Waiting) -> dict[str, Any]:
    return {"waiting": {"reason": why.reason, **({"message": why.message} if why.message else {})}}


def terminated(container: ContainerState) -> dict[str, Any]:
    """Write an ended attempt as ContainerStateTerminated."""
    end = container.exit
    assert end is not None, "only an ended attempt has this form"
    if end.oom:
        reason = "OOMKilled"
    elif end.error:
        reason = "StartError" if not container.started else "ContainerCannotRun"
    else:
        reason = "Completed" if end.code == 0 else "Error"
    entry: dict[str, Any] = {
        "exitCode": end.code,
        "reason": reason,
        "startedAt": rfc3339(container.started) if container.started else rfc3339(end.time),
        "finishedAt": rfc3339(end.time),
    }
    if container.id:
        entry["containerID"] = f"wherry://{container.id}"
    if end.code > 128:
        entry["signal"] = end.code - 128
    if end.error:
        entry["message"] = end.error[:1024]
    return entry


def _conditions(pod: Pod, wanted: list[tuple[str, bool, str, str]], now: float) -> list[dict[str, Any]]:
    """Keep others' conditions and the time of each that does not change."""
    known = {each.get("type"): each for each in pod.status.conditions}
    result = [each for each in pod.status.conditions if each.get("type") not in {name for name, *_ in wanted}]
    for name, value, reason, message in wanted:
        text = "True" if value else "False"
        before = known.get(name)
        changed = before is None or before.get("status") != text
        condition: dict[str, Any] = {
            "type": name,
            "status": text,
            "lastProbeTime": None,
            "lastTransitionTime": rfc3339(now) if changed else (before or {}).get("lastTransitionTime") or rfc3339(now),
            "observedGeneration": pod.metadata.generation or None,
        }
        if condition["observedGeneration"] is None:
            del condition["observedGeneration"]
        if not value and reason:
            condition["reason"] = reason
            condition["message"] = message
        result.append(condition)
    return result


def qos_class(pod: Pod) -> str:
    """Guaranteed, Burstable or BestEffort, from the cpu and memory of all containers."""
    guaranteed, anything = True, False
    for each in (*pod.spec.containers, *pod.spec.init_containers):
        for name in ("cpu", "memory"):
            limit, request = each.resources.limits.get(name), each.resources.requests.get(name)
            anything = anything or bool(limit or request)
            if not limit or (request or limit) != limit:
                guaranteed = False
    if not anything:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"
