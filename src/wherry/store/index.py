"""Keys in order: cheap to add and remove one, cheap to page through those under a prefix."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

_CHUNK = 512


def prefix_end(prefix: str) -> str:
    """The first text after all that begin with `prefix`; "" when there is none (an empty prefix)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""


class SortedKeys:
    """A set of texts in code point order (which is also the order of their UTF-8 bytes).

    A list of sorted lists of at most 1,024 keys: adding moves one short list, whatever the total. A range is given by
    its bounds `low <= key < high`; high "" is the end of all.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        ordered = sorted(set(keys))
        self._chunks = [ordered[i : i + _CHUNK] for i in range(0, len(ordered), _CHUNK)]
        self._firsts = [chunk[0] for chunk in self._chunks]

    def add(self, key: str) -> None:
        """Put in `key`, which must not be there yet."""
        if not self._chunks:
            self._chunks, self._firsts = [[key]], [key]
            return
        at = max(0, bisect_right(self._firsts, key) - 1)
        chunk = self._chunks[at]
        insort(chunk, key)
        self._firsts[at] = chunk[0]
        if len(chunk) > 2 * _CHUNK:
            self._chunks.insert(at + 1, chunk[_CHUNK:])
            self._firsts.insert(at + 1, chunk[_CHUNK])
            del chunk[_CHUNK:]

    def remove(self, key: str) -> None:
        """Take out `key`, which must be there."""
        at = bisect_right(self._firsts, key) - 1
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, key)]
        if chunk:
            self._firsts[at] = chunk[0]
        else:
            del self._chunks[at], self._firsts[at]

    def range(self, low: str, high: str) -> Iterator[str]:
        """Walk the keys from `low` up to before `high`. The set must not change on the way."""
        at, offset = self._find(low)
        for chunk in self._chunks[at:]:
            stop = len(chunk) if not high or chunk[-1] < high else bisect_left(chunk, high)
            yield from chunk[offset:stop]
            if stop < len(chunk):
                return
            offset = 0

    def count(self, low: str, high: str) -> int:
        """Say how many keys are in the range, without walking them."""
        if high and high <= low:
            return 0
        first, start = self._find(low)
        if high:
            last, stop = self._find(high)
        else:
            last, stop = len(self._chunks), 0
        return sum(len(chunk) for chunk in self._chunks[first:last]) + stop - start

    def _find(self, key: str) -> tuple[int, int]:
        """The place (chunk, offset) of the first key that is not less than `key`."""
        at = max(0, bisect_right(self._firsts, key) - 1)
        if at >= len(self._chunks):
            return at, 0
        offset = bisect_left(self._chunks[at], key)
        return (at, offset) if offset < len(self._chunks[at]) else (at + 1, 0)
