"""Progress of pulls and pushes in Docker's words, a line for a layer at most every so often."""

from collections.abc import Callable
from typing import Any

from wherry.clock import machine
from wherry.content.transfer import Step

EVERY_S = 0.1
_WORDS = {
    "exists": "Already exists", "download": "Downloading", "done": "Download complete", "extract": "Extracting",
    "unpacked": "Pull complete", "upload": "Pushing", "mounted": "Mounted",
}  # fmt: skip
_PUSHED = {"exists": "Layer already exists", "done": "Pushed"}


class Progress:
    """Turns the engine's steps into lines for `say`."""

    def __init__(self, say: Callable[[Any], None], *, pushing: bool = False) -> None:
        self._say = say
        self._words = _WORDS | _PUSHED if pushing else _WORDS
        self._first = "Preparing" if pushing else "Pulling fs layer"
        self._known: set[str] = set()
        self._told: dict[str, float] = {}

    def __call__(self, step: Step) -> None:
        """Tell one step; configurations are no layers, and are passed over."""
        if not step.layer:
            return
        id = step.digest.rpartition(":")[2][:12]
        if id not in self._known:
            self._known.add(id)
            self._say({"status": self._first, "progressDetail": {}, "id": id})
        moving = step.action in ("download", "upload", "extract")
        now = machine.monotonic()
        if moving and step.current < step.total and now - self._told.get(id, 0.0) < EVERY_S:
            return
        self._told[id] = now
        detail = {"current": step.current, "total": step.total} if moving else {}
        line: dict[str, Any] = {"status": self._words.get(step.action, step.action), "progressDetail": detail, "id": id}
        if moving:
            line["progress"] = _bar(step.current, step.total)
        self._say(line)


def _bar(current: int, total: int) -> str:
    """The bar as Docker draws it, for clients that only print it."""
    share = min(50, 50 * current // total) if total else 50
    bar = "=" * share + ">" + " " * (50 - share) if share < 50 else "=" * 50 + ">"
    return f"[{bar}] {_size(current):>8}/{_size(total)}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g}{unit}"
        count /= 1000
    return f"{count:.4g}TB"
