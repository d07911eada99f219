"""Phases: how long a process took to start, part by part, for one line in its log; benchmarks/start.py reads it."""

import os
from pathlib import Path

from wherry.clock import machine


class Phases:
    """A stop watch that began when this process was forked: `mark` ends a phase."""

    def __init__(self) -> None:
        self._last = machine.monotonic()
        self._found: list[tuple[str, float]] = [("python", _age_s())]

    def mark(self, name: str) -> None:
        """What happened since the last mark was `name`."""
        now = machine.monotonic()
        self._found.append((name, now - self._last))
        self._last = now

    def __str__(self) -> str:
        total = sum(seconds for _, seconds in self._found)
        return f"after {total:.3f} s ({', '.join(f'{name} {seconds:.3f}' for name, seconds in self._found)})"


def _age_s() -> float:
    """Seconds since this process was forked, to the kernel's 10 ms."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return max(0.0, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))


def unmarked(name: str) -> None:
    """Nobody measures."""
    del name
