"""Doing a plan: stages beside each other, each step from the cache or anew, to the layers and the config of the target."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from wherry.builder import keys
from wherry.builder.alike import Alikes
from wherry.builder.cache import Built, Cache
from wherry.builder.config import Json, document
from wherry.builder.context import Context
from wherry.builder.exchange import Imports
from wherry.builder.flights import Flights
from wherry.builder.git import GitAccess
from wherry.builder.graph import Plan, StagePlan
from wherry.builder.layers import Listings, read_text
from wherry.builder.mounting import Mounts
from wherry.builder.operations import Copy, From, Meta, Operation, Run, RunMount, Workdir
from wherry.builder.progress import BuildEvent, Progress
from wherry.builder.running import CommandFailed, Runner
from wherry.builder.selection import CopyError, Owner, Source, entries, owner_of
from wherry.builder.source import Line
from wherry.builder.sourcing import Files, Sourcing
from wherry.builder.squeezing import rewritten
from wherry.builder.tree import Node, NotInTree, Tree
from wherry.clock import Clock, parse_rfc3339, rfc3339_nano
from wherry.content.oci import Platform
from wherry.content.pack import write_layer
from wherry.content.protocol import Content, Digest
from wherry.content.tarwrite import Entry
from wherry.engine.types import Image
from wherry.errors import Cause, Invalid, NotFound, WherryError


@dataclass(slots=True)
class State:
    """Where a stage stands: its key, its layers (digest, diff id), its history; times None until a layer is there.

    `tree` is the tree of the first `laid` layers; it is shared with other states and never changed in place.
    """

    key: str
    layers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    history: list[Json] = field(default_factory=list[Json])
    created: float | None = None
    tree: Tree | None = None
    laid: int = 0


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all builds of one builder share."""

    content: Content
    cache: Cache
    listings: Listings
    mounts: Mounts
    flights: Flights
    slots: asyncio.Semaphore
    clock: Clock


@dataclass(frozen=True, slots=True)
class Job:
    """One build. `images` are the base images by whole name; `epoch` is SOURCE_DATE_EPOCH, or None.

    `fresh` are stages whose steps are not taken from the cache; None is all of them. `secrets` are values by id, `agents` the
    sockets of SSH agents, `access` how git signs in.
    """

    plan: Plan
    context: Context
    images: Mapping[str, Image]
    runner: Runner
    platform: Platform
    lease: str
    scratch: Path
    progress: Progress
    contexts: Mapping[str, Context] = field(default_factory=dict[str, Context])
    secrets: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    agents: Mapping[str, str] = field(default_factory=dict[str, str])
    fresh: frozenset[str] | None = frozenset()
    epoch: int | None = None
    imports: Imports | None = None
    alike: Alikes | None = None
    access: GitAccess | None = None


class Solver:
    """Runs one build's plan."""

    def __init__(self, shop: Workshop, job: Job) -> None:
        self._shop = shop
        self._job = job
        self._tasks: dict[int, asyncio.Task[State]] = {}
        self._sourcing = Sourcing(shop.content, shop.cache, job.context, job.contexts, job.scratch, job.access)
        self._keys: list[tuple[int, str]] = []

    def keys(self, *, whole: bool = True) -> Sequence[str]:
        """The keys of every step, for an export of the cache; else only of the target and the stages that it stands on."""
        stages = {stage.index: stage for stage in self._job.plan.stages}
        chain, at = set[int](), self._job.plan.stages[-1].index
        while at >= 0:
            chain.add(at)
            at = stages[at].stage
        return list(dict.fromkeys(key for index, key in self._keys if whole or index in chain))

    async def run(self) -> tuple[Json, Sequence[str]]:
        """Do all stages; return the target's config document and its layers, lowest first."""
        plan = self._job.plan
        for warning in plan.warnings:
            self._job.progress(BuildEvent("warning", text=warning))
        step = 0
        try:
            async with self._job.runner.working(), asyncio.TaskGroup() as group:
                for stage in plan.stages:
                    work = _StageWork(self, stage, step + 1)
                    self._tasks[stage.index] = group.create_task(work.run(), name=f"stage {stage.name or stage.index}")
                    step += 1 + len(stage.operations)
        except BaseExceptionGroup as failed:
            raise first_of(failed) from None
        target = plan.stages[-1]
        state = self._tasks[target.index].result()
        return self._document(target, state), [layer for layer, _ in state.layers]

    @property
    def shop(self) -> Workshop:
        """What all builds share."""
        return self._shop

    @property
    def job(self) -> Job:
        """This build."""
        return self._job

    @property
    def sourcing(self) -> Sourcing:
        """Where files come from."""
        return self._sourcing

    def note(self, stage: int, key: str) -> None:
        """Remember a key that was used."""
        self._keys.append((stage, key))

    async def stage(self, index: int) -> State:
        """Wait for a stage."""
        return await asyncio.shield(self._tasks[index])

    async def of_image(self, name: str, line: Line) -> State:
        """The state that an image is."""
        image = self._job.images[name]
        diff_ids = list((image.config.get("rootfs") or {}).get("diff_ids") or ())
        for layer in image.layers:
            if await self._shop.content.cover(Digest(layer), self._job.lease) is None:
                message = f"image {name}: its layer {layer} is not on this machine; pull it again"
                raise self.failed(line, NotFound(message))
        history = [dict(entry) for entry in image.config.get("history") or ()]
        created = _time(image.config.get("created"))
        return State(keys.base_key(diff_ids), list(zip(image.layers, diff_ids, strict=True)), history, created)

    async def tree(self, state: State) -> Tree:
        """The files of a state."""
        if state.tree is None or state.laid < len(state.layers):
            fresh = [Digest(layer) for layer, _ in state.layers[state.laid :]]
            state.tree = await self._shop.listings.tree(fresh, state.tree)
            state.laid = len(state.layers)
        return state.tree

    def now(self) -> float:
        """The time of what is made now: SOURCE_DATE_EPOCH where it is set."""
        return float(self._job.epoch) if self._job.epoch is not None else self._shop.clock.now()

    def failed(self, line: Line, error: WherryError) -> WherryError:
        """The same error, with the line that it happened at."""
        place, text = self._job.plan.source.pointed(line, error.message)
        return type(error)(text, causes=[Cause(place, type(error).__name__, error.message)])

    def _document(self, target: StagePlan, state: State) -> Json:
        """Make the config. What has no time of its own takes the first layer's, so that a cached build gives the same id."""
        own = [entry["created"] for entry in state.history if isinstance(entry.get("created"), float)]
        first = own[0] if own else self.now()
        history: list[Json] = []
        for entry in state.history:
            when = entry.get("created", "")
            when = first if when is None else when
            history.append({**entry, "created": when if isinstance(when, str) else rfc3339_nano(when)})
        return document(
            target.config,
            platform=target.platform,
            created=rfc3339_nano(state.created if state.created is not None else first),
            diff_ids=[diff_id for _, diff_id in state.layers],
            history=history,
            author=target.author,
        )


class _StageWork:
    """One stage's steps, one after the other. `step` is the number of its FROM."""

    def __init__(self, solver: Solver, stage: StagePlan, step: int) -> None:
        self._solver = solver
        self._shop, self._job = solver.shop, solver.job
        self._stage = stage
        self._step = step
        fresh = self._job.fresh
        self._no_cache = fresh is None or bool({stage.name, str(stage.index)} & fresh)
        self._alike = None if self._no_cache or self._job.epoch is not None else self._job.alike

    async def run(self) -> State:
        """Do it; return where it stands at the end."""
        stage = self._stage
        self._tell("step", stage.text)
        if stage.stage >= 0:
            below = await self._solver.stage(stage.stage)
            state = replace(below, layers=list(below.layers), history=list(below.history))
        elif stage.image:
            state = await self._solver.of_image(stage.image, stage.line)
        else:
            state = State(keys.SCRATCH)
        for operation in stage.operations:
            self._step += 1
            origins = await self._origins(operation)
            self._tell("step", operation.line.text)
            await self._do(state, operation, origins)
        return state

    def _tell(self, kind: str, text: str, stream: str = "") -> None:
        self._job.progress(BuildEvent(kind, self._step, self._job.plan.steps, text, stream, self._stage.name))

    async def _origins(self, operation: Operation) -> Mapping[From, State]:
        """Wait for the stages and images that a step takes files from."""
        wanted: list[From] = []
        if isinstance(operation, Copy):
            wanted = [operation.origin]
        elif isinstance(operation, Run):
            wanted = [mount.origin for mount in operation.mounts]
        found: dict[From, State] = {}
        for origin in wanted:
            if origin.stage >= 0:
                found[origin] = await self._solver.stage(origin.stage)
            elif origin.image:
                found[origin] = await self._solver.of_image(origin.image, operation.line)
        return found

    async def _do(self, state: State, operation: Operation, origins: Mapping[From, State]) -> None:
        try:
            match operation:
                case Meta():
                    state.history.append(_entry(state.created, operation.created_by, empty=True))
                case Run():
                    await self._run(state, operation, origins)
                case Workdir():
                    key = keys.step_key(state.key, operation, epoch=self._job.epoch)
                    async with AsyncExitStack() as stack:
                        built = await self._known(key, stack) or await self._workdir(state, operation, key)
                    self._settle(state, operation, key, built)
                case Copy():
                    await self._copy(state, operation, origins)
        except (CopyError, CommandFailed, NotInTree) as error:
            raise self._job.plan.source.invalid(operation.line, str(error)) from error
        except Invalid as error:
            raise self._solver.failed(operation.line, error) from error

    # RUN --------------------------------------------------------------------------------------------------------------
    async def _run(self, state: State, operation: Run, origins: Mapping[From, State]) -> None:
        shown: dict[RunMount, Files] = {}
        for mount in operation.mounts:
            if mount.kind == "bind" or (mount.kind == "cache" and (mount.origin != From() or mount.source)):
                shown[mount] = await self._files(mount.origin, origins, [mount.source or "."])
        content = _hash([files.digest for files in shown.values()]) if shown else ""
        platform = str(self._stage.platform)
        key = keys.step_key(state.key, operation, content, epoch=self._job.epoch, platform=platform)
        async with AsyncExitStack() as stack:
            built = await self._known(key, stack)
            if built is None and self._alike is not None and not operation.mounts:
                built = await self._alike.run(*_past(state), operation.created_by, self._job.lease)
                await self._take_over(key, built)
            if built is None:
                sources = {mount: await files.sources() for mount, files in shown.items()}
                built = await self._in_container(state, operation, sources)
                await self._shop.cache.put(key, built)
        self._settle(state, operation, key, built)

    async def _in_container(self, state: State, operation: Run, sources: Mapping[RunMount, Sequence[Source]]) -> Built:
        def output(stream: str, data: bytes) -> None:
            self._tell("output", data.decode(errors="replace"), stream)

        job, content, platform = self._job, self._shop.content, str(self._stage.platform)
        ready = self._shop.mounts.ready(operation, sources, job.secrets, platform, job.scratch, job.agents)
        async with ready as prepared, self._shop.slots:
            layer, diff_id, size = await job.runner.run(
                operation, state.layers, output, prepared=prepared, lease=job.lease, platform=self._stage.platform
            )
        if await content.cover(layer, job.lease) is None:
            raise NotFound(f"layer {layer}: it went before it could be kept; build again")
        stubs = await self._stubs(state, operation, layer)
        if job.epoch is not None or stubs:
            made = await rewritten(content, layer, epoch=job.epoch, drop=stubs, lease=job.lease, scratch=job.scratch)
            return Built(made.digest, made.diff_id, made.size_bytes, self._solver.now())
        return Built(layer, diff_id, size, self._solver.now())

    async def _stubs(self, state: State, operation: Run, layer: Digest) -> frozenset[str]:
        """The directories that were made on the way to mount points, and that the command left empty."""
        if not operation.mounts:
            return frozenset()
        tree = await self._solver.tree(state)
        ways: set[str] = set()
        for mount in operation.mounts:
            way = mount.target.strip("/")
            while way := way.rpartition("/")[0]:
                if tree.resolve(way) is None:
                    ways.add(way)
        members = (
            {member.path.strip("/") for member in await self._shop.listings.members(layer)} if ways else set[str]()
        )
        used = {way for way in ways if any(path.startswith(f"{way}/") and path not in ways for path in members)}
        return frozenset((ways - used) & members)

    # COPY and ADD -----------------------------------------------------------------------------------------------------
    async def _files(
        self, origin: From, origins: Mapping[From, State], sources: Sequence[str], operation: Copy | None = None
    ) -> Files:
        state = origins.get(origin)
        tree = None if state is None else lambda: self._solver.tree(state)
        key = "" if state is None else state.key
        return await self._solver.sourcing.files(
            origin, sources, tree=tree, key=key, operation=operation, trust=not self._no_cache
        )

    async def _copy(self, state: State, operation: Copy, origins: Mapping[From, State]) -> None:
        files = await self._files(operation.origin, origins, operation.sources, operation)
        key = keys.step_key(state.key, operation, files.digest, epoch=self._job.epoch)
        owner: Owner | None = None
        layer_key = key
        if operation.link:  # the layer's own key has nothing of what is below
            owner = await self._owner(state, operation.chown)
            numbers = None if owner is None else (owner.uid, owner.gid)
            layer_key = keys.link_key(operation, files.digest, numbers, epoch=self._job.epoch)
        async with AsyncExitStack() as stack:
            built = await self._known(layer_key, stack)
            if built is None:
                owner = owner or await self._owner(state, operation.chown)
                tree = Tree() if operation.link else await self._solver.tree(state)
                made = entries(
                    tree,
                    await files.sources(),
                    operation.dest,
                    owner=owner,
                    mode=operation.chmod,
                    epoch=self._job.epoch,
                )
                if self._alike is not None and not operation.link:
                    built = await self._alike.copy(*_past(state), made, self._job.lease)
                    await self._take_over(layer_key, built)
                if built is None:
                    built = await self._pack(made)
                    await self._shop.cache.put(layer_key, built)
        self._settle(state, operation, key, built, layer_key)

    async def _owner(self, state: State, text: str) -> Owner | None:
        if not text:
            return None
        user, _, group = text.partition(":")
        if user.isdigit() and (not group or group.isdigit()):
            return owner_of(text, "", "")
        tree, content = await self._solver.tree(state), self._shop.content
        return owner_of(text, await read_text(content, tree, "etc/passwd"), await read_text(content, tree, "etc/group"))

    # WORKDIR ----------------------------------------------------------------------------------------------------------
    async def _workdir(self, state: State, operation: Workdir, key: str) -> Built:
        tree = await self._solver.tree(state)
        real = tree.target(operation.path, follow_last=True)
        there = tree.get(real)
        if there is not None:
            if there.kind != "dir":
                raise CopyError(f"WORKDIR {operation.path}: it is a file in the image")
            built = Built("", "", 0, self._solver.now())
        else:
            made = entries(
                tree,
                [Source("", Node("dir"), ())],
                f"/{real}/",
                owner=await self._owner(state, operation.user),
                made_at=int(state.created or 0),
                epoch=self._job.epoch,
            )
            built = await self._pack(made)
        await self._shop.cache.put(key, built)
        return built

    async def _pack(self, made: Sequence[Entry]) -> Built:
        if not made:
            return Built("", "", 0, self._solver.now())
        layer = await write_layer(self._shop.content, made, lease=self._job.lease)
        return Built(layer.digest, layer.diff_id, layer.size_bytes, self._solver.now())

    # the cache --------------------------------------------------------------------------------------------------------
    async def _known(self, key: str, stack: AsyncExitStack) -> Built | None:
        """Look a key up. Who does not find it is the only one to make it until `stack` ends."""
        if self._no_cache:
            return None
        built = await self._shop.cache.find(key, self._job.lease)
        if built is None:
            await stack.enter_async_context(self._shop.flights.only(key))
            built = await self._shop.cache.find(key, self._job.lease)
        if built is None and self._job.imports is not None:
            built = await self._job.imports.find(key, self._job.lease)
        if built is not None:
            self._tell("cached", built.digest)
        return built

    async def _take_over(self, key: str, built: Built | None) -> None:
        """Remember what an image had."""
        if built is not None:
            await self._shop.cache.put(key, built)
            self._tell("cached", built.digest)

    def _settle(self, state: State, operation: Operation, key: str, built: Built, layer_key: str = "") -> None:
        state.key = keys.settled_key(key, built.diff_id)
        state.created = built.created
        self._solver.note(self._stage.index, layer_key or key)
        if built.digest:
            state.layers.append((built.digest, built.diff_id))
            self._tell("layer", built.digest)
        state.history.append(_entry(built.created, operation.created_by, empty=not built.digest))


def _entry(created: float | None, created_by: str, *, empty: bool) -> Json:
    made: Json = {"created": created, "created_by": created_by}
    return {**made, "empty_layer": True} if empty else made


def first_of(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person should see: ours before others, the first of each."""
    flat: list[BaseException] = []
    for each in failed.exceptions:
        flat += [first_of(each)] if isinstance(each, BaseExceptionGroup) else [each]
    return next((each for each in flat if isinstance(each, WherryError)), flat[0])


def _past(state: State) -> tuple[Sequence[Json], Sequence[str]]:
    return state.history, [diff_id for _, diff_id in state.layers]


def _hash(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()


def _time(text: Any) -> float | None:
    try:
        return parse_rfc3339(text) if isinstance(text, str) else None
    except ValueError:
        return None
