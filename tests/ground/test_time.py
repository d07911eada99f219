"""No module asks the operating system for the time but the clock: so that tests, and people, can move a cluster's time."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import wherry

SOURCE = Path(wherry.__file__).parent
EXCEPTED: Mapping[str, str] = {
    "clock.py": "it is the clock",
    "daemon/warden.py": "it may import nothing of wherry: it must outlive all of it, in 10 MB",
}
FORBIDDEN: Mapping[str, frozenset[str]] = {
    "time": frozenset(
        {
            "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "clock_gettime",
            "clock_gettime_ns", "sleep", "localtime", "gmtime",
        }
    ),
    "asyncio": frozenset({"sleep"}),
    "datetime": frozenset({"now", "utcnow", "today"}),
    "date": frozenset({"today"}),
}  # fmt: skip


def readings(text: str) -> Iterator[tuple[int, str]]:
    """Where a module reads the time or sleeps: (line, what)."""
    tree = ast.parse(text)
    names: dict[str, str] = {"datetime": "datetime", "date": "date"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.asname or each.name: each.name for each in node.names if each.name in FORBIDDEN}
        elif isinstance(node, ast.ImportFrom) and node.module in ("time", "asyncio", "datetime"):
            for each in node.names:
                if node.module == "time" or each.name in FORBIDDEN[node.module]:
                    yield node.lineno, f"from {node.module} import {each.name}"
                elif node.module == "datetime":
                    names[each.asname or each.name] = each.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            whose = node.value
            name = whose.id if isinstance(whose, ast.Name) else whose.attr if isinstance(whose, ast.Attribute) else ""
            if node.attr in FORBIDDEN.get(names.get(name, ""), ()):
                yield node.lineno, f"{name}.{node.attr}"


@pytest.mark.parametrize(
    "text",
    [
        "import time\ntime.time()",
        "import time as t\nt.monotonic()",
        "def f():\n    import time\n    time.sleep(1)",
        "from time import monotonic",
        "import asyncio\nasync def f():\n    await asyncio.sleep(0)",
        "from asyncio import sleep",
        "from datetime import datetime\ndatetime.now()",
        "from datetime import datetime as d\nd.utcnow()",
        "import datetime\ndatetime.datetime.now(None)",
        "import time\nread = time.monotonic",
    ],
)
def test_every_way_to_read_the_time_is_found(text: str) -> None:
    assert list(readings(text))


@pytest.mark.parametrize(
    "text",
    [
        "from datetime import datetime\ndatetime.fromtimestamp(1.0)",
        "clock.now()",
        "await_ = machine.sleep(0)",
        "import asyncio\nasyncio.get_running_loop().time()",
        "self.time()",
    ],
)
def test_what_does_not_read_it_is_left_alone(text: str) -> None:
    assert not list(readings(text))


def test_only_the_clock_and_the_warden_read_the_time() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {what}"
        for path in sorted(SOURCE.rglob("*.py"))
        if str(path.relative_to(SOURCE)) not in EXCEPTED
        for line, what in readings(path.read_text())
    ]
    assert not found, "take cluster time from a Clock, machine time from wherry.clock.machine:\n" + "\n".join(found)


def test_the_exceptions_are_still_needed() -> None:
    for name, reason in EXCEPTED.items():
        assert list(readings((SOURCE / name).read_text())), f"{name} ({reason}) reads no time any more"
