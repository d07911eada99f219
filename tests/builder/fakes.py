"""An engine that runs no container: it keeps images as the real one does, and each RUN leaves a file that says what ran."""

import asyncio
import io
import os
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from wherry.clock import Clock, machine
from wherry.content.digests import digest_of
from wherry.content.names import parse_name
from wherry.content.oci import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    Descriptor,
    Index,
    Manifest,
    fits,
    manifest_of,
    parse_config,
    parse_document,
    parse_platform,
)
from wherry.content.protocol import Content, Digest
from wherry.content.remote import Remote
from wherry.engine.types import Container, ContainerSpec, Exit, Image, LogLine, Mount, State
from wherry.errors import Broken, NotFound


@dataclass
class FakeEngine:
    """The part of the engine that a builder uses. `fails` maps the last word of a command to an exit code."""

    content: Content
    clock: Clock
    fails: dict[str, int] = field(default_factory=dict[str, int])
    named: dict[str, Image] = field(default_factory=dict[str, Image])
    unnamed: dict[str, Image] = field(default_factory=dict[str, Image])
    specs: dict[str, ContainerSpec] = field(default_factory=dict[str, ContainerSpec])
    ran: list[ContainerSpec] = field(default_factory=list[ContainerSpec])
    upstream: dict[str, Image] = field(default_factory=dict[str, Image])
    gate: asyncio.Barrier | None = None
    now: int = 0
    most: int = 0
    says_time: bool = True
    kept: list[str] = field(default_factory=list[str])
    pulled: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    saw: list[dict[str, bytes]] = field(default_factory=list[dict[str, bytes]])

    async def image(self, ref: str, *, platform: str = "") -> Image:
        found = self.unnamed.get(ref) or self.named.get(ref)
        if found is None and not ref.startswith("sha256:"):
            found = self.named.get(str(parse_name(ref)))
        if found is None:
            raise NotFound(f"image {ref}: not on this machine")
        if platform and not fits(parse_config(msgspec.json.encode(found.config)).platform, parse_platform(platform)):
            raise NotFound(f"image {ref}: not for {platform}")
        return found

    async def images(self) -> Sequence[Image]:
        return [*self.named.values(), *self.unnamed.values()]

    async def pull(
        self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None, platform: str = ""
    ) -> Image:
        self.pulled.append((ref, platform))
        ref = f"{ref} {platform}" if platform else ref
        if ref not in self.upstream:
            raise NotFound(f"no image {ref} in the registry")
        self.named[ref] = self.upstream[ref]
        return self.upstream[ref]

    async def commit_image(
        self,
        config: Mapping[str, Any],
        layers: Sequence[str],
        names: Sequence[str],
        *,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        assert len(config["rootfs"]["diff_ids"]) == len(layers)
        described: list[Descriptor] = []
        for layer in layers:
            blob = await self.content.stat(Digest(layer))
            assert blob is not None
            described.append(Descriptor(OCI_LAYER_GZIP, blob.digest, blob.size_bytes))
        lease = await self.content.lease(seconds=600)
        data = await self.content.put(msgspec.json.encode(config), lease=lease)
        manifest = await self.content.put(
            manifest_of(Descriptor(OCI_CONFIG, data.digest, data.size_bytes), described, annotations), lease=lease
        )
        image = Image(data.digest, manifest.digest, list(names), config, 0, self.clock.now(), list(layers))
        for name in names:
            await self.content.release(f"image/{name}")
            await self.content.hold(f"image/{name}", manifest.digest)
            self.named[name] = image
        if not names:
            await self.content.hold(f"image/{manifest.digest}", manifest.digest)
            self.unnamed[image.id] = image
        await self.content.end_lease(lease)
        return image

    async def name_root(self, root: Digest, names: Sequence[str]) -> Image:
        index = parse_document(await self.content.read(root))
        assert isinstance(index, Index)
        manifest = parse_document(await self.content.read(index.manifests[0].digest))
        assert isinstance(manifest, Manifest)
        config = msgspec.json.decode(await self.content.read(manifest.config.digest))
        layers = [layer.digest for layer in manifest.layers]
        image = Image(manifest.config.digest, index.manifests[0].digest, list(names), config, 0, 0.0, layers, root)
        for name in names:
            await self.content.hold(f"image/{name}", root)
            self.named[name] = image
        return image

    @asynccontextmanager
    async def registry(self, ref: str, auth: Mapping[str, str] | None) -> AsyncGenerator[tuple[Remote, str]]:
        del auth
        name = parse_name(ref)
        async with Remote(f"http://{name.domain}") as remote:
            yield remote, name.path

    async def remove_image(self, ref: str, *, force: bool = False) -> Sequence[str]:
        image = self.unnamed.pop(ref, None)
        if image is None:
            raise NotFound(ref)
        await self.content.release(f"image/{image.digest}")
        return []

    async def create(self, spec: ContainerSpec) -> Container:
        await self.image(spec.image)
        self.specs[spec.id] = spec
        return self._container(spec)

    def _container(self, spec: ContainerSpec) -> Container:
        return Container(spec.id, spec.name, spec, spec.image, State.CREATED, self.clock.now())

    async def containers(self) -> Sequence[Container]:
        return [self._container(spec) for spec in self.specs.values()]

    async def start(self, ref: str) -> None:
        spec = self.specs[ref]
        if (spec.entrypoint or [""])[0] == "/absent":
            raise Broken("exec: /absent: no such file")
        self.ran.append(spec)
        self.saw.append({mount.target: _bytes(mount) for mount in spec.mounts if mount.kind == "bind"})
        self.saw[-1] |= {f"${name}": Path(path).read_bytes() for name, path in spec.env_files.items()}

    async def wait(self, ref: str) -> Exit:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.gate is not None:
                async with machine.timeout(10):
                    await self.gate.wait()
            await machine.sleep(0.01)
        finally:
            self.now -= 1
        word = (self.specs[ref].entrypoint or [""])[-1].split()[-1]
        return Exit(self.fails.get(word, 0), self.clock.now())

    async def logs(
        self, ref: str, *, follow: bool = False, tail: int | None = None, since: float = 0.0
    ) -> AsyncIterator[LogLine]:
        yield LogLine(self.clock.now(), "stdout", b"ran %s\n" % (self.specs[ref].entrypoint or [""])[-1].encode())

    async def diff_layer(self, ref: str, *, lease: str = "") -> tuple[Digest, str, int]:
        spec = self.specs[ref]
        out = io.BytesIO()
        image = await self.image(spec.image)
        said = msgspec.json.encode(
            [
                spec.entrypoint,
                image.config["config"]["Env"],
                len(image.layers),
                self.clock.now() if self.says_time else 0,
            ]
        )
        word = (spec.entrypoint or [""])[-1].split()[-1]
        with tarfile.open(fileobj=out, mode="w") as archive:
            info = tarfile.TarInfo(f"ran-{self.ran.index(spec) + 1 if self.says_time else word}")
            info.size = len(said)
            info.mtime = int(self.clock.now())
            archive.addfile(info, io.BytesIO(said))
        lease = lease or await self.content.lease(seconds=60)
        blob = await self.content.put(out.getvalue(), lease=lease)
        return blob.digest, digest_of(out.getvalue()), blob.size_bytes

    async def adopt_layer(self, ref: str, diff_id: str) -> bool:
        assert self.specs[ref].id == ref
        assert diff_id in self.kept
        return False

    @contextmanager
    def keeping(self, diff_ids: Collection[str]) -> Generator[None]:
        self.kept.extend(diff_ids)
        try:
            yield
        finally:
            for diff_id in diff_ids:
                self.kept.remove(diff_id)

    async def remove(self, ref: str, *, force: bool = False) -> None:
        del self.specs[ref]


def _bytes(mount: Mount) -> bytes:
    """What a mount shows: a file's bytes, or the names in a directory."""
    place = Path(mount.source)
    if place.is_socket():
        return b""
    return place.read_bytes() if place.is_file() else "\n".join(sorted(os.listdir(place))).encode()
