"""From a context to a plan with all that it stands on: base images, named contexts, and whether its steps can run here."""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wherry.builder.context import Context, named, named_remote
from wherry.builder.git import GitAccess
from wherry.builder.graph import Plan, image_key, images, of_image_key, plan
from wherry.builder.instructions import Dockerfile, parse
from wherry.builder.layouts import SCHEME, read_layout
from wherry.builder.operations import Copy, From, Run, is_url
from wherry.builder.remotes import is_remote
from wherry.builder.running import BuildEngine
from wherry.builder.source import Line, read
from wherry.builder.wanted import INSECURE, Wanted
from wherry.content.names import parse_name
from wherry.content.oci import Platform
from wherry.content.protocol import Content
from wherry.engine.foreign import can_run
from wherry.engine.types import Image
from wherry.errors import Cause, Invalid, NotFound, Unauthorized, Unavailable, Unsupported


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, the base images by `image_key`, the named contexts that are directories."""

    plan: Plan
    images: Mapping[str, Image]
    contexts: Mapping[str, Context]
    platform: Platform


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans one build, for one platform after another. `access` is how git signs in, `scratch` where addresses are unpacked."""

    engine: BuildEngine
    content: Content
    native: Platform
    access: GitAccess
    lease: str
    scratch: Path

    async def contexts(self, ask: Wanted) -> Mapping[str, Context]:
        """Get the named contexts that are directories, or come from addresses."""
        found: dict[str, Context] = {}
        for name, place in ask.contexts.items():
            if isinstance(place, Path):
                found[name] = await asyncio.to_thread(named, place, name)
            elif is_remote(place):
                found[name] = await named_remote(place, self.access, self.scratch)
        return found

    async def plan(self, ask: Wanted, files: Context, contexts: Mapping[str, Context], platform: Platform) -> Planned:
        """Read the Dockerfile and get what it stands on. Raises Invalid, Unsupported, NotFound, Unavailable."""
        parsed = parse(read(files.dockerfile, files.name))
        names: dict[str, str] = dict.fromkeys(contexts, "")
        given: dict[str, Image] = {}
        for name, place in ask.contexts.items():
            if isinstance(place, str) and name not in contexts:
                names[name] = await self._image_context(name, place, platform, given)
        bases = await self._bases(parsed, ask, names, platform, given)
        made = plan(
            parsed,
            args=ask.args,
            target=ask.target,
            platform=platform,
            contexts=names,
            bases={name: image.config for name, image in bases.items()},
            native=self.native,
            insecure=INSECURE in ask.allow,
        )
        self._check_runs(made)
        return Planned(_with_ignored(made, files), bases, contexts, platform)

    async def _image_context(self, name: str, place: str, platform: Platform, given: dict[str, Image]) -> str:
        """The name of a named context that is an image; one of a layout is `given` by a name of its own."""
        if not place.startswith(SCHEME):
            return _image(name, place)
        image = await read_layout(self.content, place, platform, self.lease)
        own = f"wherry.invalid/layout@{image.root}"
        given[own] = image
        return own

    def _check_runs(self, made: Plan) -> None:
        """Refuse steps that no program of this machine can run, before anything is done. Raises Unsupported."""
        for stage in made.stages:
            runs = next((one for one in stage.operations if isinstance(one, Run)), None)
            if runs is not None and stage.platform != self.native and not can_run(stage.platform):
                text = (
                    f"RUN for {stage.platform} on {self.native} without an emulator (register one with binfmt_misc, with its "
                    "flag F: Debian's package qemu-user-static does; or let the stage run --platform=$BUILDPLATFORM)"
                )
                raise made.source.unsupported(runs.line, text)

    async def _bases(
        self,
        parsed: Dockerfile,
        ask: Wanted,
        contexts: Mapping[str, str],
        platform: Platform,
        given: Mapping[str, Image],
    ) -> Mapping[str, Image]:
        """Get the images that the plan stands on, those that their triggers name too: this machine's own first."""
        found: dict[str, Image] = {}
        while True:
            keys = images(
                parsed,
                args=ask.args,
                target=ask.target,
                platform=platform,
                contexts=contexts,
                bases={name: image.config for name, image in found.items()},
                native=self.native,
            )
            missing = [key for key in keys if key not in found]
            if not missing:
                return found
            for key in missing:
                name, wanted = of_image_key(key, platform)
                if name in given:
                    found[image_key(name, wanted, platform)] = given[name]
                else:
                    found[key] = await self._base(parsed, name, wanted, ask)

    async def _base(self, parsed: Dockerfile, name: str, wanted: Platform, ask: Wanted) -> Image:
        text = "" if wanted == self.native else str(wanted)
        if not ask.pull:
            with suppress(NotFound):
                image = await self.engine.image(name, platform=text)
                if text or image.config.get("architecture", "") in ("", wanted.architecture):
                    return image
                return await self.engine.image(name, platform=str(wanted))
        try:
            return await self.engine.pull(name, auth=ask.auth(name), platform=text)
        except (NotFound, Unauthorized, Unavailable) as error:
            line = _line_of(parsed, name)
            of = f" for {wanted}" if text else ""
            place, words = parsed.source.pointed(line, f"the image {name} cannot be had{of}: {error.message}")
            raise type(error)(words, causes=[Cause(place, type(error).__name__, error.message)]) from error


def _with_ignored(made: Plan, files: Context) -> Plan:
    """Add the findings of the rule CopyIgnoredFile."""
    if made.source.checks.skips("CopyIgnoredFile"):
        return made
    found = [
        f"{made.source.name}:{one.line.first}: {text!r} is left out by {files.ignore.name} (CopyIgnoredFile)"
        for stage in made.stages
        for one in stage.operations
        if isinstance(one, Copy) and one.origin == From()
        for text in one.sources
        if text not in one.inline and not is_url(text) and files.ignore.hides(os.path.normpath(text).lstrip("/"))
    ]
    return Plan(made.source, made.stages, [*made.warnings, *found])


def _line_of(parsed: Dockerfile, name: str) -> Line:
    """The line that asks for an image: the first whose words mean it, else the first FROM."""
    for stage in parsed.stages:
        for one in (stage.origin, *stage.instructions):
            text = one.args[0] if one.name == "FROM" else one.flags.get("from", "")
            with suppress(Invalid):
                if text and str(parse_name(text)) == name:
                    return one.line
    return parsed.stages[0].origin.line


def _image(name: str, text: str) -> str:
    """Read a named context that is an image. Raises Invalid, Unsupported."""
    scheme, mark, _ = text.partition("://")
    if mark and scheme != "docker-image":
        raise Unsupported(
            f"build context {name}={text} is not supported: directories, docker-image://, oci-layout://, git and https are"
        )
    try:
        return str(parse_name(text.removeprefix("docker-image://"), "image"))
    except Invalid as error:
        message = f"build context {name}={text}: {error.message}"
        raise Invalid(message, causes=[Cause("contexts", "Invalid", message)]) from None
