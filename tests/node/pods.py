"""Pods for the tests of this folder, made from as little as needed."""

from typing import Any

import msgspec

from wherry.node.pods import Pod, PodBytes
from wherry.node.runtime import ContainerState, Phase, PodState


def pod(
    *containers: dict[str, Any], init: list[dict[str, Any]] | None = None, policy: str = "Always", **more: Any
) -> Pod:
    """A pod `default/web` with these containers (default: one named `app`)."""
    return pod_bytes(*containers, init=init, policy=policy, **more).read()


def pod_bytes(
    *containers: dict[str, Any], init: list[dict[str, Any]] | None = None, policy: str = "Always", **more: Any
) -> PodBytes:
    """The same, as an informer keeps it."""
    meta = {"name": "web", "namespace": "default", "uid": "u-1", **more.pop("metadata", {})}
    status = more.pop("status", {})
    spec = {
        "containers": list(containers) or [{"name": "app", "image": "web:1"}],
        "initContainers": init or [],
        "restartPolicy": policy,
        **more,
    }
    return msgspec.json.decode(msgspec.json.encode({"metadata": meta, "spec": spec, "status": status}), type=PodBytes)


def state(*containers: ContainerState) -> PodState:
    """What the machine has of that pod."""
    return PodState("u-1", "default", "web", "10.64.0.5", 1000.0, containers)


def running(name: str = "app", attempt: int = 0, started: float = 1000.0) -> ContainerState:
    """A running attempt."""
    return ContainerState(f"{name}-{attempt}", name, attempt, Phase.RUNNING, started, image_id="sha256:1")


def ended(
    code: int, name: str = "app", attempt: int = 0, time: float = 1010.0, started: float = 1000.0
) -> ContainerState:
    """An ended attempt."""
    from wherry.engine.types import Exit

    return ContainerState(
        f"{name}-{attempt}", name, attempt, Phase.TERMINATED, started, Exit(code, time), image_id="sha256:1"
    )
