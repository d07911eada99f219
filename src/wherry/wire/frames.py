"""WebSocket frames: writing, and reading piece by piece. Pure. Source: RFC 6455, section 5."""

import enum
from dataclasses import dataclass


class Opcode(enum.IntEnum):
    """What a frame is."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Violation(Exception):
    """The peer broke the protocol: `code` is the close code that says how."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, unmasked."""

    opcode: Opcode
    payload: bytes
    final: bool = True


def mask(data: bytes, key: bytes) -> bytes:
    """XOR `data` with the 4-byte `key`, repeated: masks and unmasks. As one big integer: ~1 GB/s."""
    size = len(data)
    if not size:
        return b""
    keys = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(keys, "little")).to_bytes(size, "little")


def encode(opcode: Opcode, payload: bytes, *, final: bool = True, key: bytes | None = None) -> bytes:
    """Write one frame; a client's has a `key` of 4 random bytes, a server's none."""
    size = len(payload)
    first = opcode | (0x80 if final else 0)
    flag = 0x80 if key is not None else 0
    if size < 126:
        head = bytes((first, flag | size))
    elif size < 65536:
        head = bytes((first, flag | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, flag | 127)) + size.to_bytes(8, "big")
    return head + payload if key is None else head + key + mask(payload, key)


class FrameReader:
    """Turns arriving bytes into frames. `masked`: whether the peer must mask (a client must, a server must not).

    A frame larger than `limit_bytes` is refused from its head, before its payload is taken in.
    """

    def __init__(self, *, masked: bool, limit_bytes: int) -> None:
        self._masked = masked
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._checked = False

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes; return the frames that are whole now. Raises Violation."""
        self._buffer += data
        frames: list[Frame] = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        buffer = self._buffer
        have = len(buffer)
        if have < 2:
            return None
        first, second = buffer[0], buffer[1]
        if first & 0x70:
            raise Violation(1002, "a reserved bit is set, and no extension was agreed on")
        try:
            opcode = Opcode(first & 0x0F)
        except ValueError:
            raise Violation(1002, f"opcode {first & 0x0F} is not known") from None
        final = bool(first & 0x80)
        if bool(second & 0x80) != self._masked:
            raise Violation(1002, "a client's frames must be masked, a server's must not")
        size = second & 0x7F
        at = 2
        if opcode >= Opcode.CLOSE and (size > 125 or not final):
            raise Violation(1002, "a control frame is fragmented or longer than 125 bytes")
        if size >= 126:
            wide = 2 if size == 126 else 8
            at += wide
            if have < at:
                return None
            size = int.from_bytes(buffer[2:at], "big")
            if size < (126 if wide == 2 else 65536) or size >> 63:
                raise Violation(1002, "a frame's length is not in its shortest form")
        if size > self._limit_bytes:
            raise Violation(1009, f"a frame has {size} bytes; at most {self._limit_bytes} are taken")
        key = b""
        if self._masked:
            key = bytes(buffer[at : at + 4])
            at += 4
        if have < at + size:
            return None
        payload = bytes(memoryview(buffer)[at : at + size])
        del buffer[: at + size]
        return Frame(opcode, mask(payload, key) if key else payload, final)


def close_payload(code: int, reason: str = "") -> bytes:
    """Write a close frame's payload; the reason is cut to what fits, at a whole character."""
    return code.to_bytes(2, "big") + reason.encode()[:123].decode(errors="ignore").encode()


def parse_close(payload: bytes) -> tuple[int, str]:
    """Read a close frame's payload; 1005 means that no code was given. Raises Violation for codes nobody may send."""
    if not payload:
        return 1005, ""
    if len(payload) == 1:
        raise Violation(1002, "a close frame has one byte")
    code = int.from_bytes(payload[:2], "big")
    if not (code in (1000, 1001, 1002, 1003) or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise Violation(1002, f"close code {code} may not be sent")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise Violation(1007, "the reason of a close frame is not UTF-8") from None
