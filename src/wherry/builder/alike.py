"""Images as a source of the cache, by their history, as docker's classic builder has it (`--cache-from IMAGE`).

A RUN's layer is taken where all that the history says up to it is the same, on the same layers. A COPY's is taken where its
layer has the very files that would be copied, but for their times: history alone does not say what was in them.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.builder.cache import Built
from wherry.builder.layers import Listings
from wherry.clock import parse_rfc3339
from wherry.content.inflate import pieces
from wherry.content.protocol import Content, Digest
from wherry.content.tars import Tar
from wherry.content.tarwrite import Entry
from wherry.engine.types import Image

_NOP = re.compile(r"^/bin/sh -c #\(nop\)\s+")


@dataclass(frozen=True, slots=True)
class _Step:
    said: str
    layer: str
    diff_id: str
    created: float


class Alikes:
    """The images that a build may take layers of."""

    def __init__(self, content: Content, listings: Listings, images: Sequence[Image]) -> None:
        self._content = content
        self._listings = listings
        self._images = [steps for image in images if (steps := _steps(image))]

    async def run(
        self, history: Sequence[Mapping[str, Any]], layers: Sequence[str], said: str, lease: str
    ) -> Built | None:
        """The layer of a RUN after `history` on the diff ids `layers`, where an image has it."""
        for step in self._next(history, layers):
            if step.said == _plain(said) and (built := await self._built(step, lease)) is not None:
                return built
        return None

    async def copy(
        self, history: Sequence[Mapping[str, Any]], layers: Sequence[str], entries: Sequence[Entry], lease: str
    ) -> Built | None:
        """The layer of a COPY that would write `entries`, where an image has the same files."""
        for step in self._next(history, layers):
            is_same = bool(step.layer) and await self._same(Digest(step.layer), entries)
            if is_same and (built := await self._built(step, lease)) is not None:
                return built
        return None

    def _next(self, history: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> list[_Step]:
        """The step that each image has after the same steps."""
        found: list[_Step] = []
        for steps in self._images:
            before = steps[: len(history)]
            if len(steps) <= len(history) or [step.diff_id for step in before if step.diff_id] != list(layers):
                continue
            pairs = zip(before, history, strict=True)
            if all(step.said == _plain(str(ours.get("created_by", ""))) or _copies(step) for step, ours in pairs):
                found.append(steps[len(history)])
        return found

    async def _built(self, step: _Step, lease: str) -> Built | None:
        if not step.layer:
            return Built("", "", 0, step.created)
        blob = await self._content.cover(Digest(step.layer), lease)
        return None if blob is None else Built(step.layer, step.diff_id, blob.size_bytes, step.created)

    async def _same(self, layer: Digest, entries: Sequence[Entry]) -> bool:
        members = {each.path.strip("/"): each for each in await self._listings.members(layer)}
        if members.keys() != {entry.path.strip("/") for entry in entries}:
            return False
        for entry in entries:
            has = members[entry.path.strip("/")]
            if (has.kind, has.mode & 0o7777, has.uid, has.gid) != (
                entry.kind,
                entry.mode & 0o7777,
                entry.uid,
                entry.gid,
            ):
                return False
            if (has.link, has.size if has.kind == "file" else 0) != (
                entry.link,
                entry.size if entry.kind == "file" else 0,
            ):
                return False
        return await asyncio.to_thread(self._same_bytes, layer, entries)

    def _same_bytes(self, layer: Digest, entries: Sequence[Entry]) -> bool:
        wanted = {entry.path.strip("/"): entry.source for entry in entries if entry.kind == "file"}
        with self._content.path(layer).open("rb") as file:
            tar = Tar(pieces(file.fileno(), name=layer), name=layer)
            for member in tar:
                source = wanted.get(member.path.strip("/"))
                if member.kind != "file":
                    continue
                theirs = hashlib.sha256()
                for part in tar.data():
                    theirs.update(part)
                if isinstance(source, bytes):
                    ours = hashlib.sha256(source)
                elif isinstance(source, Path):
                    with source.open("rb") as own:
                        ours = hashlib.file_digest(own, "sha256")
                else:
                    ours = hashlib.sha256()
                if ours.digest() != theirs.digest():
                    return False
        return True


def _steps(image: Image) -> list[_Step]:
    """An image's history with its layers; nothing where they do not fit."""
    layers = list(image.layers)
    diff_ids = list((image.config.get("rootfs") or {}).get("diff_ids") or ())
    made: list[_Step] = []
    for entry in image.config.get("history") or ():
        said, layer, diff_id = _plain(str(entry.get("created_by", ""))), "", ""
        if not entry.get("empty_layer"):
            if not layers or not diff_ids:
                return []
            layer, diff_id = layers.pop(0), diff_ids.pop(0)
        try:
            created = parse_rfc3339(str(entry.get("created", "")))
        except ValueError:
            created = 0.0
        made.append(_Step(said, layer, diff_id, created))
    return [] if layers else made


def _plain(said: str) -> str:
    """What a builder wrote of a step, without what each writes in its own way."""
    return _NOP.sub("", said).strip().removesuffix("# buildkit").strip().removeprefix("RUN ")


def _copies(step: _Step) -> bool:
    """Whether a step copies: other builders name its files by their digests, so its layer has to say that it is the same."""
    return bool(step.layer) and step.said.split(" ", 1)[0] in ("COPY", "ADD", "FROM")
