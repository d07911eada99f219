"""A build on a terminal: what has ended stands, what runs is rewritten in place."""

import re
from typing import Any

import pytest

from wherry.cli.showing import Screen


def shown(text: str) -> list[str]:
    """What a terminal shows after the bytes: lines, with the cursor going up and lines being cleared."""
    lines: list[str] = [""]
    at = 0
    for part in re.split(r"(\x1b\[1A|\x1b\[2K|\n)", text):
        match part:
            case "\n":
                at += 1
                lines += [""] * (at + 1 - len(lines))
            case "\x1b[1A":
                at -= 1
            case "\x1b[2K":
                lines[at] = ""
            case _:
                lines[at] = part or lines[at]
    return [line for line in lines if line]


def event(kind: str, step: int = 0, text: str = "", stage: str = "") -> dict[str, Any]:
    return {"kind": kind, "step": step, "total": 3, "text": text, "stage": stage}


def test_steps_that_run_are_rewritten_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.tell(event("step", 1, "FROM scratch", "a"))
    screen.tell(event("step", 2, "RUN make", "a"))
    screen.tell(event("step", 3, "RUN test", "b"))
    for number in range(9):
        screen.tell(event("output", 2, f"line {number}\n\x1b[31m", "a"))
    screen.tell(event("cached", 3, "sha256:x", "b"))
    screen.tell(event("warning", text="careful"))
    running = shown(said := capsys.readouterr().err)
    assert re.fullmatch(r"=> \[1/3\] a: FROM scratch +\d+\.\ds", running[0])
    assert running[1:3] == ["warning: careful", "=> [2/3] a: RUN make"]
    assert [line.strip() for line in running if "line" in line] == ["line 7", "line 8"]
    assert "\x1b[31m" not in said  # a step steers no terminal
    screen.tell(event("done", 3))
    screen.end()
    ended = shown(said + capsys.readouterr().err)
    assert [line.split()[-1] for line in ended if "3/3" in line] == ["CACHED"]
    assert not [line for line in ended if "line" in line]


def test_what_ran_when_a_build_failed_stays(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.tell(event("step", 1, "RUN " + "long " * 100))
    screen.tell(event("output", 1, "why it failed\n"))
    screen.end()
    left = shown(capsys.readouterr().err)
    assert left[-1] == "   why it failed"
    assert left[0].endswith("...")
