"""What a build may be asked for beyond the classic API, and the builder as this door needs it.

`/build` has one parameter of ours, `wherry`: a JSON object of the fields of `BuildOptions`, in camelCase; `wherry build` sends
it. Secrets come in the header X-Wherry-Secrets (base64 of a JSON object), since addresses are logged.
"""

import base64
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import msgspec

from wherry.content.oci import parse_platform
from wherry.doors.docker.cache import BuildCache
from wherry.doors.docker.limits import read_limits
from wherry.doors.docker.options import read_ulimits
from wherry.doors.docker.platforms import platform_text
from wherry.engine.types import Image, Limits, Ulimit
from wherry.errors import BadRequest, Broken, Conflict, Unsupported
from wherry.host.places import is_local, mark
from wherry.wire.http import Request

SECRETS = "x-wherry-secrets"
NETWORKS = {"": "", "default": "", "none": "none", "host": "host"}


class BuildOptions(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """How to build. `contexts` are named contexts: an absolute directory, `docker-image://NAME`, `oci-layout://PATH`, a URL.

    `fresh_stages` are built without the cache; `cache_from` and `cache_to` are in buildx's words (`type=registry,ref=...`),
    `alike` images whose history is looked into. `agents` are sockets of SSH agents by id, `platforms` what to build for,
    `remote` the context's address; `directory` the context where client and engine see the same one (host.places.mark).
    `provenance` is "", min or max. `events`: progress as a JSON object a line. `check` builds nothing. `auths` are credentials
    by the address of a registry.
    From `networks` on it is what the containers of RUN get: names or ids of networks, names with addresses, sizes, limits.
    """

    fresh_stages: tuple[str, ...] = ()
    annotations: dict[str, str] = {}
    contexts: dict[str, str] = {}
    secrets: dict[str, bytes] = {}
    network: str = ""
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    agents: dict[str, str] = {}
    platforms: tuple[str, ...] = ()
    remote: str = ""
    directory: str = ""
    directory_mark: str = ""
    allow: tuple[str, ...] = ()
    sbom: bool = False
    provenance: str = ""
    provenance_version: str = ""
    builder_id: str = ""
    events: bool = False
    auths: dict[str, dict[str, str]] = {}
    compression: str = ""
    compression_level: str = ""
    pull: bool = False
    check: bool = False
    networks: tuple[str, ...] = ()
    hosts: dict[str, str] = {}
    shm_bytes: int = 0
    limits: Limits = Limits()
    ulimits: tuple[Ulimit, ...] = ()


class Build(BuildCache, Protocol):
    """Builds an image from a context that comes as a tar stream."""

    async def __call__(
        self,
        context: AsyncIterator[bytes],
        *,
        dockerfile: str,
        tags: list[str],
        args: Mapping[str, str],
        target: str,
        no_cache: bool,
        labels: Mapping[str, str],
        options: BuildOptions,
        say: Callable[[str], None],
    ) -> Image | None:
        """Return the image; raise Invalid with file, line and caret for a wrong Dockerfile. `say` gets progress text.

        The context is at `options.remote` where that is set.

        None where only checks were asked for.
        """
        ...

    def rootfs(self, name: str) -> AsyncIterator[bytes]:
        """Yield an image's files as a tar."""
        ...


def options_of(request: Request) -> BuildOptions:
    """Read them. Raises BadRequest, Unsupported."""
    try:
        options = msgspec.json.decode(request.first("wherry") or "{}", type=BuildOptions)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"wherry: {error}") from None
    if options.secrets or options.auths:
        raise BadRequest(f"wherry: secrets are sent in the header {SECRETS}, not in an address")
    if request.first("version") == "2":
        raise Unsupported(
            "BuildKit's session is not supported by wherry: build with DOCKER_BUILDKIT=0 (which `wherry env` sets), or with "
            "`wherry build`, which has buildx's words"
        )
    if options.directory:
        _check_directory(options.directory, options.directory_mark)
    network, networks = request.first("networkmode") or options.network, options.networks
    if network.startswith("container:"):
        raise Unsupported(f"build option networkmode is not supported by wherry: {network!r}")
    if network not in NETWORKS:
        network, networks = "", (network,)
    secrets: dict[str, bytes] = {}
    if text := request.headers.get(SECRETS):
        try:
            secrets = msgspec.json.decode(base64.b64decode(text, validate=True), type=dict[str, bytes])
        except (ValueError, msgspec.MsgspecError):
            raise BadRequest(f"{SECRETS}: not base64 of a JSON object of base64 values") from None
    pull = options.pull or (request.first("pull") or "").lower() in ("1", "true")
    return msgspec.structs.replace(
        options,
        network=NETWORKS[network],
        networks=networks,
        secrets=secrets,
        pull=pull,
        platforms=_platforms(request, options),
        alike=_alike(request),
        remote=_remote(request),
        auths=_auths(request),
        **_around(request),
    )


def _platforms(request: Request, options: BuildOptions) -> tuple[str, ...]:
    """Those of our own parameter, or the one of the classic API. Raises Invalid, BadRequest."""
    if options.platforms:
        return tuple(str(parse_platform(text)) for text in options.platforms)
    one = platform_text(request.first("platform"))
    return (one,) if one else ()


def _alike(request: Request) -> tuple[str, ...]:
    try:
        found = msgspec.json.decode(request.first("cachefrom") or "null", type=list[str] | None)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"build option cachefrom: {error}") from None
    return tuple(found or ())


def _remote(request: Request) -> str:
    """The context's address: of a repository, an archive or a Dockerfile. Raises Unsupported."""
    remote = request.first("remote") or ""
    if remote == "client-session":
        raise Unsupported(
            "build option remote is not supported by wherry: 'client-session' is BuildKit's; set DOCKER_BUILDKIT=0"
        )
    return remote


def _auths(request: Request) -> dict[str, dict[str, str]]:
    """Read X-Registry-Config: base64 of a JSON object of credentials by address. Raises BadRequest."""
    text = request.headers.get("x-registry-config")
    if not text:
        return {}
    try:
        padded = text + "=" * (-len(text) % 4)
        found = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_"), type=dict[str, dict[str, Any]] | None)
    except (ValueError, msgspec.MsgspecError):
        raise BadRequest("X-Registry-Config: not base64 of a JSON object") from None
    return {place: {key: str(value) for key, value in each.items() if value} for place, each in (found or {}).items()}


def _check_directory(path: str, said: str) -> None:
    """Raises Conflict where the client's directory is not the one that is at that path here; it sends a tar then."""
    try:
        same = path.startswith("/") and mark(path) == said and is_local(path)
    except (OSError, Broken):
        same = False
    if not same:
        raise Conflict(f"build context {path}: the engine does not see the same directory there; send it as a tar")


_LIMITS = {
    "memory": "Memory", "memswap": "MemorySwap", "cpushares": "CpuShares", "cpuperiod": "CpuPeriod", "cpuquota": "CpuQuota",
}  # fmt: skip


def _around(request: Request) -> dict[str, Any]:
    """Read what the containers of RUN get, in the words of the classic API. Raises BadRequest."""
    numbers: dict[str, int] = {}
    for name in (*_LIMITS, "shmsize"):
        text = request.first(name) or "0"
        if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
            raise BadRequest(f"build option {name} {text!r}: not a number")
        numbers[name] = int(text)
    asked = {field: numbers[name] for name, field in _LIMITS.items()}
    found: dict[str, Any] = {}
    cpus = request.first("cpusetcpus") or ""
    if cpus or any(asked.values()):
        found["limits"] = read_limits({**asked, "CpusetCpus": cpus})
    if numbers["shmsize"] > 0:
        found["shm_bytes"] = numbers["shmsize"]
    lines = [line for text in request.all("extrahosts") for line in text.split(",") if line]
    if lines:
        pairs = [line.partition("=" if "=" in line else ":") for line in lines]
        found["hosts"] = {name: address for name, _, address in pairs}
    if text := request.first("ulimits"):
        try:
            asked_ulimits = msgspec.json.decode(text, type=list[dict[str, Any]] | None)
            found["ulimits"] = tuple(read_ulimits({"Ulimits": asked_ulimits}))
        except msgspec.MsgspecError as error:
            raise BadRequest(f"build option ulimits: {error}") from None
    return found
