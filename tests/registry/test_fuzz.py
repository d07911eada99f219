"""The administration's REST API by its own OpenAPI, asked with what schemathesis makes up: no 500, and no word untrue."""

import base64
import contextlib
import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

API = "/api/registry/v1"
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
FEW = 10
FRAMING = {"transfer-encoding", "content-length", "expect", "upgrade", "connection", "host"}
"""Headers of HTTP itself: what is wrong in them is refused before the API is asked, in no shape of its own."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A registry in a process of its own; its address and its directory."""
    place = tmp_path_factory.mktemp("fuzzed")
    argv = [sys.executable, "-m", "wherry.cli.main", "registry", "serve", "--root", str(place / "in"), "--listen"]
    with subprocess.Popen(
        [*argv, "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=place
    ) as process:
        assert process.stdout is not None
        found = re.search(r"http://(\S+)", process.stdout.readline())
        assert found is not None
        yield found[1], place
        assert process.poll() is None  # it lives after all that was asked
        process.terminate()
    assert [path.name for path in place.iterdir()] == ["in"]


def fuzz(served: tuple[str, Path], examples: int) -> int:
    """Ask each operation with words that fit its schema and with words that do not; return how many it has.

    With few examples each gets one of the two: to make a strategy costs more than the questions.
    """
    address, place = served
    token = (place / "in" / "registry-token").read_text().strip()
    schema = schemathesis.openapi.from_url(f"http://{address}{API}/openapi.json", timeout=10)
    count = 0
    with requests.Session() as session:
        session.auth = ("fuzz", token)
        for result in schema.get_all_operations():
            operation = result.ok()
            count += 1
            modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            for mode in modes if examples > FEW else modes[count % 2 :][:1]:
                _ask(operation, mode, session, examples)
    return count


def _ask(operation: Any, mode: GenerationMode, session: requests.Session, examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate], derandomize=examples <= FEW,
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        assume(not FRAMING & {name.lower() for name in case.headers or ()})
        response = case.call(session=session, timeout=20)
        case.validate_response(response, checks=CHECKS)

    ask()


def test_the_administration_keeps_its_word_whatever_it_is_asked(served: tuple[str, Path]) -> None:
    assert fuzz(served, 4) > 30


@pytest.mark.soak
def test_the_administration_keeps_its_word_for_long(served: tuple[str, Path]) -> None:
    assert fuzz(served, 300) > 30


CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"
MOST_MIB = 48
"""What the hostile connections of a test may cost the registry in memory: far below what they send."""


def test_bodies_without_an_end_and_silent_clients_cost_little_and_hold_up_nobody(served: tuple[str, Path]) -> None:
    address, place = served
    host, _, port = address.partition(":")
    token = (place / "in" / "registry-token").read_text().strip()
    credentials = "Basic " + base64.b64encode(f"any:{token}".encode()).decode()
    begun = requests.post(f"http://{address}/v2/web/blobs/uploads/", auth=("any", token), timeout=20)
    assert begun.status_code == 202
    before = _memory_mib(place)

    def connect(words: str = "") -> socket.socket:
        connection = socket.create_connection((host, int(port)), timeout=20)
        connection.sendall(words.encode())
        return connection

    def head(method: str, path: str, length: str) -> str:
        return f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {credentials}\r\n{length}\r\n\r\n"

    chunked, short = "Transfer-Encoding: chunked", "Content-Length: 1000000000000"
    path = begun.headers["Location"]
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect())
        for words in ("GET /v2/ HTTP/1.1\r\nHost", head("PUT", f"{path}?digest=sha256:{'0' * 64}", short),
                      head("GET", "/v2/", "X: y")[:-2], head("POST", "/v2/token", "Content-Length: 9")):  # fmt: skip
            stack.enter_context(connect(words))
        for refused in ("/v2/web/manifests/1", f"{API}/people", "/v2/token"):
            method = "PUT" if "manifests" in refused else "POST"
            endless = stack.enter_context(connect(head(method, refused, chunked)))
            assert b" 413 " in _send_until_answered(endless)
        for _ in range(4):  # blobs may be of any size: they go to the disk
            other = requests.post(f"http://{address}/v2/web/blobs/uploads/", auth=("any", token), timeout=20)
            endless = stack.enter_context(connect(head("PATCH", other.headers["Location"], chunked)))
            for _ in range(400):
                endless.sendall(CHUNK)
        slow = stack.enter_context(connect(head("GET", "/v2/_catalog", "X: y")))
        slow.sendall(b"GET /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)  # asks on and on, and reads nothing
        assert requests.get(f"http://{address}/v2/", auth=("any", token), timeout=20).status_code == 200
        assert _memory_mib(place) - before < MOST_MIB


def _send_until_answered(connection: socket.socket) -> bytes:
    """Send a body without an end until the server says something."""
    for _ in range(2000):
        if select.select([connection], [], [], 0)[0]:
            break
        with contextlib.suppress(ConnectionError):
            connection.sendall(CHUNK)
    return connection.recv(65536)


def _memory_mib(place: Path) -> float:
    """The most that the registry whose directory this is has had in memory."""
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(place / "in") in (each / "cmdline").read_text():
                return int((each / "status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    raise AssertionError("the registry is gone")
