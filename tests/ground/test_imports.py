"""What starts, and what the command line needs, imports only what it uses at once: `wherry up` is there within a second."""

import subprocess
import sys
from pathlib import Path

import pytest

import wherry

NEVER = ("aiohttp", "sqlalchemy", "numpy", "grpc", "pyroute2", "pytest", "docker", "kubernetes")
"""Nothing that starts may need these. aiohttp alone costs 0.36 s; it is imported by the first pull from a TLS registry."""

LATER = ("yaml", "cryptography", "jwt", "zstandard", "isal", "tarfile", "email", "http.client", "multiprocessing")
"""Imported on use: a YAML file of settings, the first certificate, the first layer."""

MODULES = {
    "server": "wherry.daemon.main, wherry.daemon.server, wherry.daemon.simulated",
    "node": "wherry.daemon.main, wherry.daemon.machine",
    "up": "wherry.cli.main, wherry.cli.instances, wherry.daemon.up",
    "client": "wherry.cli.main, wherry.cli.containers, wherry.cli.images",
}


def imported(modules: str) -> set[str]:
    """Every module that a fresh interpreter has after importing `modules`, packages' names included."""
    program = f"import sys, {modules}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("role", MODULES)
def test_a_role_imports_nothing_heavy(role: str) -> None:
    found = imported(MODULES[role])
    assert found.isdisjoint(NEVER), sorted(found.intersection(NEVER))
    assert found.isdisjoint(LATER), sorted(found.intersection(LATER))


def test_a_node_imports_the_builder_at_its_first_build() -> None:
    found = imported(MODULES["node"])
    assert not [name for name in found if name.startswith("wherry.builder")]


def test_the_parts_of_other_processes_stay_away() -> None:
    server, node, up = (imported(MODULES[role]) for role in ("server", "node", "up"))
    assert not [name for name in server if name.startswith(("wherry.engine.local", "wherry.doors", "wherry.builder"))]
    assert not [name for name in node if name.startswith(("wherry.api", "wherry.controllers", "wherry.scheduler"))]
    assert not [name for name in up if name.startswith(("wherry.api", "wherry.engine.local", "wherry.doors"))]


def test_the_warden_imports_nothing_of_wherry() -> None:
    folder = Path(wherry.__file__).parent / "daemon"
    program = "import sys\nsys.path.insert(0, sys.argv[1])\nimport warden\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program, str(folder)], capture_output=True, text=True, timeout=60, check=True
    )
    found = set(done.stdout.split())
    assert "warden" in found
    assert not [name for name in found if name.startswith("wherry")]
    heavy = {"asyncio", "ctypes", "subprocess", "logging", "typing", "dataclasses", "ssl", "argparse"}
    assert found.isdisjoint(heavy), sorted(found & heavy)
