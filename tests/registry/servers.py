"""Servers that a registry outgrows one machine with, started for the tests: PostgreSQL from Debian's package."""

import glob
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

TIMEOUT_S = 60


class Postgres:
    """A server on a unix socket in a directory of its own. It refuses to run as root, so it runs as somebody else."""

    def __init__(self) -> None:
        # Not below pytest's directory: that is for its own user only, and made so again by every run.
        self.root = Path(tempfile.mkdtemp(prefix="wherry-pg-"))
        self._number = itertools.count()
        self._user = next(name for name in ("postgres", "nobody") if _is_user(name)) if os.getuid() == 0 else None

    def __enter__(self) -> "Postgres":
        os.chmod(self.root, 0o755)
        if self._user:
            shutil.chown(self.root, self._user)
        self._run("initdb", "-D", f"{self.root}/data", "-U", "wherry", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses= -k {self.root} -c fsync=off -c max_connections=60"
        self._run("pg_ctl", "-D", f"{self.root}/data", "-o", options, "-l", f"{self.root}/log", "-w", "start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run("pg_ctl", "-D", f"{self.root}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.root)

    def fresh(self) -> str:
        """Make an empty schema; return the URL that leads there."""
        name = f"s{next(self._number)}"
        self._run("psql", "-h", str(self.root), "-U", "wherry", "-d", "postgres", "-qc", f"CREATE SCHEMA {name}")
        options = quote(f"-csearch_path={name}")
        return f"postgresql://wherry@/postgres?host={self.root}&options={options}"

    def _run(self, program: str, *words: str) -> None:
        # Output goes to a file: the server that pg_ctl starts keeps it open.
        with open(self.root / "output", "ab") as out:
            done = subprocess.run(
                [_program(program), *words], cwd=self.root, stdout=out, stderr=out, timeout=TIMEOUT_S,
                user=self._user, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        assert done.returncode == 0, f"{program} {words}: {(self.root / 'output').read_text()[-2000:]}"


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _program(name: str) -> str:
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)
    assert found, f"{name} is not installed: make apt-test"
    return found
