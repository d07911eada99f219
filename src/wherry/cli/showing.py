"""How a build is shown from its events: as JSON, an object a line, or on a terminal, where what runs is rewritten in place."""

import json
import os
import sys
from typing import Any

from wherry.cli.engine import Refused
from wherry.clock import machine
from wherry.wire.blocking import Answer

CLEAR = "\x1b[2K"
TAIL = 4
"""Lines of output that a running step shows."""


def show(answer: Answer, *, raw: bool) -> dict[str, Any]:
    """Show a build to its end, on stderr; return the last `aux`. Raises Refused for an error line."""
    aux: dict[str, Any] = {}
    screen = Screen()
    rest = b""
    try:
        for chunk in answer.chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not line.strip():
                    continue
                said = json.loads(line)
                if "error" in said:
                    if raw:
                        _write(json.dumps({"kind": "error", "text": said["error"]}) + "\n")
                    raise Refused(str(said["error"]), 0)
                aux = said.get("aux", aux)
                text = said.get("stream", "")
                if text.startswith("{"):
                    _write(text) if raw else screen.tell(json.loads(text))
    finally:
        screen.end()
        answer.close()
    return aux


class Screen:
    """Steps that have ended stand above; those that run are written anew at each event."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, int], dict[str, Any]] = {}
        self._lines = 0

    def tell(self, event: dict[str, Any]) -> None:
        """Take one event."""
        place = (event.get("platform", ""), event.get("step", 0))
        stage = event.get("stage", "")
        match event["kind"]:
            case "step":
                self._end_of(place[0], stage)
                head = f"[{place[1]}/{event.get('total', 0)}] " + (f"{stage}: " if stage else "")
                step = {"head": head + event.get("text", ""), "stage": stage, "began": machine.monotonic(), "tail": []}
                self._running[place] = step
            case "cached" if place in self._running:
                self._running[place]["cached"] = True
            case "output" if place in self._running:
                tail = self._running[place]["tail"]
                tail += event.get("text", "").splitlines()
                del tail[:-TAIL]
            case "warning":
                self._print([f"warning: {event.get('text', '')}"])
            case "done":
                for running in list(self._running):
                    self._done(running)
            case _:
                return
        self._draw()

    def end(self) -> None:
        """Leave what is there."""
        self._erase()
        for step in self._running.values():
            _write(f"=> {_cut(step['head'])}\n" + "".join(f"   {_cut(_plain(line))}\n" for line in step["tail"]))
        self._running.clear()

    def _end_of(self, platform: str, stage: str) -> None:
        """A step of a stage has ended when its next one begins."""
        for place, step in list(self._running.items()):
            if place[0] == platform and step["stage"] == stage:
                self._done(place)

    def _done(self, place: tuple[str, int]) -> None:
        step = self._running.pop(place)
        took = "CACHED" if step.get("cached") else f"{machine.monotonic() - step['began']:.1f}s"
        self._print([f"{'=> ' + _cut(step['head'], 10):<{_columns() - 10}}{took:>8}"])

    def _print(self, lines: list[str]) -> None:
        self._erase()
        _write("".join(f"{line}\n" for line in lines))

    def _erase(self) -> None:
        _write(f"\x1b[1A{CLEAR}" * self._lines)
        self._lines = 0

    def _draw(self) -> None:
        self._erase()
        lines: list[str] = []
        for step in list(self._running.values())[-8:]:
            lines.append(f"=> {_cut(step['head'])}")
            lines += [f"   {_cut(_plain(line))}" for line in step["tail"]]
        _write("".join(f"{line}\n" for line in lines))
        self._lines = len(lines)


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)


def _columns() -> int:
    try:
        return max(40, os.get_terminal_size(2).columns)
    except OSError:
        return 80


def _cut(text: str, less: int = 0) -> str:
    text = " ".join(text.split())
    room = _columns() - 5 - less
    return text if len(text) <= room else text[: room - 3] + "..."


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
