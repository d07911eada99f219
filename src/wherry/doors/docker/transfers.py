"""Docker's endpoints that move images: pull, push. What is done is told line by line, as JSON."""

import asyncio
import base64
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec

from wherry.content.names import ImageName, familiar_repository, parse_name
from wherry.content.steps import Step
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.platforms import platform_text
from wherry.doors.docker.progress import Progress
from wherry.errors import BadRequest, Forbidden, NotFound, Unauthorized, WherryError
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

log = logging.getLogger(__name__)

_CODE = re.compile(r"The command '.*' returned a non-zero code: (\d+)")
LINES = 1000
"""Lines that may wait for a slow client before those that only move a bar are left out."""
LINES_MAX = 20_000
"""Lines that may wait at all; then the oldest give way."""

Say = Callable[[Any], None]


class Transfers:
    """The handlers."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def routes(self) -> tuple[Route, ...]:
        """All endpoints of this module; `/images/create` is shared with imports."""
        return (Route("POST", "/images/{name:path}/push", self.push),)

    async def pull(self, request: Request) -> Response:
        """`POST /images/create?fromImage=`. Without a tag all of a repository's."""
        name, tag = request.first("fromImage") or "", request.first("tag") or ""
        if not name:
            raise BadRequest("fromImage: no image is named")
        reference = name if not tag else f"{name}@{tag}" if ":" in tag else f"{name}:{tag}"
        asked = parse_name(reference)  # what is no name is refused before the stream begins
        is_all = not tag and "@" not in name and ":" not in name.rpartition("/")[2]
        auth = auth_of(request)
        platform = platform_text(request.first("platform"))

        async def work(say: Say) -> None:
            try:
                tags = await self._engine.remote_tags(reference, auth) if is_all else [""]
                for each in tags:
                    await self._pull_one(asked.with_tag(each) if each else asked, auth, platform, say)
            except NotFound as error:
                plain = "manifest list entries" in error.message or "specified platform" in error.message
                raise (
                    error
                    if plain
                    else NotFound(f"manifest for {asked.familiar} not found: manifest unknown: {error.message}")
                ) from error
            except (Unauthorized, Forbidden) as error:
                raise type(error)(
                    f"pull access denied for {familiar_repository(asked.repository)}, repository does not exist or may "
                    f"require 'docker login': denied: {error.message}"
                ) from error

        return await streamed(work)

    async def _pull_one(self, name: ImageName, auth: dict[str, str] | None, platform: str, say: Say) -> None:
        shown = name.familiar
        before = ""
        with suppress(NotFound):
            found = await self._engine.image(str(name), platform=platform)
            before = f"{found.root}/{found.digest}"
        tell = Progress(say)
        begun = False

        def begin() -> None:
            nonlocal begun
            if not begun:
                begun = True
                say({"status": f"Pulling from {name.path}", "id": name.digest or name.tag})

        def hear(step: Step) -> None:
            if step.layer:  # so the manifest has been had: what failed before has an answer of its own
                begin()
            tell(step)

        image = await self._engine.pull(str(name), auth=auth, progress=hear, platform=platform)
        begin()
        say({"status": f"Digest: {image.root or image.digest}"})
        is_same = f"{image.root}/{image.digest}" == before
        word = "Image is up to date" if is_same else "Downloaded newer image"
        say({"status": f"Status: {word} for {shown}"})

    async def push(self, request: Request) -> Response:
        """`POST /images/NAME/push`. Without a tag all of the repository's."""
        text, tag = request.params["name"], request.first("tag") or ""
        name = parse_name(f"{text}:{tag}" if tag else text)
        platform = platform_text(request.first("platform"))
        auth = auth_of(request)
        has_tag = bool(tag) or ":" in text.rpartition("/")[2]
        shown = familiar_repository(name.repository)
        if has_tag:
            tags = [name.tag]
            try:
                await self._engine.image(str(name), platform=platform)
            except NotFound as error:
                if "specified platform" in error.message:
                    raise
                raise NotFound(f"An image does not exist locally with the tag: {shown}") from None
        else:
            tags = await self._tags_here(name)
            if not tags:
                raise NotFound(f"An image does not exist locally with the tag: {shown}")

        async def work(say: Say) -> None:
            say({"status": f"The push refers to repository [{name.repository}]"})
            for each in tags:
                progress = Progress(say, pushing=True)
                whole = str(name.with_tag(each))
                root = (await self._engine.image(whole, platform=platform)).root
                digest = await self._engine.push(whole, auth=auth, progress=progress, platform=platform)
                media_type, size = await self._engine.describe(digest)
                if digest != root and not platform:
                    say({"progressDetail": {}, "aux": await self._instead(root, media_type, digest, size)})
                say({"status": f"{each}: digest: {digest} size: {size}"})
                say({"progressDetail": {}, "aux": {"Tag": each, "Digest": digest, "Size": size}})

        return await streamed(work)

    async def _instead(self, root: str, media_type: str, digest: str, size: int) -> dict[str, Any]:
        """What tells the client that an index was not here whole, so that one image went alone."""
        index_type, index_size = await self._engine.describe(root)
        return {
            "manifestPushedInsteadOfIndex": True,
            "originalIndex": {"mediaType": index_type, "digest": root, "size": index_size},
            "selectedManifest": {"mediaType": media_type, "digest": digest, "size": size},
        }

    async def _tags_here(self, name: ImageName) -> list[str]:
        found: set[str] = set()
        for image in await self._engine.images():
            for text in image.names:
                other = parse_name(text)
                if other.repository == name.repository and other.tag:
                    found.add(other.tag)
        return sorted(found)


def auth_of(request: Request) -> dict[str, str] | None:
    """Read X-Registry-Auth: base64 of JSON. Raises BadRequest."""
    text = request.headers.get("x-registry-auth")
    if not text:
        return None
    with suppress(ValueError, msgspec.MsgspecError):
        padded = text + "=" * (-len(text) % 4)
        found = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_"), type=dict[str, Any])
        return {key: str(value) for key, value in found.items() if value} or None
    raise BadRequest("X-Registry-Auth: not base64 of JSON")


def failed(message: str) -> dict[str, Any]:
    """The last line of what has failed; with the exit code, where it was a command of a build."""
    found = _CODE.search(message)
    detail = {"code": int(found[1]), "message": message} if found else {"message": message}
    return {"errorDetail": detail, "error": message}


async def streamed(work: Callable[[Say], Awaitable[None]], *, fails_aloud: bool = True) -> Response:
    """Run `work` while its lines go to the client as JSON, one a line.

    What fails before the first line is an answer with a status of its own (with `fails_aloud`); later, or without, it becomes
    the last line, as Docker has it.
    """
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def say(value: Any) -> None:
        if queue.qsize() >= LINES and isinstance(value, dict) and value.get("progressDetail"):
            return
        if queue.qsize() >= LINES_MAX:
            queue.get_nowait()
        queue.put_nowait(msgspec.json.encode(value) + b"\r\n")

    early: WherryError | None = None
    is_open = False

    async def run() -> None:
        nonlocal early
        try:
            await work(say)
        except WherryError as error:
            if fails_aloud and not is_open and queue.empty():
                early = error
            else:
                say(failed(error.message))
        except Exception:  # the head may be sent: the only place left to say so
            log.exception("docker: a transfer or build failed")
            text = "an unexpected condition; the engine's log says more"
            say({"errorDetail": {"message": text}, "error": text})
        finally:
            queue.put_nowait(None)

    task = asyncio.create_task(run(), name="docker:progress")
    try:
        first = await queue.get()
    except BaseException:
        await _end(task)
        raise
    is_open = True
    if early is not None:
        await _end(task)
        raise early

    async def pieces() -> AsyncIterator[bytes]:
        try:
            line = first
            while line is not None:
                yield line
                line = await queue.get()
            await task
        finally:
            await _end(task)  # the client has gone: what it asked for ends too

    return Response.stream(pieces(), headers={"Content-Type": "application/json"})


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
