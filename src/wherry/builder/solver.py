"""Doing a plan: stage by stage, each step from the cache or anew, to the layers and the config of the target."""

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from wherry.builder import keys
from wherry.builder.cache import Built, Cache
from wherry.builder.config import Json, document
from wherry.builder.context import Context
from wherry.builder.graph import Copy, Meta, Operation, Plan, Run, StagePlan, Workdir
from wherry.builder.layers import Listings, fetch, read_text
from wherry.builder.progress import BuildEvent, Progress
from wherry.builder.running import CommandFailed, Runner
from wherry.builder.selection import CopyError, Owner, Source, digest, entries, files, owner_of, select
from wherry.builder.source import Line
from wherry.builder.tree import Node, NotInTree, Tree, tree_of
from wherry.clock import Clock, parse_rfc3339, rfc3339_nano
from wherry.content.oci import Platform
from wherry.content.pack import write_layer
from wherry.content.protocol import Content, Digest
from wherry.content.tarwrite import Entry
from wherry.engine.types import Image
from wherry.errors import Cause, Invalid, NotFound, WherryError


@dataclass(slots=True)
class State:
    """Where a stage stands: its key, its layers (digest, diff id), its history; times None until a layer is there."""

    key: str
    layers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    history: list[Json] = field(default_factory=list[Json])
    created: float | None = None
    tree: Tree | None = None


class Solver:
    """One build. `images` are the base images by whole name; `epoch` is SOURCE_DATE_EPOCH, or None."""

    def __init__(
        self,
        *,
        plan: Plan,
        context: Context,
        images: Mapping[str, Image],
        content: Content,
        cache: Cache,
        listings: Listings,
        runner: Runner,
        platform: Platform,
        clock: Clock,
        lease: str,
        scratch: Path,
        progress: Progress,
        no_cache: bool,
        epoch: int | None,
    ) -> None:
        self._plan = plan
        self._context = context
        self._images = images
        self._content = content
        self._cache = cache
        self._listings = listings
        self._runner = runner
        self._platform = platform
        self._clock = clock
        self._lease = lease
        self._scratch = scratch
        self._progress = progress
        self._no_cache = no_cache
        self._epoch = epoch
        self._states: dict[int, State] = {}
        self._context_tree: Tree | None = None
        self._digests: dict[Path, str] = {}
        self._step = 0
        self._fetched = 0

    async def run(self) -> tuple[Json, Sequence[str]]:
        """Do all stages; return the target's config document and its layers, lowest first."""
        for warning in self._plan.warnings:
            self._progress(BuildEvent("warning", text=warning))
        for stage in self._plan.stages:
            self._begin(stage.text)
            state = self._states[stage.index] = await self._base(stage)
            for operation in stage.operations:
                self._begin(_text(operation))
                await self._do(state, operation)
        target = self._plan.stages[-1]
        state = self._states[target.index]
        return self._document(target, state), [layer for layer, _ in state.layers]

    def _begin(self, text: str) -> None:
        self._step += 1
        self._progress(BuildEvent("step", self._step, self._plan.steps, text))

    async def _base(self, stage: StagePlan) -> State:
        if stage.stage >= 0:
            below = self._states[stage.stage]
            return State(below.key, list(below.layers), list(below.history), below.created, below.tree)
        if not stage.image:
            return State(keys.SCRATCH)
        return await self._of_image(stage.image, stage.line)

    async def _of_image(self, name: str, line: Line) -> State:
        image = self._images[name]
        diff_ids = list((image.config.get("rootfs") or {}).get("diff_ids") or ())
        for layer in image.layers:
            if await self._content.cover(Digest(layer), self._lease) is None:
                raise self._failed(
                    line, NotFound(f"image {name}: its layer {layer} is not on this machine; pull it again")
                )
        history = [dict(entry) for entry in image.config.get("history") or ()]
        created = _time(image.config.get("created"))
        return State(keys.base_key(diff_ids), list(zip(image.layers, diff_ids, strict=True)), history, created)

    async def _do(self, state: State, operation: Operation) -> None:
        try:
            match operation:
                case Meta():
                    state.history.append(self._entry(state.created, operation.created_by, empty=True))
                case Run():
                    await self._step_of(state, operation, keys.step_key(state.key, operation))
                case Workdir():
                    await self._step_of(state, operation, keys.step_key(state.key, operation))
                case Copy():
                    await self._copy(state, operation)
        except (CopyError, CommandFailed, NotInTree) as error:
            raise self._plan.source.invalid(operation.line, str(error)) from error
        except Invalid as error:
            raise self._failed(operation.line, error) from error

    async def _step_of(self, state: State, operation: Run | Workdir, key: str) -> None:
        built = await self._known(key)
        if built is None:
            built = await (
                self._run(state, operation) if isinstance(operation, Run) else self._workdir(state, operation)
            )
            await self._cache.put(key, built)
        self._settle(state, operation, key, built)

    async def _copy(self, state: State, operation: Copy) -> None:
        sources: Sequence[Source] | None = None
        owners = operation.stage >= 0 or operation.image != ""  # only files of an image have owners of their own
        origin = None if not owners else await self._origin(operation)
        coarse = ""
        content: str | None = None
        if origin is not None:
            coarse = _hash(["from", origin.key, operation.sources])
            content = None if self._no_cache else await self._cache.content(coarse)
        if content is None:
            sources = await self._sources(operation, origin)
            content = digest(sources, self._digest_of, owners=owners)
            if coarse:
                await self._cache.put_content(coarse, content)
        key = keys.step_key(state.key, operation, content)
        built = await self._known(key)
        if built is None:
            sources = sources if sources is not None else await self._sources(operation, origin)
            tree = await self._tree(state)
            owner = await self._owner(tree, operation.chown) if operation.chown else None if owners else Owner(0, 0)
            made = entries(tree, sources, operation.dest, owner=owner, mode=operation.chmod, epoch=self._epoch)
            built = await self._pack(made)
            await self._cache.put(key, built)
        self._settle(state, operation, key, built)

    async def _origin(self, operation: Copy) -> State:
        if operation.stage >= 0:
            return self._states[operation.stage]
        return await self._of_image(operation.image, operation.line)

    async def _sources(self, operation: Copy, origin: State | None) -> Sequence[Source]:
        """Find the sources, with the digest of each file at hand."""
        if origin is None:
            if self._context_tree is None:
                self._context_tree = await asyncio.to_thread(tree_of, self._context.root, self._context.ignore)
            sources = select(self._context_tree, operation.sources, self._hint)
        else:
            sources = select(await self._tree(origin), operation.sources, lambda _: "")
            self._fetched += 1
            folder = self._scratch / f"copy-{self._fetched}"
            folder.mkdir()
            sources = await fetch(self._content, sources, folder)
        paths = {node.origin for node in files(sources) if isinstance(node.origin, Path)} - self._digests.keys()
        self._digests |= await asyncio.to_thread(_digests, sorted(paths))
        return sources

    def _hint(self, path: str) -> str:
        if self._context.ignore.hides(path) and (self._context.root / path).exists():
            return " for the build: .dockerignore leaves it out"
        return " in the build context"

    def _digest_of(self, node: Node) -> str:
        if not isinstance(node.origin, Path):
            raise CopyError("a file has no bytes")
        return self._digests[node.origin]

    async def _run(self, state: State, operation: Run) -> Built:
        def output(stream: str, data: bytes) -> None:
            text = data.decode(errors="replace")
            self._progress(BuildEvent("output", self._step, self._plan.steps, text, stream))

        layer, diff_id, size = await self._runner.run(operation, state.layers, output)
        if await self._content.cover(layer, self._lease) is None:
            raise NotFound(f"layer {layer}: it went before it could be kept; build again")
        return Built(layer, diff_id, size, self._now())

    async def _workdir(self, state: State, operation: Workdir) -> Built:
        tree = await self._tree(state)
        real = tree.target(operation.path, follow_last=True)
        there = tree.get(real)
        if there is not None:
            if there.kind != "dir":
                raise CopyError(f"WORKDIR {operation.path}: it is a file in the image")
            return Built("", "", 0, self._now())
        owner = await self._owner(tree, operation.user) if operation.user else Owner(0, 0)
        made = entries(
            tree,
            [Source("", Node("dir"), ())],
            f"/{real}/",
            owner=owner,
            mode=-1,
            made_at=int(state.created or 0),
            epoch=self._epoch,
        )
        return await self._pack(made)

    async def _owner(self, tree: Tree, text: str) -> Owner:
        passwd = await read_text(self._content, tree, "etc/passwd")
        return owner_of(text, passwd, await read_text(self._content, tree, "etc/group"))

    async def _pack(self, made: Sequence[Entry]) -> Built:
        layer = await write_layer(self._content, made, lease=self._lease)
        return Built(layer.digest, layer.diff_id, layer.size_bytes, self._now())

    async def _known(self, key: str) -> Built | None:
        if self._no_cache:
            return None
        built = await self._cache.find(key, self._lease)
        if built is not None:
            self._progress(BuildEvent("cached", self._step, self._plan.steps, built.digest))
        return built

    def _settle(self, state: State, operation: Operation, key: str, built: Built) -> None:
        state.key = key
        state.tree = state.tree if not built.digest else None
        state.created = built.created
        if built.digest:
            state.layers.append((built.digest, built.diff_id))
            self._progress(BuildEvent("layer", self._step, self._plan.steps, built.digest))
        state.history.append(self._entry(built.created, operation.created_by, empty=not built.digest))

    async def _tree(self, state: State) -> Tree:
        if state.tree is None:
            state.tree = await self._listings.tree([Digest(layer) for layer, _ in state.layers])
        return state.tree

    def _entry(self, created: float | None, created_by: str, *, empty: bool) -> Json:
        made: Json = {"created": created, "created_by": created_by}
        return {**made, "empty_layer": True} if empty else made

    def _document(self, target: StagePlan, state: State) -> Json:
        """Make the config. What has no time of its own takes the first layer's, so that a cached build gives the same id."""
        own = [entry["created"] for entry in state.history if isinstance(entry.get("created"), float)]
        first = own[0] if own else self._now()
        history: list[Json] = []
        for entry in state.history:
            when = entry.get("created", "")
            when = first if when is None else when
            history.append({**entry, "created": when if isinstance(when, str) else rfc3339_nano(when)})
        return document(
            target.config,
            platform=self._platform,
            created=rfc3339_nano(state.created if state.created is not None else first),
            diff_ids=[diff_id for _, diff_id in state.layers],
            history=history,
        )

    def _now(self) -> float:
        return float(self._epoch) if self._epoch is not None else self._clock.now()

    def _failed(self, line: Line, error: WherryError) -> WherryError:
        """The same error, with the line that it happened at."""
        place, text = self._plan.source.pointed(line, error.message)
        return type(error)(text, causes=[Cause(place, type(error).__name__, error.message)])


def _text(operation: Operation) -> str:
    return operation.line.text


def _hash(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()


def _digests(paths: Sequence[Path]) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise CopyError(f"{path.name!r} cannot be read: {error.strerror}") from error
        with open(fd, "rb") as file:
            found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _time(text: Any) -> float | None:
    try:
        return parse_rfc3339(text) if isinstance(text, str) else None
    except ValueError:
        return None
