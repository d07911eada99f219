"""Docker's endpoints about images: list, inspect, pull, push, tag, remove, build."""

import asyncio
import base64
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec

from wherry.content.names import parse_name
from wherry.doors.docker import answers, filters
from wherry.doors.docker.builds import Build, options_of
from wherry.doors.docker.containers import flag
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.instructions import changed
from wherry.doors.docker.progress import Progress
from wherry.engine.types import Image
from wherry.errors import BadRequest, NotFound, Unsupported, WherryError
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

log = logging.getLogger(__name__)

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)

LINES = 1000
"""Progress lines that may wait for a slow client; the oldest give way."""


class Images:
    """The handlers."""

    def __init__(self, engine: DockerEngine, build: Build) -> None:
        self._engine = engine
        self._build = build

    def routes(self) -> tuple[Route, ...]:
        """All endpoints about images."""
        return (
            Route("GET", "/images/json", self._list),
            Route("POST", "/images/create", self._create),
            Route("POST", "/images/load", self._load),
            Route("GET", "/images/get", self._save),
            Route("GET", "/images/{name:path}/get", self._save),
            Route("GET", "/images/{name:path}/rootfs", self._rootfs),
            Route("GET", "/images/{name:path}/json", self._inspect),
            Route("GET", "/images/{name:path}/history", self._history),
            Route("POST", "/images/{name:path}/push", self._push),
            Route("POST", "/images/{name:path}/tag", self._tag),
            Route("DELETE", "/images/{name:path}", self._remove),
            Route("POST", "/build", self._build_image),
            Route("POST", "/build/prune", self._prune),
        )

    async def _find(self, name: str) -> Image:
        try:
            return await self._engine.image(name)
        except NotFound:
            raise NotFound(f"No such image: {name}") from None

    async def _list(self, request: Request) -> Response:
        wanted = filters.parse(request.first("filters"), filters.IMAGE)
        if old := request.first("filter"):
            wanted = {**wanted, "reference": [old]}
        users: dict[str, int] = {}
        for container in await self._engine.containers():
            users[container.image_id] = users.get(container.image_id, 0) + 1
        everything = await self._engine.images()
        found = [filters.names_shown(each, wanted) for each in everything if filters.matches_image(each, wanted)]
        found.sort(key=lambda image: -image.created)
        return Response.json([answers.image_summary(image, users.get(image.id, 0)) for image in found])

    async def _inspect(self, request: Request) -> Response:
        return Response.json(answers.image_inspect(await self._find(request.params["name"])))

    async def _history(self, request: Request) -> Response:
        return Response.json(answers.history_of(await self._find(request.params["name"])))

    async def _load(self, request: Request) -> Response:
        async def work(say: Callable[[Any], None]) -> None:
            for image in await self._engine.load(request.stream()):
                for name in image.names:
                    say({"stream": f"Loaded image: {answers.familiar(name)}\n"})
                if not image.names:
                    say({"stream": f"Loaded image ID: {image.id}\n"})

        return _streamed(work)

    async def _save(self, request: Request) -> Response:
        names = [request.params["name"]] if "name" in request.params else request.all("names")
        names = [each for name in names for each in name.split(",") if each]
        if not names:
            raise BadRequest("names: no image is named")
        for name in names:
            await self._find(name)
        return Response.stream(self._engine.save(names), headers={"Content-Type": "application/x-tar"})

    async def _rootfs(self, request: Request) -> Response:
        """Send the files of an image as a tar; the classic API has no word for it."""
        image = await self._find(request.params["name"])
        return Response.stream(self._build.rootfs(image.id), headers={"Content-Type": "application/x-tar"})

    async def _tag(self, request: Request) -> Response:
        image = await self._find(request.params["name"])
        repository, tag = request.first("repo") or "", request.first("tag") or "latest"
        if not repository:
            raise BadRequest("repo: no repository is named")
        await self._engine.tag(image.id, f"{repository}:{tag}")
        return Response(201)

    async def _remove(self, request: Request) -> Response:
        name = request.params["name"]
        await self._find(name)
        lines = await self._engine.remove_image(name, force=flag(request, "force"))
        return Response.json([dict([line.split(": ", 1)]) for line in lines])

    async def _create(self, request: Request) -> Response:
        name, tag = request.first("fromImage") or "", request.first("tag") or ""
        if source := request.first("fromSrc"):
            return await self._import(request, source)
        if not name:
            raise BadRequest("fromImage: no image is named")
        reference = name if not tag else f"{name}@{tag}" if tag.startswith("sha256:") else f"{name}:{tag}"
        if "@" not in reference and ":" not in reference.rpartition("/")[2]:
            reference += ":latest"
        parse_name(reference)  # what is no name is refused before the stream begins
        auth = _auth(request)
        platform = request.first("platform") or ""

        async def work(say: Callable[[Any], None]) -> None:
            say({"status": f"Pulling from {name}", "id": tag or "latest"})
            before = ""
            with suppress(NotFound):
                before = (await self._engine.image(reference)).digest
            image = await self._engine.pull(reference, auth=auth, progress=Progress(say), platform=platform)
            say({"status": f"Digest: {image.digest}"})
            word = "Image is up to date" if image.digest == before else "Downloaded newer image"
            say({"status": f"Status: {word} for {reference}"})

        return _streamed(work)

    async def _import(self, request: Request, source: str) -> Response:
        if source != "-":
            raise Unsupported("fromSrc: only a tar in the request (-) is supported by wherry, not an address")
        names = new_names(request)
        config = changed({}, request.all("changes"))

        async def work(say: Callable[[Any], None]) -> None:
            image = await self._engine.import_image(
                request.stream(), names, config, message=request.first("message") or "",
                platform=request.first("platform") or "",
            )  # fmt: skip
            say({"status": image.id})

        return _streamed(work)

    async def _push(self, request: Request) -> Response:
        name, tag = request.params["name"], request.first("tag") or "latest"
        await self._find(f"{name}:{tag}")
        auth = _auth(request)

        async def work(say: Callable[[Any], None]) -> None:
            say({"status": f"The push refers to repository [{name}]"})
            digest = await self._engine.push(f"{name}:{tag}", auth=auth, progress=Progress(say, pushing=True))
            say({"status": f"{tag}: digest: {digest}"})
            say({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": 0}})

        return _streamed(work)

    async def _prune(self, request: Request) -> Response:
        raise Unsupported(
            "/build/prune: the build cache is collected by its budget; pruning by hand is not supported yet"
        )

    async def _build_image(self, request: Request) -> Response:
        refused = (
            "remote", "extrahosts", "cachefrom", "squash", "memory", "memswap", "cpushares", "cpuquota",
            "cpuperiod", "cpusetcpus", "shmsize", "outputs", "ulimits", "cgroupparent", "isolation",
        )  # fmt: skip
        for name in refused:
            value = request.first(name)
            if value not in (None, "", "0", "null", "[]", "{}", "default", "false", "-1"):
                raise Unsupported(f"build option {name} is not supported by wherry: {value!r}")
        platform = request.first("platform") or ""
        if platform and platform.removeprefix("linux/") != ARCHITECTURE:
            raise Unsupported(
                f"build option platform is not supported by wherry: {platform!r}; it builds for {ARCHITECTURE}"
            )
        if request.first("version") == "2":
            raise Unsupported("BuildKit's session is not supported; set DOCKER_BUILDKIT=0, or use `wherry build`")
        tags = [each for each in request.all("t") if each]
        args = _strings(request.first("buildargs"), "buildargs")
        labels = _strings(request.first("labels"), "labels")
        no_cache = flag(request, "nocache")
        options = options_of(request)
        quiet = flag(request, "q")

        async def work(say: Callable[[Any], None]) -> None:
            image = await self._build(
                request.stream(),
                dockerfile=request.first("dockerfile") or "Dockerfile",
                tags=tags,
                args=args,
                target=request.first("target") or "",
                no_cache=no_cache,
                labels=labels,
                options=options,
                say=lambda text: None if quiet else say({"stream": text}),
            )
            if image is None:
                return
            if quiet:
                say({"stream": f"{image.id}\n"})
                return
            say({"aux": {"ID": image.id}})
            say({"stream": f"Successfully built {image.id.removeprefix('sha256:')[:12]}\n"})
            for tag in tags:
                say({"stream": f"Successfully tagged {tag if ':' in tag.rpartition('/')[2] else tag + ':latest'}\n"})

        return _streamed(work)


def new_names(request: Request) -> list[str]:
    """The name that `repo` and `tag` give a new image; none without `repo`."""
    repository, tag = request.first("repo") or "", request.first("tag") or ""
    if tag or ":" not in repository.rpartition("/")[2]:
        repository = f"{repository}:{tag or 'latest'}" if repository else ""
    return [repository] if repository else []


def _strings(text: str | None, name: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        raw = msgspec.json.decode(text, type=dict[str, str | None])
    except msgspec.MsgspecError as error:
        raise BadRequest(f"{name}: {error}") from None
    return {key: value for key, value in raw.items() if value is not None}


def _auth(request: Request) -> dict[str, str] | None:
    """Read X-Registry-Auth: base64 of JSON."""
    text = request.headers.get("x-registry-auth")
    if not text:
        return None
    with suppress(ValueError, msgspec.MsgspecError):
        padded = text + "=" * (-len(text) % 4)
        found = msgspec.json.decode(base64.urlsafe_b64decode(padded), type=dict[str, Any])
        return {key: str(value) for key, value in found.items() if value} or None
    raise BadRequest("X-Registry-Auth: not base64 of JSON")


def _streamed(work: Callable[[Callable[[Any], None]], Awaitable[None]]) -> Response:
    """Run `work` while its lines go to the client as JSON, one a line; an error becomes the last line, as Docker has it."""

    async def pieces() -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(LINES)

        def put(line: bytes | None) -> None:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(line)

        async def run() -> None:
            try:
                await work(lambda value: put(msgspec.json.encode(value) + b"\r\n"))
            except WherryError as error:
                message = {"errorDetail": {"message": error.message}, "error": error.message}
                put(msgspec.json.encode(message) + b"\r\n")
            except Exception:  # the head is sent: the only place left to say so
                log.exception("docker: a transfer or build failed")
                text = "an unexpected condition; the engine's log says more"
                put(msgspec.json.encode({"errorDetail": {"message": text}, "error": text}) + b"\r\n")
            finally:
                put(None)

        task = asyncio.create_task(run(), name="docker:progress")
        try:
            while (line := await queue.get()) is not None:
                yield line
            await task
        finally:
            task.cancel()  # the client has gone: what it asked for ends too
            with suppress(asyncio.CancelledError):
                await task

    return Response.stream(pieces(), headers={"Content-Type": "application/json"})
