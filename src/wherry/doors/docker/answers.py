"""The engine's values in the shapes of Docker's API."""

from typing import Any

from wherry.clock import rfc3339_nano
from wherry.doors.docker.endpoints import (
    network_mode,
    networks_map,
    ports_list,
)
from wherry.doors.docker.mounts import show_mounts
from wherry.engine.types import Container, HealthState, State

Json = dict[str, Any]
ZERO_TIME = "0001-01-01T00:00:00Z"


def moment(seconds: float) -> str:
    """A time, or Docker's zero."""
    return rfc3339_nano(seconds) if seconds else ZERO_TIME


def state_word(container: Container) -> str:
    """The state in Docker's words."""
    return "restarting" if container.restarting else container.state.value


def state_of(container: Container) -> Json:
    """The State object."""
    end = container.exit if container.state is State.EXITED else None
    return {
        "Status": state_word(container),
        "Running": container.state in (State.RUNNING, State.PAUSED) or container.restarting,
        "Paused": container.state is State.PAUSED,
        "Restarting": container.restarting,
        "OOMKilled": bool(end and end.oom),
        "Dead": False,
        "Pid": container.pid,
        "ExitCode": end.code if end else 0,
        "Error": end.error if end else "",
        "StartedAt": moment(container.started),
        "FinishedAt": moment(end.time) if end else ZERO_TIME,
        **({"Health": _health(container.health)} if container.health else {}),
    }


def _health(state: HealthState) -> Json:
    return {
        "Status": state.status,
        "FailingStreak": state.streak,
        "Log": [
            {"Start": moment(each.began), "End": moment(each.ended), "ExitCode": each.code, "Output": each.output}
            for each in state.log
        ],
    }


def ago(seconds: float) -> str:
    """A duration as Docker says it: `5 seconds`, `About a minute`, `3 hours`."""
    steps = (
        (1, "Less than a second"), (2, "1 second"), (60, "{:.0f} seconds"), (120, "About a minute"),
        (3600, "{:.0f} minutes"), (7200, "About an hour"), (172800, "{:.0f} hours"), (1209600, "{:.0f} days"),
        (5184000, "{:.0f} weeks"), (63072000, "{:.0f} months"),
    )  # fmt: skip
    units = (1, 1, 1, 60, 60, 3600, 3600, 86400, 604800, 2592000)
    for (bound, words), unit in zip(steps, units, strict=True):
        if seconds < bound:
            return words.format(seconds // unit)
    return f"{seconds // 31536000:.0f} years"


def status_words(container: Container, now: float) -> str:
    """The STATUS column."""
    match container.state:
        case State.CREATED:
            return "Created"
        case State.RUNNING:
            health = container.health.status if container.health else ""
            words = "health: starting" if health == "starting" else health
            return f"Up {ago(now - container.started)}" + (f" ({words})" if words else "")
        case State.PAUSED:
            return f"Up {ago(now - container.started)} (Paused)"
        case State.EXITED:
            end = container.exit
            word = "Restarting" if container.restarting else "Exited"
            return f"{word} ({end.code}) {ago(now - end.time)} ago" if end else word


def container_summary(container: Container, now: float) -> Json:
    """One entry of `GET /containers/json`."""
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.spec.labels.get("io.kubernetes.container.image", container.spec.image),
        "ImageID": container.image_id,
        "Command": " ".join(f"'{word}'" if " " in word and at else word for at, word in enumerate(container.argv)),
        "Created": int(container.created),
        "Ports": ports_list(container),
        "Labels": dict(container.spec.labels),
        "State": state_word(container),
        "Status": status_words(container, now),
        "HostConfig": {"NetworkMode": network_mode(container)},
        "NetworkSettings": {"Networks": networks_map(container)},
        "Mounts": show_mounts(container),
    }


def familiar(name: str) -> str:
    """An image's name as people write it: without `docker.io/library/`."""
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/")
