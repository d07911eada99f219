"""What a build may be asked for beyond the classic API, and the builder as this door needs it.

`/build` has one parameter of ours, `wherry`: a JSON object of the fields of `BuildOptions`, in camelCase; `wherry build` sends
it. Secrets come in the header X-Wherry-Secrets (base64 of a JSON object), since addresses are logged.
"""

import base64
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import msgspec

from wherry.engine.types import Image
from wherry.errors import BadRequest, Unsupported
from wherry.wire.http import Request

SECRETS = "x-wherry-secrets"
NETWORKS = {"": "", "default": "", "none": "none", "host": "host"}


class BuildOptions(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """How to build. `contexts` are named contexts: an absolute directory, or `docker-image://NAME`.

    `fresh_stages` are built without the cache; `cache_from` and `cache_to` are directories. `check` builds nothing.
    """

    fresh_stages: tuple[str, ...] = ()
    annotations: dict[str, str] = {}
    contexts: dict[str, str] = {}
    secrets: dict[str, bytes] = {}
    network: str = ""
    cache_from: tuple[str, ...] = ()
    cache_to: str = ""
    compression: str = ""
    compression_level: str = ""
    pull: bool = False
    check: bool = False


class Build(Protocol):
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
    if options.secrets:
        raise BadRequest(f"wherry: secrets are sent in the header {SECRETS}, not in an address")
    network = request.first("networkmode") or options.network
    if network not in NETWORKS:
        raise Unsupported(
            f"build option networkmode is not supported by wherry: {network!r}; there are default, none, host"
        )
    secrets: dict[str, bytes] = {}
    if text := request.headers.get(SECRETS):
        try:
            secrets = msgspec.json.decode(base64.b64decode(text, validate=True), type=dict[str, bytes])
        except (ValueError, msgspec.MsgspecError):
            raise BadRequest(f"{SECRETS}: not base64 of a JSON object of base64 values") from None
    pull = options.pull or (request.first("pull") or "").lower() in ("1", "true")
    return msgspec.structs.replace(options, network=NETWORKS[network], secrets=secrets, pull=pull)
