"""Docker's endpoints about images: list, inspect, pull, push, tag, remove, build."""

import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from wherry.clock import machine
from wherry.doors.docker import answers, filters, image_filters, image_shapes
from wherry.doors.docker.builds import Build, options_of
from wherry.doors.docker.containers import flag
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.instructions import changed
from wherry.doors.docker.platforms import platform_text
from wherry.doors.docker.requests import version_of
from wherry.doors.docker.transfers import Say, Transfers, streamed
from wherry.engine.types import Image
from wherry.errors import BadRequest, NotFound, Unsupported
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


class Images:
    """The handlers."""

    def __init__(self, engine: DockerEngine, build: Build) -> None:
        self._engine = engine
        self._build = build
        self._transfers = Transfers(engine)

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
            *self._transfers.routes(),
            Route("POST", "/images/{name:path}/tag", self._tag),
            Route("DELETE", "/images/{name:path}", self._remove),
            Route("POST", "/build", self._build_image),
        )

    async def _find(self, name: str, platform: str = "") -> Image:
        try:
            return await self._engine.image(name, platform=platform)
        except NotFound as error:
            raise NotFound(
                error.message if "specified platform" in error.message else f"No such image: {name}"
            ) from None

    async def _list(self, request: Request) -> Response:
        wanted = filters.parse(request.first("filters"), image_filters.KNOWN)
        if old := request.first("filter"):
            wanted = {**wanted, "reference": [old]}
        version = version_of(request.path)
        everything = list(await self._engine.images())
        found = await image_filters.chosen(everything, wanted, self._find, machine.now())
        found.sort(key=lambda image: -image.created)
        shared = shared_bytes(everything) if flag(request, "shared-size") else {}
        asked = flag(request, "manifests") and version >= (1, 47)
        counts = version >= (1, 51)  # before, it said -1
        users = Counter(each.image_id for each in await self._engine.containers()) if counts else Counter[str]()
        return Response.json(
            [
                image_shapes.summary(
                    image,
                    version,
                    containers=users[image.id] if counts else -1,
                    shared_bytes=shared.get(image.id, -1),
                    described=await self._described(image),
                    manifests=await self._manifests(image) if asked else None,
                )
                for image in found
            ]
        )

    async def _described(self, image: Image) -> dict[str, Any]:
        media_type, size = await self._engine.describe(image.root or image.digest)
        return image_shapes.descriptor(image, media_type, size)

    async def _manifests(self, image: Image) -> list[dict[str, Any]]:
        users: dict[str, list[str]] = {}
        for container in await self._engine.containers():
            users.setdefault(container.image_id, []).append(container.id)
        found = await self._engine.manifests(image.root or image.digest)
        return [image_shapes.manifest_summary(each, users) for each in found]

    async def _inspect(self, request: Request) -> Response:
        version, platform = version_of(request.path), platform_text(request.first("platform"))
        asked = flag(request, "manifests") and version >= (1, 48)
        if asked and platform:
            raise BadRequest("conflicting options: manifests and platform options cannot both be set")
        image = await self._find(request.params["name"], platform)
        manifests = await self._manifests(image) if asked else None
        described = await self._described(image)
        return Response.json(image_shapes.inspect(image, version, described=described, manifests=manifests))

    async def _history(self, request: Request) -> Response:
        platform = platform_text(request.first("platform"))
        return Response.json(image_shapes.history(await self._find(request.params["name"], platform)))

    async def _load(self, request: Request) -> Response:
        """Answer when all is read: clients that hear of an answer before stop sending, as skopeo does."""
        platform = platform_text(request.first("platform"))

        async def work(say: Say) -> None:
            def renamed(name: str, id: str) -> None:
                text = f"The image {answers.familiar(name)} already exists, renaming the old one with ID {id} to empty string"
                say({"stream": f"{text}\n"})

            for image in await self._engine.load(request.stream(), platform=platform, renamed=renamed):
                for name in image.names:
                    say({"stream": f"Loaded image: {answers.familiar(name)}\n"})
                if not image.names:
                    say({"stream": f"Loaded image ID: {image.id}\n"})

        return await streamed(work, fails_aloud=False)

    async def _ids(self, name: str) -> Sequence[str]:
        """Name the images that `save` takes: one, or all of a repository that has no tag `latest`."""
        try:
            return [(await self._engine.image(name)).id]
        except NotFound:
            images = await self._engine.images()
        return [
            image.id
            for image in images
            if any(answers.familiar(each).rpartition(":")[0] == answers.familiar(name) for each in image.names)
        ]

    async def _save(self, request: Request) -> Response:
        names = [request.params["name"]] if "name" in request.params else request.all("names")
        names = [each for name in names for each in name.split(",") if each]
        if not names:
            raise BadRequest("names: no image is named")
        platform = platform_text(request.first("platform"))
        pieces = self._engine.save(names, platform=platform)
        first = await anext(aiter(pieces), b"")  # what is missing is told before the archive begins
        for id in [id for name in names for id in await self._ids(name)]:
            self._engine.tell("image", "save", id, {"name": id})

        async def whole() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        return Response.stream(whole(), headers={"Content-Type": "application/x-tar"})

    async def _rootfs(self, request: Request) -> Response:
        """Send the files of an image as a tar; the classic API has no word for it."""
        image = await self._find(request.params["name"])
        return Response.stream(self._build.rootfs(image.id), headers={"Content-Type": "application/x-tar"})

    async def _tag(self, request: Request) -> Response:
        name = request.params["name"]
        await self._find(name)
        repository, tag = request.first("repo") or "", request.first("tag") or "latest"
        if not repository:
            raise BadRequest("repo: no repository is named")
        await self._engine.tag(name, f"{repository}:{tag}")  # not by its id, which several roots may have
        return Response(201)

    async def _remove(self, request: Request) -> Response:
        name = request.params["name"]
        if request.first("platforms"):
            raise Unsupported(
                "platforms: removing one platform of an image is not supported by wherry; remove it whole"
            )
        lines = await self._engine.remove_image(name, force=flag(request, "force"))
        return Response.json([dict([line.split(": ", 1)]) for line in lines])

    async def _create(self, request: Request) -> Response:
        if source := request.first("fromSrc"):
            return await self._import(request, source)
        return await self._transfers.pull(request)

    async def _import(self, request: Request, source: str) -> Response:
        if source != "-":
            raise Unsupported("fromSrc: only a tar in the request (-) is supported by wherry, not an address")
        names = new_names(request)
        config = changed({}, request.all("changes"))
        platform = platform_text(request.first("platform"))

        async def work(say: Say) -> None:
            image = await self._engine.import_image(
                request.stream(), names, config, message=request.first("message") or "",
                platform=platform,
            )  # fmt: skip
            self._engine.tell("image", "import", image.id, {"name": image.id})
            say({"status": image.id})

        return await streamed(work)

    async def _build_image(self, request: Request) -> Response:
        refused = (
            "squash", "outputs", "cgroupparent", "isolation",
        )  # fmt: skip
        for name in refused:
            value = request.first(name)
            if value not in (None, "", "0", "null", "[]", "{}", "default", "false", "-1"):
                raise Unsupported(f"build option {name} is not supported by wherry: {value!r}")
        tags = [each for each in request.all("t") if each]
        args = _strings(request.first("buildargs"), "buildargs")
        labels = _strings(request.first("labels"), "labels")
        no_cache = flag(request, "nocache")
        options = options_of(request)
        quiet = flag(request, "q")

        async def work(say: Say) -> None:
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

        return await streamed(work, fails_aloud=False)


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


def shared_bytes(images: Sequence[Image]) -> dict[str, int]:
    """Count, for each image by id, the bytes of layers that others have, too."""
    owners: dict[str, set[str]] = {}
    for image in images:
        for layer in image.layers:
            owners.setdefault(layer, set()).add(image.id)
    return {
        image.id: sum(
            size for layer, size in zip(image.layers, image.layer_bytes, strict=True) if len(owners[layer]) > 1
        )
        for image in images
    }
