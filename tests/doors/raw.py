"""Docker's API as bytes: one request over the socket, and hijacked streams."""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.doors.conftest import Docker
from wherry.wire.blocking import request

VERSION = "/v1.47"


@dataclass(frozen=True)
class Said:
    """An answer, read whole."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return self.json["message"]


def path_of(docker: Docker) -> str:
    return docker.environment["DOCKER_HOST"].removeprefix("unix://")


def call(docker: Docker, method: str, path: str, body: Mapping[str, Any] | None = None) -> Said:
    data = b"" if body is None else json.dumps(body).encode()
    answer = request(
        path_of(docker), method, VERSION + path, body=data, headers={"Content-Type": "application/json"}, timeout_s=30
    )  # fmt: skip
    try:
        return Said(answer.status, answer.read())
    finally:
        answer.close()


def hijack(docker: Docker, path: str, body: Mapping[str, Any] | None = None) -> socket.socket:
    """Send POST and take the connection over."""
    data = b"" if body is None else json.dumps(body).encode()
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(20)
    stream.connect(path_of(docker))
    head = f"POST {VERSION}{path} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    stream.sendall(head.encode() + data)
    seen = b""
    while not seen.endswith(b"\r\n\r\n"):
        piece = stream.recv(1)
        assert piece, seen
        seen += piece
    assert b" 101 " in seen.splitlines()[0], seen
    return stream


def read_all(stream: socket.socket) -> bytes:
    """Read until the other side ends."""
    seen = b""
    while piece := stream.recv(65536):
        seen += piece
    return seen


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Take a multiplexed stream apart: (1 stdout or 2 stderr, data), neighbours of one kind joined."""
    found: list[tuple[int, bytes]] = []
    while data:
        size = int.from_bytes(data[4:8], "big")
        kind, piece, data = data[0], data[8 : 8 + size], data[8 + size :]
        if found and found[-1][0] == kind:
            piece = found.pop()[1] + piece
        found.append((kind, piece))
    return found
