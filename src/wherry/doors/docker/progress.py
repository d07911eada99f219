"""Progress of pulls and pushes in Docker's words, for its clients' bars: a line for a moving one at most every so often."""

from collections.abc import Callable
from typing import Any

from wherry.clock import machine
from wherry.content.steps import Step

EVERY_S = 0.1
_PULLED = {
    "queued": "Pulling fs layer", "wait": "Waiting", "exists": "Already exists", "download": "Downloading",
    "verify": "Verifying Checksum", "done": "Download complete", "extract": "Extracting", "unpacked": "Pull complete",
}  # fmt: skip
_PUSHED = {
    "queued": "Preparing", "wait": "Waiting", "exists": "Layer already exists", "upload": "Pushing", "done": "Pushed",
    "mounted": "Mounted",
}  # fmt: skip
_MOVING = ("download", "upload", "extract")


class Progress:
    """Turns the engine's steps into lines for `say`."""

    def __init__(self, say: Callable[[Any], None], *, pushing: bool = False) -> None:
        self._say = say
        self._words = _PUSHED if pushing else _PULLED
        self._last: dict[str, str] = {}
        self._told: dict[str, float] = {}

    def __call__(self, step: Step) -> None:
        """Tell one step; configurations are no layers, and are passed over."""
        if not step.layer:
            return
        id = step.digest.rpartition(":")[2][:12]
        moving = step.action in _MOVING and step.total > 0
        if id not in self._last and step.action not in ("queued", "exists"):
            self._say({"status": self._words["queued"], "progressDetail": {}, "id": id})
        now = machine.monotonic()
        late = step.current >= step.total or now - self._told.get(id, 0.0) >= EVERY_S
        if self._last.get(id) == step.action and not (moving and late):
            return
        self._last[id], self._told[id] = step.action, now
        detail = {"current": step.current, "total": step.total} if moving else {}
        status = self._words.get(step.action, step.action)
        if step.action == "mounted" and step.source:
            status = f"Mounted from {step.source}"
        line: dict[str, Any] = {"status": status, "progressDetail": detail, "id": id}
        if moving:
            line["progress"] = _bar(step.current, step.total)
        self._say(line)


def _bar(current: int, total: int) -> str:
    """The bar as Docker draws it, for clients that only print it."""
    share = min(50, 50 * current // total)
    return f"[{'=' * share}>{' ' * (50 - share)}] {_size(current):>8}/{_size(total)}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g}{unit}"
        count /= 1000
    return f"{count:.4g}TB"
