"""Docker's endpoints that ask a registry on the caller's behalf: credentials, what is behind a name, its catalogue."""

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from wherry.content.credentials import Credentials
from wherry.content.digests import parse_digest
from wherry.content.hosts import hosts_for
from wherry.content.names import DEFAULT_DOMAIN, ImageName, cluster_repository, parse_name
from wherry.content.remote import Remote, endpoint_of
from wherry.doors.docker import filters
from wherry.doors.docker.engine import DockerEngine
from wherry.errors import BadRequest, Unsupported
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
CONFIG_MOST_BYTES = 4 << 20
FOUND_MOST, FOUND_USUAL = 100, 25
PAGE, PAGES_MOST = 1000, 20


class Registries:
    """The handlers."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def routes(self) -> tuple[Route, ...]:
        """All endpoints of this module."""
        return (
            Route("POST", "/auth", self._auth),
            Route("GET", "/distribution/{name:path}/json", self._distribution),
            Route("GET", "/images/search", self._search),
        )

    async def _auth(self, request: Request) -> Response:
        """Say whether a registry takes these credentials; nothing of them is kept."""
        body = _object(await request.body())
        fields = {key: str(value) for key, value in body.items() if value}
        domain = _domain_of(fields.get("serveraddress", ""))
        credentials = Credentials.of(fields)
        if credentials is None:
            raise BadRequest("no credentials: username and password, or an identity token, are needed")
        async with self._remote(domain, credentials) as remote:
            answer = await remote.send("GET", "/v2/", scope="", headers={}, attempts=2)
            await answer.close()
            if credentials.username and not remote.has_authorized(""):  # it asked nothing: it may take anybody
                answer = await remote.send(
                    "GET", "/v2/", scope="", headers={"Authorization": credentials.basic}, attempts=2
                )
                await answer.close()
        return Response.json({"Status": "Login Succeeded", "IdentityToken": ""})

    async def _distribution(self, request: Request) -> Response:
        name = parse_name(request.params["name"])
        credentials = Credentials.of(_header(request))
        remote, repository = self._place(name, credentials)
        async with remote:
            data, media_type = await remote.manifest(repository, name.reference)
            document = _object(data)
            if media_type in INDEX_TYPES:
                platforms = [each.get("platform") or {} for each in document.get("manifests") or ()]
            else:
                platforms = [_platform(await _config(remote, repository, document))]
        digest = f"sha256:{sha256(data).hexdigest()}"
        descriptor = {"mediaType": media_type, "digest": digest, "size": len(data)}
        return Response.json({"Descriptor": descriptor, "Platforms": platforms})

    async def _search(self, request: Request) -> Response:
        """Look through the catalogue of the registry that the term begins with, as `docker search HOST:PORT/term`."""
        term = request.first("term") or ""
        limit = request.first("limit") or str(FOUND_USUAL)
        if not limit.isdecimal() or not 0 <= int(limit) <= FOUND_MOST:
            raise BadRequest(f"limit {limit} is outside the range of [1, {FOUND_MOST}]")
        wanted = filters.parse(request.first("filters"), ("is-official", "is-automated", "stars"))
        head, slash, rest = term.partition("/")
        if not slash or not ("." in head or ":" in head or head == "localhost"):
            raise Unsupported(
                f"GET /images/search: Docker Hub's own search is not supported by wherry; name a registry whose catalogue is "
                f"to be looked through, as `docker search HOST:PORT/{term}`"
            )
        async with self._remote(head, Credentials.of(_header(request))) as remote:
            names = await _catalogue(remote)
        found = [
            {
                "name": f"{head}/{name}", "description": "", "star_count": 0, "is_official": False, "is_automated": False,
            }
            for name in names
            if rest in name
        ]  # fmt: skip
        if any(
            value not in ("0", "false")
            for name in ("is-official", "is-automated", "stars")
            for value in wanted.get(name, ())
        ):
            found = []  # a registry knows no stars, and nothing official
        return Response.json(found[: int(limit) or FOUND_USUAL])

    def _remote(self, domain: str, credentials: Credentials | None) -> Remote:
        """A registry by its host name, with what hosts.toml says of its certificates."""
        settings = self._engine.settings
        name = ImageName(domain, "x", "latest", None)
        origin = endpoint_of(name, tuple(settings.insecure))
        host = next(each for each in hosts_for(Path(settings.hosts_dir), domain, origin) if each.origin)
        return Remote(host.endpoint, credentials=credentials, tls=host.tls())

    def _place(self, name: ImageName, credentials: Credentials | None) -> tuple[Remote, str]:
        """Where an image's name is looked up, and its repository there."""
        settings = self._engine.settings
        if settings.cluster_registry and name.domain == settings.registry_host:
            return Remote(settings.cluster_registry), cluster_repository(name, settings.registry_host)
        return self._remote(name.domain, credentials), name.path


def _domain_of(address: str) -> str:
    """The registry of a `serveraddress`, which may be a URL, as clients write Docker Hub's."""
    text = address.partition("://")[2] or address
    host = text.partition("/")[0]
    if host in ("", "index.docker.io", "docker.io", "registry-1.docker.io"):
        return DEFAULT_DOMAIN
    return (
        parse_name(f"{host}/x", "serveraddress").domain
        if "." in host or ":" in host or host == "localhost"
        else _no(host)
    )


def _no(host: str) -> str:
    raise BadRequest(f"serveraddress {host!r}: the host name of a registry is needed, as registry.example.org:5000")


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(data or b"{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadRequest(f"not a JSON object: {error}") from None


def _header(request: Request) -> Mapping[str, str] | None:
    """X-Registry-Auth: base64 of JSON."""
    text = request.headers.get("x-registry-auth")
    if not text:
        return None
    with suppress(ValueError, msgspec.MsgspecError):
        found = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=dict[str, Any])
        return {key: str(value) for key, value in found.items() if value} or None
    raise BadRequest("X-Registry-Auth: not base64 of JSON")


async def _config(remote: Remote, repository: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of an image; empty for an artifact, whose configuration is something else."""
    described = manifest.get("config") or {}
    if "image" not in str(described.get("mediaType")) or int(described.get("size") or 0) > CONFIG_MOST_BYTES:
        return {}
    answer = await remote.blob(repository, parse_digest(str(described["digest"])))
    try:
        return _object(await answer.read())
    finally:
        await answer.close()


def _platform(config: Mapping[str, Any]) -> Mapping[str, str]:
    names = ("architecture", "os", "variant", "os.version")
    return {name: str(config[name]) for name in names if config.get(name)}


async def _catalogue(remote: Remote) -> Sequence[str]:
    """All repositories, up to a bound; page by page."""
    found: list[str] = []
    last = ""
    for _ in range(PAGES_MOST):
        target = f"/v2/_catalog?n={PAGE}" + (f"&last={last}" if last else "")
        answer = await remote.send("GET", target, scope="registry:catalog:*", headers={})
        try:
            names = [str(each) for each in _object(await answer.read()).get("repositories") or ()]
        finally:
            await answer.close()
        found += names
        if not names or "link" not in answer.headers:
            break
        last = names[-1]
    return found
