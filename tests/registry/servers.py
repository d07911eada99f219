"""Servers that a registry outgrows one machine with, started for the tests: PostgreSQL from Debian, SeaweedFS from PyPI."""

import glob
import itertools
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg

from wherry.clock import machine

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
        with psycopg.connect(host=str(self.root), user="wherry", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
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


class Seaweed:
    """An S3 server on loopback in a directory of its own. `environment` is what the AWS tools read."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="wherry-s3-"))
        self._weed = Path(sys.executable).parent / "weed"
        self._number = itertools.count()
        self._ports = [_free_port() for _ in range(8)]
        self.environment = {
            "AWS_ACCESS_KEY_ID": "wherry",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports[6]}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Seaweed":
        key = {"accessKey": "wherry", "secretKey": "a-secret-of-the-tests"}
        identity = {"name": "wherry", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}
        (self.root / "s3.json").write_text(json.dumps({"identities": [identity]}))
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
                 "s3.port", "s3.port.grpc")  # fmt: skip
        ports = [f"-{name}={port}" for name, port in zip(names, self._ports, strict=True)]
        argv = [str(self._weed), "server", f"-dir={self.root}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports, "-filer",
                "-s3", f"-s3.config={self.root}/s3.json", "-master.volumeSizeLimitMB=64", "-volume.max=100"]  # fmt: skip
        with open(self.root / "log", "wb") as log:
            self._process = subprocess.Popen(argv, cwd=self.root, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        return self

    def ready(self) -> "Seaweed":
        """Wait until it serves: a few seconds, in which others can work."""
        assert self._process is not None
        until = machine.monotonic() + TIMEOUT_S
        while not self._make_bucket():
            gone = machine.monotonic() > until or self._process.poll() is not None
            assert not gone, (self.root / "log").read_text()[-3000:]
            machine.pause(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.root)

    def fresh(self) -> str:
        """An empty place in the bucket."""
        return f"s3://wherry/p{next(self._number)}"

    def _make_bucket(self) -> bool:
        """A bucket is a directory of the filer."""
        made = urllib.request.Request(f"http://127.0.0.1:{self._ports[4]}/buckets/wherry/", method="POST")
        try:
            with urllib.request.urlopen(self.environment["AWS_ENDPOINT_URL"] + "/status", timeout=5):
                pass
            with urllib.request.urlopen(made, timeout=5):
                return True
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
