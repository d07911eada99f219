"""The command line's way to a Docker socket: which one, requests, Docker's errors as ours, and joined streams."""

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any, cast

from wherry.errors import WherryError
from wherry.wire.blocking import Answer, request

API = "/v1.47"
PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"


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
    root = os.environ.get("WHERRY_ROOT", "")
    if root not in _sockets:
        _sockets[root] = _first_node(root)
    return _sockets[root]


_sockets: dict[str, str] = {}
"""The socket of each root that was asked for."""


def _first_node(root: str) -> str:
    """The socket of an instance's first real node. What can be read by hand is: the module that knows instances costs
    more to import than all the rest of `wherry ps`.
    """
    if root and os.geteuid() == 0:
        try:
            with open(os.path.join(root, "instance.json"), "rb") as file:
                plan = json.loads(file.read())
            name = next(node["name"] for node in plan["nodes"] if node["real"])
            return f"/run/wherry/{plan['id']}/nodes/{name}/docker.sock"
        except (OSError, ValueError, LookupError, TypeError, StopIteration):
            pass  # whoever knows instances says what is wrong
    from wherry.daemon.instance import DEFAULT_ROOT, Instance

    instance = Instance.at(root or DEFAULT_ROOT)
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
        target += "?" + "&".join(_pairs(query))
    fields = dict(headers or {})
    content: bytes | Iterator[bytes] = b""
    if body is not None:
        content = json.dumps(body).encode()
        fields.setdefault("Content-Type", "application/json")
    elif data is not None:
        content = data
    try:
        answer = request(socket_path(), method, target, headers=fields, body=content, timeout_s=timeout_s)
    except WherryError as error:
        raise Refused(error.message, 0) from None
    if answer.status >= 400:
        text = answer.read() if method != "HEAD" else b""
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
    """A name as a part of a path, or a value of a query. (`urllib.parse` costs more to import than a request takes.)"""
    return "".join(chr(each) if each in PLAIN else f"%{each:02X}" for each in name.encode(errors="surrogateescape"))


def _pairs(query: Mapping[str, Any]) -> Iterator[str]:
    for key, value in query.items():
        for each in cast("list[Any]", value) if isinstance(value, list) else [value]:
            if each is not None:
                yield f"{key}={part(str(each))}"


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
    sys.stdout.flush()
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
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # somebody made our output non-blocking
            select.select([], [fd], [])


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
            tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead stays
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
    connection.setblocking(False)
    try:
        demultiplex(_exchange(connection, first, reads_stdin=stdin), tty=tty)
    finally:
        connection.close()


def _exchange(connection: socket.socket, first: bytes, *, reads_stdin: bool) -> Iterator[bytes]:
    """Yield what comes, while stdin is sent as fast as the other side takes it: neither waits for the other."""
    waiting = b""
    if first:
        yield first
    while True:
        read_from = [connection, 0] if reads_stdin and not waiting else [connection]
        readable, writable, _ = select.select(read_from, [connection] if waiting else [], [])
        try:
            if 0 in readable:
                waiting = _read_stdin()
                if not waiting:
                    reads_stdin = False
                    connection.shutdown(socket.SHUT_WR)
            elif writable:
                waiting = waiting[connection.send(waiting) :]
        except BlockingIOError:
            continue
        except OSError:  # the process reads no more; what it has written still comes
            reads_stdin, waiting = False, b""
        if connection in readable:
            try:
                data = connection.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionError:
                return
            if not data:
                return
            yield data


def _read_stdin() -> bytes:
    try:
        return os.read(0, 32768)
    except OSError:  # closed
        return b""
