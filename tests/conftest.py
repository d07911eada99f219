"""What all tests share: a budget of seconds for each folder, and who may run what."""

import os
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent

BUDGET_S = {
    "api": 90,
    "builder": 120,
    "cli": 60,
    "client": 30,
    "content": 45,
    "controllers": 60,
    "daemon": 90,
    "docs": 60,
    "doors": 150,
    "engine": 180,
    "ground": 20,
    "history": 20,
    "host": 45,
    "model": 60,
    "network": 90,
    "node": 60,
    "registry": 90,  # its suite runs on two databases, and on a bucket
    "scheduler": 20,
    "store": 60,
    "testing": 60,
    "walks": 240,
    "wire": 45,
}
"""Seconds that the tests of a folder may take on 2 cores; `make test` ends within 20 minutes."""

spent_s: dict[str, float] = defaultdict(float)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget", choices=("on", "off"), default="on", help="fail in CI when a folder is over its budget"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long counts run only by `-m soak`; what needs root is left out, and counted, where there is none."""
    wants_soak = "soak" in (config.option.markexpr or "")
    is_root = os.geteuid() == 0
    left_out = [
        item
        for item in items
        if (item.get_closest_marker("soak") and not wants_soak) or (item.get_closest_marker("root") and not is_root)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def folder_of(path: Path) -> str:
    """Name the test folder that a file is in."""
    parts = path.relative_to(HERE).parts
    return parts[0] if len(parts) > 1 else "."


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    spent_s[folder_of(HERE.parent / report.fspath)] += report.duration


def over_budget() -> list[str]:
    """Say which folders took longer than they may."""
    return [
        f"{folder}: {seconds:.0f} s of {BUDGET_S.get(folder, 0)} s"
        for folder, seconds in sorted(spent_s.items())
        if seconds > BUDGET_S.get(folder, 0)
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if len(spent_s) > 1:
        row = ", ".join(
            f"{folder} {seconds:.0f}/{BUDGET_S.get(folder, 0)}" for folder, seconds in sorted(spent_s.items())
        )
        terminalreporter.write_line(f"seconds of budget: {row}")
    for line in over_budget():
        terminalreporter.write_line(f"over budget: {line}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    keeps = session.config.getoption("--budget") == "on" and bool(os.environ.get("CI"))
    if keeps and exitstatus == 0 and over_budget():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
