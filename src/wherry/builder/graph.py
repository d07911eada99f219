"""From instructions to a plan: which stages are needed, and what each has to do, with every variable in its place.

Pure: the configs of base images are handed in. Source: Docker, "Dockerfile reference", "Understand how ARG and FROM
interact", "Scope", "ONBUILD".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.builder.checks import Finding, of_file
from wherry.builder.config import ImageConfig, Json
from wherry.builder.instructions import Dockerfile, Instruction, Stage, instruction
from wherry.builder.operations import Copy, From, Operation
from wherry.builder.reading import PROXY_ARGS, Scope, StageReader, expand
from wherry.builder.runflags import FlagError, mount_options
from wherry.builder.source import Line, Source
from wherry.content.names import parse_name
from wherry.content.oci import Platform, parse_platform
from wherry.errors import Cause, Invalid

RESERVED_ARGS = frozenset(
    {"SOURCE_DATE_EPOCH", "BUILDKIT_DOCKERFILE_CHECK", "BUILDKIT_INLINE_CACHE", "BUILDKIT_SYNTAX"}
)
"""Arguments of the build itself, which no ARG need declare."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage. It stands on an earlier one (`stage`), on an image, or on nothing (both unset: scratch).

    `config` is the image's `config` object after all operations; `author` its MAINTAINER. `platform` is what its steps run as.
    """

    index: int
    name: str
    line: Line
    text: str
    operations: Sequence[Operation]
    config: Json
    platform: Platform
    stage: int = -1
    image: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The needed stages in order; the last one is the target."""

    source: Source
    stages: Sequence[StagePlan]
    warnings: Sequence[str] = ()

    @property
    def steps(self) -> int:
        """How many steps a person sees: each FROM and each instruction."""
        return sum(1 + len(stage.operations) for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a Dockerfile. `contexts` are named contexts: a whole image name, or "" for a directory.

    `native` is the machine's platform; `insecure` allows `RUN --security=insecure`.
    """

    args: Mapping[str, str]
    target: str
    platform: Platform
    contexts: Mapping[str, str]
    native: Platform
    insecure: bool = False


def image_key(name: str, platform: Platform, target: Platform) -> str:
    """How an image is called in a plan: by its name, and by its platform too where that is not the target's."""
    return name if platform == target else f"{name} {platform}"


def of_image_key(key: str, target: Platform) -> tuple[str, Platform]:
    """The name and the platform again."""
    name, _, text = key.partition(" ")
    return name, parse_platform(text) if text else target


def images(
    dockerfile: Dockerfile,
    *,
    args: Mapping[str, str],
    target: str,
    platform: Platform,
    contexts: Mapping[str, str] | None = None,
    bases: Mapping[str, Mapping[str, Any]] | None = None,
    native: Platform | None = None,
) -> Sequence[str]:
    """List the images that must be had before `plan`, by `image_key`, in order. Raises Invalid.

    The triggers of `bases` (configs of images that are at hand) may name more: ask again with them until none is new.
    """
    graph = _Graph(dockerfile, Wish(args, target, platform, contexts or {}, native or platform), bases or {})
    found: list[str] = []
    for index in graph.needed():
        found.append(graph.origins[index].image)
        found += [origin.image for origin in graph.sources(index)]
    return [name for name in dict.fromkeys(found) if name]


def plan(
    dockerfile: Dockerfile,
    *,
    args: Mapping[str, str],
    target: str,
    platform: Platform,
    bases: Mapping[str, Mapping[str, Any]],
    contexts: Mapping[str, str] | None = None,
    native: Platform | None = None,
    insecure: bool = False,
) -> Plan:
    """Work out what to do. `bases` has the config document of each of `images`. Raises Invalid, Unsupported."""
    graph = _Graph(dockerfile, Wish(args, target, platform, contexts or {}, native or platform, insecure), bases)
    source, scope = dockerfile.source, graph.scope
    done: dict[int, StagePlan] = {}
    findings: list[Finding] = list(of_file(dockerfile))
    for index in graph.needed():
        origin = graph.origins[index]
        stage = dockerfile.stages[index]
        if origin.image:
            base: Mapping[str, Any] | None = bases[origin.image].get("config") or {}
        else:
            base = done[origin.stage].config if origin.stage >= 0 else None
        config = ImageConfig(base)
        if origin.stage >= 0:
            config.author = done[origin.stage].author
        config.take_triggers()
        reader = StageReader(
            source, scope, config, lambda one, text, stage=stage: graph.origin_of(stage, one.line, text, one.name)
        )
        operations: list[Operation] = []
        if origin.context:  # a directory as a base: its files are the first layer
            first = stage.origin.line
            operations.append(Copy(first, f"FROM {origin.context}", ["/"], "/", From(context=origin.context)))
        operations += [reader.read(one) for one in graph.instructions(index)]
        done[index] = StagePlan(
            index,
            stage.name,
            stage.origin.line,
            stage.origin.line.text,
            operations,
            reader.config.body,
            graph.platforms[index],
            origin.stage,
            origin.image,
            reader.config.author,
        )
        findings += reader.findings
    findings += scope.findings
    warnings = [finding.said(source) for finding in _told(source, findings, args)]
    unused = sorted(set(args) - scope.consumed - PROXY_ARGS - RESERVED_ARGS)
    if unused:
        warnings.append(f"build arguments that no ARG declares: {', '.join(unused)}")
    return Plan(source, [done[index] for index in sorted(done)], list(dict.fromkeys(warnings)))


def _told(source: Source, findings: Sequence[Finding], args: Mapping[str, str]) -> Sequence[Finding]:
    """Leave out what `# check=` skips; raise Invalid where it says that a finding is an error."""
    from wherry.builder.source import check_rules

    rules = source.checks
    if text := args.get("BUILDKIT_DOCKERFILE_CHECK"):
        try:
            rules = check_rules(text)
        except ValueError as error:
            message = f"BUILDKIT_DOCKERFILE_CHECK={text}: {error}"
            raise Invalid(message, causes=[Cause("buildargs.BUILDKIT_DOCKERFILE_CHECK", "Invalid", message)]) from None
    told = sorted((each for each in findings if not rules.skips(each.rule)), key=lambda each: each.number)
    if told and rules.error:
        first = told[0]
        raise source.invalid(Line("", first.number, first.number), f"{first.rule}: {first.text} (check=error=true)")
    return told


def platform_args(target: Platform, native: Platform) -> dict[str, str]:
    """The ARGs that every build has. Source: Dockerfile reference, "Automatic platform ARGs in the global scope"."""
    values: dict[str, str] = {}
    for side, platform in (("TARGET", target), ("BUILD", native)):
        values[f"{side}PLATFORM"] = str(platform)
        values[f"{side}OS"] = platform.os
        values[f"{side}OSVERSION"] = platform.os_version
        values[f"{side}ARCH"] = platform.architecture
        values[f"{side}VARIANT"] = platform.variant
    return values


class _Graph:
    """The stages and what each takes from where."""

    def __init__(self, dockerfile: Dockerfile, wish: Wish, bases: Mapping[str, Mapping[str, Any]]) -> None:
        self._dockerfile = dockerfile
        self._source = dockerfile.source
        self._wish = wish
        self._bases = bases
        self.target = self._target(wish.target)
        stage = dockerfile.stages[self.target]
        self.scope = self._globals(stage.name or "default")
        self.platforms: list[Platform] = []
        self.origins: list[From] = []
        for stage in dockerfile.stages:
            self.origins.append(self._origin(stage))

    def instructions(self, index: int) -> Sequence[Instruction]:
        """The instructions of a stage, those that its base triggers first."""
        origin, stage = self.origins[index], self._dockerfile.stages[index]
        texts: Sequence[str] = ()
        if origin.image:
            config = self._bases.get(origin.image, {}).get("config") or {}
            texts = config.get("OnBuild") or ()
        elif origin.stage >= 0:
            below = self._dockerfile.stages[origin.stage].instructions
            return [*(one.trigger for one in below if one.trigger is not None), *stage.instructions]
        where = stage.origin.line
        made: list[Instruction] = []
        for text in texts:
            one = instruction(self._source, Line(text.replace("\n", " ").strip(), where.first, where.last))
            if one.name in ("ONBUILD", "FROM", "MAINTAINER"):
                raise self._source.invalid(
                    where, f"the base image {origin.image} has the trigger {text!r}: not allowed"
                )
            made.append(one)
        return [*made, *stage.instructions]

    def sources(self, index: int) -> Sequence[From]:
        """Where a stage's COPYs and mounts take files from."""
        stage = self._dockerfile.stages[index]
        found: list[From] = []
        for one in self.instructions(index):
            texts = [one.flags["from"]] if "from" in one.flags else []
            for mount in one.repeated.get("mount", ()):
                try:
                    texts.append(mount_options(mount).get("from", ""))
                except FlagError as error:
                    raise self._source.invalid(one.line, str(error), error.at) from None
            found += [self.origin_of(stage, one.line, text, one.name) for text in texts if text]
        return found

    def needed(self) -> Sequence[int]:
        """List the stages that the target stands on or copies from, and itself, in order."""
        seen: set[int] = set()
        waiting = [self.target]
        while waiting:
            index = waiting.pop()
            if index in seen:
                continue
            seen.add(index)
            waiting += [origin.stage for origin in (self.origins[index], *self.sources(index)) if origin.stage >= 0]
        return sorted(seen)

    def origin_of(self, stage: Stage, line: Line, text: str, name: str) -> From:
        """Say where COPY --from, or a mount's from, points."""
        source = self._source
        named = self._context(text)
        if named is not None:
            return named
        if text.isdigit():
            if int(text) >= stage.index:
                raise source.invalid(
                    line, f"{name} --from={text}: there are {stage.index} stages before this one", text
                )
            return From(stage=int(text))
        for other in self._dockerfile.stages:
            if other.name and other.name == text.lower():
                if other.index < stage.index:
                    return From(stage=other.index)
                where = "this stage itself" if other.index == stage.index else "a later stage"
                raise source.invalid(line, f"{name} --from={text}: that is {where}", text)
        if text.lower() == "scratch":
            raise source.invalid(line, f"{name} --from=scratch: there is nothing in it", text)
        if "$" in text:
            raise source.invalid(
                line, f"{name} --from={text}: variables are not expanded here; use a stage's name", text
            )
        return From(image=_image(source, line, text, text))

    def _context(self, text: str) -> From | None:
        contexts = self._wish.contexts
        for name, image in contexts.items():
            if name.lower() == text.lower() or _same_image(name, text):
                return From(image=image) if image else From(context=name)
        return None

    def _globals(self, target: str) -> Scope:
        args = self._wish.args
        wish = self._wish
        scope = Scope(
            args, {**platform_args(wish.platform, wish.native), "TARGETSTAGE": target}, insecure=wish.insecure
        )
        scope.automatic = frozenset(scope.values)
        for one in self._dockerfile.globals:
            for name, default in one.pairs:
                scope.declared.add(name)
                if name in args:
                    scope.values[name] = args[name]
                    scope.consumed.add(name)
                elif default is not None:
                    scope.values[name] = expand(self._source, one, scope.values, default)
        return scope

    def _origin(self, stage: Stage) -> From:
        """Say what a stage stands on."""
        source, one, scope = self._source, stage.origin, self.scope
        name = scope.base_name(source, one)
        if not name:
            message = f"FROM {one.args[0]}: the name is empty; the variable is not set before FROM"
            raise source.invalid(one.line, message, one.args[0])
        target = self._wish.platform
        asked = self._platform(one)
        self.platforms.append(asked or target)
        named = self._context(name)
        if named is not None:
            return From(image=image_key(named.image, asked or target, target)) if named.image else named
        for earlier in self._dockerfile.stages[: stage.index]:
            if earlier.name and earlier.name == name.lower():
                self.platforms[-1] = asked or self.platforms[earlier.index]
                return From(stage=earlier.index)
        if name == "scratch":
            return From()
        return From(image=image_key(_image(source, one.line, name, one.args[0]), asked or target, target))

    def _platform(self, one: Instruction) -> Platform | None:
        """What a FROM says with --platform. Raises Invalid, Unsupported."""
        source, wanted = self._source, one.flags.get("platform")
        if wanted is None:
            return None
        text = expand(source, one, self.scope.values, wanted)
        try:
            asked = parse_platform(text)
        except Invalid as error:
            raise source.invalid(one.line, error.message, wanted) from None
        if asked.os != "linux":
            raise source.unsupported(one.line, f"building for {asked}: images for another system than linux", wanted)
        return next((each for each in (self._wish.platform, self._wish.native) if str(each) == str(asked)), asked)

    def _target(self, target: str) -> int:
        stages = self._dockerfile.stages
        if not target:
            return len(stages) - 1
        for stage in stages:
            if stage.name == target.lower():
                return stage.index
        if target.isdigit() and int(target) < len(stages):
            return int(target)
        names = [stage.name for stage in stages if stage.name]
        message = f"target {target!r}: there is no such stage; there are {', '.join(names) or 'only unnamed ones'}"
        raise Invalid(message, causes=[Cause("target", "NotFound", message)])


def _image(source: Source, line: Line, name: str, at: str) -> str:
    try:
        return str(parse_name(name, "image"))
    except Invalid as error:
        raise source.invalid(line, error.message, at) from None


def _same_image(one: str, other: str) -> bool:
    try:
        return str(parse_name(one)) == str(parse_name(other))
    except Invalid:
        return False
