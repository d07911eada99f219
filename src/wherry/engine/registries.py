"""Images between this engine and registries: the cluster's, mirrors, and the one that a name says."""

import logging
import os
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from wherry.content import oci, transfer
from wherry.content.arrivals import Arrivals
from wherry.content.credentials import Credentials
from wherry.content.hosts import Host, hosts_for
from wherry.content.names import ImageName, cluster_repository
from wherry.content.oci import Platform
from wherry.content.protocol import Content, Digest
from wherry.content.push import lacks, push
from wherry.content.remote import Remote, endpoint_of
from wherry.content.steps import Step, step_of
from wherry.content.transfer import Pulled, Unpacker
from wherry.engine.settings import EngineSettings
from wherry.errors import Forbidden, NotFound, Unauthorized, Unavailable

log = logging.getLogger(__name__)

Sisters = Callable[[Digest], Collection[str]]


class Registries:
    """Where images come from and go to."""

    def __init__(self, content: Content, settings: EngineSettings) -> None:
        self._content = content
        self._settings = settings
        self._arrivals: Arrivals[Step] = Arrivals()

    async def pull(
        self,
        name: ImageName,
        lease: str,
        auth: Mapping[str, str] | None,
        progress: Any,
        platform: Platform | None,
        unpacker: Unpacker | None,
    ) -> Pulled:
        """Get an image from the cluster's registry, or else mirrors, or else where its name says."""
        found = await self._from_ours(name, lease, progress, platform, unpacker)
        if found is not None:
            return found
        credentials = Credentials.of(auth)

        async def take(remote: Remote) -> Pulled:
            return await transfer.pull(
                self._content, remote, name.path, name.reference, lease=lease, platform=platform, progress=progress,
                unpacker=unpacker, arrivals=self._arrivals,
            )  # fmt: skip

        for host in self._hosts(name):
            if not host.origin and (not host.pulls or (not host.resolves and name.digest is None)):
                continue
            try:
                async with self._remote(host, name.domain, credentials) as remote:
                    return await take(remote)
            except (NotFound, Unavailable, Unauthorized, Forbidden) as error:
                if host.origin:
                    raise
                log.info("image %s: mirror %s: %s; asking the next", name, host.endpoint, error.message)
        raise NotFound(f"image {name}: no host may be asked for it")

    async def tags(self, name: ImageName, auth: Mapping[str, str] | None) -> Sequence[str]:
        """List the tags of a repository."""
        if own := self._own(name):
            async with self._at(own) as remote:
                return await remote.tags(name.path)
        async with self._origin(name, Credentials.of(auth)) as remote:
            return await remote.tags(name.path)

    @asynccontextmanager
    async def opened(self, name: ImageName, auth: Mapping[str, str] | None) -> AsyncGenerator[tuple[Remote, str]]:
        """Give the registry that a name says, and the repository there."""
        if own := self._own(name):
            async with self._at(own) as remote:
                yield remote, name.path
        else:
            async with self._origin(name, Credentials.of(auth)) as remote:
                yield remote, name.path

    async def push(
        self,
        name: ImageName,
        digest: Digest,
        auth: Mapping[str, str] | None,
        progress: Any,
        sisters: Sisters,
        instead: Digest,
    ) -> Digest:
        """Send an image to the registry that its name says; of an index that is not here whole, the image `instead`.

        Returns what was sent.
        """
        if own := self._own(name):
            await self._tag_in_ours(own, name, digest, progress)
            return digest
        if not next(host for host in self._hosts(name) if host.origin).pushes:
            raise Forbidden(
                f"{self._settings.hosts_dir}/{name.domain}/hosts.toml: it says that nothing is pushed there"
            )
        async with self._origin(name, Credentials.of(auth)) as remote:
            if digest != instead and await lacks(self._content, remote, name.path, digest):
                digest = instead
            await push(
                self._content, remote, name.path, name.tag or name.reference, digest, mount_from=sisters, progress=progress
            )  # fmt: skip
        return digest

    async def tell_cluster(self, name: ImageName, digest: Digest) -> None:
        """Give an image its name in the cluster's registry, too."""
        if self._settings.on_tag is not None:
            await self._settings.on_tag(str(name), digest)
        elif self._settings.cluster_registry and name.tag:
            try:
                await self._tag_in_ours(self._settings.cluster_registry, name, digest, None)
            except Unavailable as error:
                raise Unavailable(
                    f"image {name.familiar} is tagged on this machine, but not in the cluster's registry: {error.message}; "
                    "tag it again when the registry is back"
                ) from error

    def _hosts(self, name: ImageName) -> Sequence[Host]:
        origin = endpoint_of(name, tuple(self._settings.insecure))
        return hosts_for(Path(self._settings.hosts_dir), name.domain, origin)

    def _origin(self, name: ImageName, credentials: Credentials | None) -> Remote:
        """The registry that a name says, reached as hosts.toml says."""
        return self._remote(next(host for host in self._hosts(name) if host.origin), name.domain, credentials)

    def _remote(self, host: Host, domain: str, credentials: Credentials | None) -> Remote:
        """Mirrors get no credentials."""
        return Remote(
            host.endpoint,
            credentials=credentials if host.origin else None,
            tls=host.tls(),
            headers=host.headers,
            api=host.api,
            namespace="" if host.origin else domain,
        )

    def _own(self, name: ImageName) -> str:
        """The endpoint of the cluster's registry, or of one beside us, where a name says that one; else ""."""
        settings = self._settings
        if settings.cluster_registry and name.domain == settings.registry_host:
            return settings.cluster_registry
        return settings.beside(name.domain)

    async def _from_ours(
        self, name: ImageName, lease: str, progress: Any, platform: Platform | None, unpacker: Unpacker | None
    ) -> Pulled | None:
        """Get an image from the registry over our own content; None where there is none, or it does not have it."""
        own = self._own(name)
        if not (own or self._settings.cluster_registry):
            return None
        repository = cluster_repository(name, name.domain if own else "")
        try:
            async with self._at(own or self._settings.cluster_registry) as remote:
                return await transfer.pull(
                    self._content, remote, repository, name.reference, lease=lease, platform=platform, progress=progress,
                    unpacker=unpacker, arrivals=self._arrivals,
                )  # fmt: skip
        except NotFound:
            if own:
                raise
        except Unavailable as error:
            if own:
                raise
            log.warning("image %s: the cluster's registry: %s", name, error.message)
        return None

    def _at(self, endpoint: str) -> Remote:
        """The registry over our own content. Raises Unavailable at once when its socket is not even there."""
        if endpoint.startswith("unix:") and not os.path.exists(endpoint.removeprefix("unix:")):
            raise Unavailable(f"{endpoint.removeprefix('unix:')} is not there: the registry is not running")
        return Remote(endpoint)

    async def _tag_in_ours(self, endpoint: str, name: ImageName, digest: Digest, progress: Any) -> None:
        """Tag in a registry over our own content: by its manifests alone where it has our blobs anyway."""
        repository = cluster_repository(name, name.domain if self._own(name) else "")
        async with self._at(endpoint) as remote:
            if self._settings.shares_content:
                await self._tell(remote, repository, name.reference, digest, progress)
            else:
                await push(self._content, remote, repository, name.reference, digest, progress=progress)

    async def _tell(self, remote: Remote, repository: str, reference: str, digest: Digest, progress: Any) -> None:
        data = await self._content.read(digest)
        document = oci.parse_document(data)
        if isinstance(document, oci.Index):
            for child in document.manifests:
                if await self._content.stat(child.digest) is not None:
                    await self._tell(remote, repository, child.digest, child.digest, progress)
        elif progress is not None:
            for layer in document.children:
                progress(step_of(layer, "exists", layer.size))
        await remote.put_manifest(repository, reference, document.media_type, data)
