"""Sparse files in tars: where their pieces of data lie. GNU's own header, and pax 0.0, 0.1 and 1.0.

A map is [(offset, length)] in order, without overlap, ending at or before the file's real size. Source: GNU tar, "Storing
Sparse Files". Reading bounds what a hostile map can cost: PIECES_MAX entries.
"""

from collections.abc import Callable, Sequence

from wherry.errors import Damaged, Invalid

PIECES_MAX = 65536
BLOCK = 512
Map = list[tuple[int, int]]


def check(pieces: Map, real_size: int, stored: int, what: str) -> Map:
    """Return the map, without empty pieces, if it can be one of a file. Raises Damaged."""
    end = total = 0
    for offset, length in pieces:
        if offset < end or length < 0 or offset + length > real_size:
            raise Damaged(f"{what}: the map of a sparse file overlaps, or goes past its end")
        end = offset + length
        total += length
    if total != stored:
        raise Damaged(f"{what}: the map of a sparse file has {total} bytes, and {stored} are stored")
    return [(offset, length) for offset, length in pieces if length]


def of_header(
    block: bytes, more: Callable[[], bytes], number: Callable[[bytes, int, int, str], int]
) -> tuple[Map, int]:
    """Read GNU's own header (type S) and the blocks after it that `more` gives: the map and the real size."""
    found: Map = []
    real_size = number(block, 483, 12, "real size")
    start, count, extended = 386, 4, block[482]
    while True:
        for place in range(start, start + 24 * count, 24):
            if block[place] == 0:
                break
            found.append((number(block, place, 12, "offset"), number(block, place + 12, 12, "length")))
        if not extended:
            return found, real_size
        _bound(len(found))
        block = more()
        start, count, extended = 0, 21, block[504]


def of_records(records: Sequence[tuple[bytes, bytes]]) -> tuple[Map, int, bytes]:
    """Read pax formats 0.0 and 0.1: the map, the real size (-1 if it is not said) and the name (or b"")."""
    offsets: list[int] = []
    lengths: list[int] = []
    size, name = -1, b""
    for key, value in records:
        match key:
            case b"GNU.sparse.offset":
                offsets.append(decimal(value))
            case b"GNU.sparse.numbytes":
                lengths.append(decimal(value))
            case b"GNU.sparse.map":
                numbers = [decimal(part) for part in value.split(b",")] if value else []
                offsets, lengths = numbers[::2], numbers[1::2]
            case b"GNU.sparse.size" | b"GNU.sparse.realsize":
                size = decimal(value)
            case b"GNU.sparse.name":
                name = value
            case _:
                pass
        _bound(len(offsets))
    if len(offsets) != len(lengths):
        raise Damaged("a pax header has half a sparse map")
    return list(zip(offsets, lengths, strict=True)), size, name


def of_data(more: Callable[[], bytes]) -> tuple[Map, int]:
    """Read pax format 1.0: the map lies in blocks before the data. Returns it and the bytes it took."""
    text = b""
    taken = 0

    def line() -> int:
        nonlocal text, taken
        while b"\n" not in text:
            if len(text) > 32:
                raise Damaged("the map of a sparse file cannot be read")
            text += more()
            taken += BLOCK
        head, _, text = text.partition(b"\n")
        return decimal(head)

    count = line()
    _bound(count)
    found = [(line(), line()) for _ in range(count)]
    return found, taken


def decimal(text: bytes) -> int:
    """Read digits. Raises Damaged."""
    if not text.isdigit() or len(text) > 19:
        raise Damaged(f"the map of a sparse file has the number {text[:40]!r}")
    return int(text)


def _bound(count: int) -> None:
    if count > PIECES_MAX:
        raise Invalid(f"a sparse file in more than {PIECES_MAX} pieces")
