"""The command line's way to a Docker socket: which one, requests, Docker's errors as ours, and joined streams."""

import json
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from wherry.wire.blocking import Answer, request

API = "/v1.47"


class Refused(Exception):
    """The engine said no; the message is its own. `exit_code` is the command's."""

    def __init__(self, message: str, status: int, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.exit_code = exit_code


def socket_path() -> str:
    """The socket to use: DOCKER_HOST when it is a unix socket, else the first node's of the instance."""
    host = os.environ.get("DOCKER_HOST", "")
    if host.startswith("unix://"):
        return host.removeprefix("unix://")
    if host:
        raise Refused(f"DOCKER_HOST {host!r}: only unix:// is supported by wherry's own command; use docker", 0, 125)
    from wherry.daemon.instance import DEFAULT_ROOT, Instance

    instance = Instance.at(os.environ.get("WHERRY_ROOT", DEFAULT_ROOT))
    for node in instance.load().nodes:
        if node.real:
            return str(instance.docker_socket(node.name))
    raise Refused(f"{instance.root}: this instance has simulated nodes only; containers need a real one", 0, 125)


def call(
    method: str,
    path: str,
    *,
    query: Mapping[str, Any] | None = None,
    body: Any = None,
    data: bytes | Iterator[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = 60.0,
) -> Answer:
    """Send one request; raises Refused with Docker's message for an answer of 400 and above."""
    target = API + path
    if query:
        target += "?" + urlencode({key: value for key, value in query.items() if value is not None}, doseq=True)
    fields = dict(headers or {})
    content: bytes | Iterator[bytes] = b""
    if body is not None:
        content = json.dumps(body).encode()
        fields.setdefault("Content-Type", "application/json")
    elif data is not None:
        content = data
    answer = request(socket_path(), method, target, headers=fields, body=content, timeout_s=timeout_s)
    if answer.status >= 400:
        text = answer.read()
        answer.close()
        try:
            message = str(json.loads(text)["message"])
        except (ValueError, KeyError, TypeError):
            message = text.decode(errors="replace").strip() or f"status {answer.status}"
        raise Refused(message, answer.status)
    return answer


def fetch(method: str, path: str, **more: Any) -> Any:
    """The decoded JSON of an answer; None for an empty one."""
    answer = call(method, path, **more)
    try:
        text = answer.read()
    finally:
        answer.close()
    return json.loads(text) if text.strip() else None


def part(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def show_progress(answer: Answer, *, quiet: bool = False) -> dict[str, Any]:
    """Print the progress lines of a pull, push or build; return the last `aux`. Raises Refused for an error line."""
    aux: dict[str, Any] = {}
    rest = b""
    last = ""
    for chunk in answer.chunks():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.strip():
                continue
            event = json.loads(line)
            if "error" in event:
                raise Refused(str(event["error"]), 0)
            if "aux" in event:
                aux = event["aux"]
            if quiet:
                continue
            if "stream" in event:
                sys.stdout.write(event["stream"])
                sys.stdout.flush()
            elif "status" in event:
                words = f"{event['id']}: {event['status']}" if event.get("id") else event["status"]
                if words != last:
                    sys.stdout.write(words + "\n")
                    sys.stdout.flush()
                last = words
    answer.close()
    return aux


def demultiplex(chunks: Iterator[bytes], *, tty: bool) -> None:
    """Write a multiplexed stream (or, with a tty, a raw one) to our own output."""
    buffer = b""
    for chunk in chunks:
        if tty:
            _write(1, chunk)
            continue
        buffer += chunk
        while len(buffer) >= 8:
            size = int.from_bytes(buffer[4:8], "big")
            if len(buffer) < 8 + size:
                break
            _write(2 if buffer[0] == 2 else 1, buffer[8 : 8 + size])
            buffer = buffer[8 + size :]


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class Terminal:
    """Our terminal in raw mode while entered; `on_resize(rows, columns)` is called at once and at each change."""

    def __init__(self, on_resize: Any) -> None:
        self._on_resize = on_resize
        self._saved: Any = None

    def __enter__(self) -> "Terminal":
        import termios
        import tty

        if sys.stdin.isatty():
            self._saved = termios.tcgetattr(0)
            tty.setraw(0)
        signal.signal(signal.SIGWINCH, lambda *_: self._resize())
        self._resize()
        return self

    def _resize(self) -> None:
        try:
            columns, rows = os.get_terminal_size(1)
        except OSError:
            return
        try:
            self._on_resize(rows, columns)
        except Exception:  # the process has ended meanwhile: nothing to resize
            return

    def __exit__(self, *error: object) -> None:
        import termios

        signal.signal(signal.SIGWINCH, signal.SIG_DFL)
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)


def join(answer: Answer, *, tty: bool, stdin: bool) -> None:
    """Join our streams to a hijacked connection until the other side ends."""
    connection, first = answer.hijack()
    connection.settimeout(None)
    connection.setblocking(True)
    reads_stdin = stdin

    def pieces() -> Iterator[bytes]:
        nonlocal reads_stdin
        if first:
            yield first
        while True:
            watched = [connection, 0] if reads_stdin else [connection]
            readable, _, _ = select.select(watched, [], [])
            if 0 in readable:
                data = os.read(0, 32768)
                if data:
                    connection.sendall(data)
                else:
                    reads_stdin = False
                    connection.shutdown(1)
            if connection in readable:
                data = connection.recv(65536)
                if not data:
                    return
                yield data

    try:
        demultiplex(pieces(), tty=tty)
    except ConnectionError:
        return
    finally:
        connection.close()
