"""When the engine itself starts a container again: Docker's restart policies. Pure."""

from dataclasses import dataclass

from wherry.engine.types import Exit
from wherry.errors import Invalid

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 60.0
STEADY_S = 10.0
"""Having run this long, a container counts as healthy again. Source: Docker, "Start containers automatically"."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A restart policy. `most` bounds the restarts of "on-failure"; 0 is no bound."""

    name: str = "no"
    most: int = 0


def parse(text: str) -> Policy:
    """Read "no", "always", "unless-stopped", "on-failure" or "on-failure:N". Raises Invalid."""
    name, colon, count = text.partition(":")
    if name == "on-failure":
        if colon and not count.isdigit():
            raise Invalid(f"restart policy {text!r}: write on-failure:N with a number of retries")
        return Policy(name, int(count or 0))
    if name in ("", "no") and not colon:
        return Policy()
    if name in ("always", "unless-stopped") and not colon:
        return Policy(name)
    raise Invalid(f"restart policy {text!r}: use no, always, unless-stopped, on-failure or on-failure:N")


def should_restart(policy: Policy, exit: Exit, *, restarts: int, stopped: bool, machine_came_up: bool = False) -> bool:
    """Say whether to start again. `stopped`: a person ended it; then only "always" comes back, when the engine starts."""
    match policy.name:
        case "always":
            return machine_came_up or not stopped
        case "unless-stopped":
            return not stopped
        case "on-failure":
            return not stopped and exit.code != 0 and (policy.most == 0 or restarts < policy.most)
        case _:
            return False


def next_delay_s(last_s: float, ran_s: float) -> float:
    """Say how long to wait: twice the last time, from the start again when it had run for a while."""
    if last_s <= 0 or ran_s >= STEADY_S:
        return FIRST_DELAY_S
    return min(LAST_DELAY_S, last_s * 2)
