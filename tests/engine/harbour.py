"""An engine alone in a process of its own (`wherry engine serve`), with busybox, that can be killed and counted."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from tests.doors.conftest import busybox_archive
from tests.traces import identity, of_kernel, processes, traces

from wherry.clock import machine
from wherry.daemon.instance import Instance
from wherry.wire.client import Endpoint, HttpClient

READY_S = 30.0
CALL_S = 60.0
IMAGE = "web:1"
WHERRY = str(Path(sys.executable).with_name("wherry"))


class Refused(Exception):
    """The engine answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


class Harbour:
    """A root, the engine's process on it, and its Docker API."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.identity = identity(root)
        self.socket = Instance.at(root).docker_socket("engine")
        self._process: subprocess.Popen[bytes] | None = None
        self._http = HttpClient(Endpoint.parse(f"unix:{self.socket}"))

    @property
    def pid(self) -> int:
        """Of the engine."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the engine and wait until it answers."""
        with (self.root.parent / f"{self.root.name}.log").open("ab") as log:
            self._process = await asyncio.to_thread(
                subprocess.Popen, [WHERRY, "engine", "serve", "--root", str(self.root)], stdout=log, stderr=log
            )
        async with machine.timeout(READY_S):
            while True:
                assert self._process.poll() is None, (self.root.parent / f"{self.root.name}.log").read_text()[-3000:]
                with suppress(Exception):
                    await self.call("GET", "/_ping")
                    return
                await machine.sleep(0.02)

    async def kill(self) -> None:
        """SIGKILL the engine. Its containers and their conmons are nobody's now."""
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    async def load(self) -> None:
        """Put the image there."""
        await self.call("POST", "/images/load", raw=busybox_archive())

    async def down(self) -> list[str]:
        """End everything; what is left then."""
        await self._http.close()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self._process.wait, 30)
        done = await asyncio.to_thread(
            subprocess.run, [WHERRY, "--root", str(self.root), "down", "--purge"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return traces(self.root) + ([done.stderr] if done.returncode else [])

    # the API ----------------------------------------------------------------------------------------------------------
    async def call(self, method: str, target: str, body: Any = None, *, raw: bytes = b"") -> Any:
        """One request; the JSON of its answer, or its text. Raises Refused; OSError and wire errors when nobody answers."""
        path, _, query = target.partition("?")
        words = [(name, value) for name, _, value in (each.partition("=") for each in query.split("&") if each)]
        data = raw or (msgspec.json.encode(body) if body is not None else b"")
        headers = {"Content-Type": "application/x-tar" if raw else "application/json"}
        async with machine.timeout(CALL_S):
            answer = await self._http.request(method, path, query=words, headers=headers, body=data)
            try:
                text = await answer.read()
            finally:
                await answer.close()
        if answer.status >= 400:
            raise Refused(answer.status, text.decode(errors="replace"))
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text.decode(errors="replace")

    async def create(self, *command: str, name: str = "", **host: Any) -> str:
        """Create a container; its id."""
        body = {"Image": IMAGE, "Cmd": list(command), "HostConfig": host}
        made = await self.call("POST", "/containers/create" + (f"?name={name}" if name else ""), body)
        return str(made["Id"])

    async def run(self, *command: str, name: str = "", **host: Any) -> str:
        """Create and start one; its id."""
        id = await self.create(*command, name=name, **host)
        await self.call("POST", f"/containers/{id}/start")
        return id

    async def exec(self, id: str, *command: str) -> int:
        """Run a command in a container; its exit code."""
        made = await self.call("POST", f"/containers/{id}/exec", {"Cmd": list(command), "AttachStdout": True})
        await self.call("POST", f"/exec/{made['Id']}/start", {"Detach": False})
        shown = await self.call("GET", f"/exec/{made['Id']}/json")
        return int(shown["ExitCode"])

    async def containers(self) -> list[dict[str, Any]]:
        """All of them."""
        return list(await self.call("GET", "/containers/json?all=1"))

    async def hang_up(self) -> None:
        """Close the connections that are kept between requests."""
        await self._http.close()
        self._http = HttpClient(Endpoint.parse(f"unix:{self.socket}"))

    # counting ---------------------------------------------------------------------------------------------------------
    def census(self) -> Mapping[str, int]:
        """Count what the engine has on the machine now: it may not grow by what has gone."""
        kinds = Counter(self.kind(line) for line in of_kernel(self.root))
        kinds["process"] = len(processes(self.root))
        for place in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
            kinds["cgroup"] += sum(len(found) for _, found, _ in os.walk(place / "wherry" / self.identity))
        kinds["descriptor"] = len(os.listdir(f"/proc/{self.pid}/fd"))
        node = Instance.at(self.root)
        for place, what in ((node.root / "nodes/engine", "directory"), (node.run / "nodes/engine", "run directory")):
            for name in ("containers", "sandboxes", "exits", "trash", "runtime/crun"):
                with suppress(FileNotFoundError):
                    kinds[what] += len(os.listdir(place / name))
        return dict(kinds)

    @staticmethod
    def kind(line: str) -> str:
        """`nft`, `mount`, `link`, `claim`: the first word of a trace, rules by their text without numbers."""
        word = line.partition(" ")[0]
        return word if word != "nft" else re.sub(r"\b\d+\b", "N", line)

    async def baseline(self) -> Mapping[str, int]:
        """Count when nothing changes any more."""
        await self.hang_up()
        before: Mapping[str, int] = {}
        async with machine.timeout(60.0):
            while (now := self.census()) != before:
                before = now
                await machine.sleep(0.5)
        return before

    async def calm(self, before: Mapping[str, int], timeout_s: float = 60.0) -> list[str]:
        """Wait until nothing is more than `before` (what goes behind takes a moment); say what still is."""
        await self.hang_up()
        grown: list[str] = []
        with suppress(TimeoutError):
            async with machine.timeout(timeout_s):
                while grown := self._more_than(before):
                    await machine.sleep(0.2)
        return grown

    def _more_than(self, before: Mapping[str, int]) -> list[str]:
        now = self.census()
        return [
            f"{what}: {before.get(what, 0)} -> {count}" for what, count in now.items() if count > before.get(what, 0)
        ]

    def said(self) -> str:
        """The last warnings of the engine's log."""
        lines = (self.root.parent / f"{self.root.name}.log").read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if " W " in line or " E " in line][-20:])

    def memory_bytes(self) -> int:
        """PSS of the engine."""
        return pss_bytes(self.pid)

    def monitors(self) -> list[int]:
        """Pids of the conmons."""
        return [pid for pid, words in processes(self.root).items() if words.split()[0].endswith("conmon")]


def pss_bytes(pid: int) -> int:
    """A process's memory, shared pages in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)
