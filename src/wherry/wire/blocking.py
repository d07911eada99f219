"""A small blocking HTTP client over a unix socket, for the command line: it imports nearly nothing, so it starts at once."""

import socket
from collections.abc import Iterator, Mapping

from wherry.errors import BadRequest, DeadlineExceeded, NotFound, Unavailable

CHUNK_BYTES = 256 * 1024


class Answer:
    """An answer whose body is read once; close it when done."""

    def __init__(self, connection: socket.socket, timeout_s: float | None) -> None:
        self._socket = connection
        self._buffer = b""
        self._timeout_s = timeout_s
        head = self._head()
        lines = head.split(b"\r\n")
        self.status = int(lines[0].split(b" ", 2)[1])
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            self.headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")

    def _head(self) -> bytes:
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > 65536 or not self._more():
                raise Unavailable("the server's answer is no HTTP answer")
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if head.startswith(b"HTTP/1.1 100"):
            return self._head()
        return head

    def _more(self) -> bool:
        try:
            data = self._socket.recv(CHUNK_BYTES)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {self._timeout_s:g} s") from None
        self._buffer += data
        return bool(data)

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces, as they come."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunked()
        elif "content-length" in self.headers:
            left = int(self.headers["content-length"])
            while left:
                if not self._buffer and not self._more():
                    raise Unavailable("the server closed in the middle of an answer")
                piece, self._buffer = self._buffer[:left], self._buffer[left:]
                left -= len(piece)
                yield piece
        else:
            while self._buffer or self._more():
                piece, self._buffer = self._buffer, b""
                yield piece

    def _chunked(self) -> Iterator[bytes]:
        while True:
            while b"\r\n" not in self._buffer:
                if not self._more():
                    raise Unavailable("the server closed in the middle of an answer")
            line, self._buffer = self._buffer.split(b"\r\n", 1)
            size = int(line.split(b";", 1)[0], 16)
            while len(self._buffer) < size + 2:
                if not self._more():
                    raise Unavailable("the server closed in the middle of an answer")
            piece, self._buffer = self._buffer[:size], self._buffer[size + 2 :]
            if not size:
                return
            yield piece

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks())

    def hijack(self) -> tuple[socket.socket, bytes]:
        """The raw connection after an upgrade, and what has been read past the head; the caller closes it."""
        rest, self._buffer = self._buffer, b""
        return self._socket, rest

    def close(self) -> None:
        """Let go of the connection."""
        self._socket.close()


def request(
    path: str,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | Iterator[bytes] = b"",
    timeout_s: float | None = 30.0,
) -> Answer:
    """Send one request to the unix socket `path`. An iterator is sent chunked.

    Raises NotFound when there is no such socket, Unavailable when nobody listens, DeadlineExceeded.
    """
    if "\r" in target or "\n" in target or " " in target:
        raise BadRequest(f"{target!r}: not a request target")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        connection.connect(path)
        fields = {"Host": "localhost", "Connection": "close", **(headers or {})}
        if isinstance(body, bytes):
            fields["Content-Length"] = str(len(body))
        else:
            fields["Transfer-Encoding"] = "chunked"
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        if isinstance(body, bytes):
            connection.sendall(head.encode("latin-1") + b"\r\n" + body)
        else:
            connection.sendall(head.encode("latin-1") + b"\r\n")
            for piece in body:
                if piece:
                    connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            connection.sendall(b"0\r\n\r\n")
        return Answer(connection, timeout_s)
    except FileNotFoundError:
        connection.close()
        raise NotFound(f"nothing listens at {path}: is the instance up? (wherry status)") from None
    except (ConnectionRefusedError, BrokenPipeError, ConnectionResetError) as error:
        connection.close()
        raise Unavailable(f"{path}: {error}") from None
    except PermissionError:
        connection.close()
        raise Unavailable(f"{path}: this user may not use it; try as root") from None
    except BaseException:
        connection.close()
        raise
