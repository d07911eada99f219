"""Detach keys: a sequence typed at a terminal that lets go of a process without ending it."""

from wherry.errors import BadRequest

DEFAULT = "ctrl-p,ctrl-q"
_SIGNS = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


class DetachKeys:
    """Watches what is typed for one sequence."""

    def __init__(self, text: str = DEFAULT) -> None:
        """`text` is such as `ctrl-p,ctrl-q` or `a,b`; empty means the default. Raises BadRequest."""
        self._keys = bytes(_key(word, text) for word in (text or DEFAULT).split(","))
        self._seen = 0

    @property
    def keys(self) -> bytes:
        """The sequence, as a terminal sends it."""
        return self._keys

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Take what was typed: (what to hand on now, whether the whole sequence has come)."""
        out = bytearray()
        for at, sign in enumerate(data):
            if sign == self._keys[self._seen]:
                self._seen += 1
                if self._seen == len(self._keys):
                    return bytes(out), True
                continue
            out += self._keys[: self._seen]  # it was not the sequence after all
            self._seen = 1 if sign == self._keys[0] and len(self._keys) > 1 else 0
            if not self._seen:
                out += data[at : at + 1]
        return bytes(out), False


def _key(word: str, whole: str) -> int:
    if len(word) == 1 and word.isascii():
        return ord(word)
    name, _, sign = word.partition("-")
    if name == "ctrl" and len(sign) == 1:
        if sign.isascii() and sign.isalpha():
            return ord(sign.lower()) - ord("a") + 1
        if sign in _SIGNS:
            return _SIGNS[sign]
    raise BadRequest(f"Invalid detach keys ({whole}) provided")
