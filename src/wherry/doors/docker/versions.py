"""What clients of older API versions get otherwise than those of the newest: one table of small edits to answers.

Handlers answer as the newest version does, or look at the version by themselves (images: `requests.version_of`). What a
later version took away of the rest, or writes in another way, is put back here for those who ask by an older one.
Source: Docker, "Engine API version history".
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from wherry.doors.docker.streams import MULTIPLEXED, RAW
from wherry.errors import BadRequest
from wherry.wire.http import Response

Version = tuple[int, int]
Json = dict[str, Any]

NEWEST: Version = (1, 51)
OLDEST: Version = (1, 24)
IMAGES_SINCE: Version = (1, 22)
"""Requests about images are the same since then: Debian 12's skopeo asks so for `docker-daemon:`."""

STREAMS_TYPED: Version = (1, 42)
"""Since then the type of a stream says whether it is multiplexed; before it was always called raw."""

_PREFIX = re.compile(r"/v(\d{1,4})\.(\d{1,4})(/.*)")


def text(version: Version) -> str:
    """A version as clients write it."""
    return f"{version[0]}.{version[1]}"


def split(path: str) -> tuple[Version, str]:
    """Take the version off a path; without one it is the newest. Raises BadRequest in Docker's words."""
    match = _PREFIX.fullmatch(path)
    if match is None:
        return NEWEST, path
    asked = (int(match[1]), int(match[2]))
    if asked < (IMAGES_SINCE if match[3].startswith("/images/") else OLDEST):
        raise BadRequest(
            f"client version {text(asked)} is too old. Minimum supported API version is {text(OLDEST)}, please upgrade "
            "your client to a newer version"
        )
    if asked > NEWEST:
        raise BadRequest(f"client version {text(asked)} is too new. Maximum supported API version is {text(NEWEST)}")
    return asked, match[3]


@dataclass(frozen=True, slots=True)
class Change:
    """An edit of the JSON that `GET path` answers, for clients below a version."""

    below: Version
    path: re.Pattern[str]
    edit: Callable[[Any], None]


def _without(*names: str) -> Callable[[Any], None]:
    def edit(answer: Any) -> None:
        for name in names:
            answer.pop(name, None)

    return edit


def _plain_runtimes(answer: Json) -> None:
    for runtime in answer["Runtimes"].values():
        runtime.pop("status", None)


def _kernel_memory(answer: Json) -> None:
    answer.setdefault("KernelMemory", False)
    answer.setdefault("KernelMemoryTCP", False)


def _bridge_filters(answer: Json) -> None:
    """Whether packets between neighbours on a bridge pass iptables: nothing of ours hangs on it; older clients show it."""
    for name, file in (("BridgeNfIptables", "iptables"), ("BridgeNfIp6tables", "ip6tables")):
        answer[name] = _is_on(f"/proc/sys/net/bridge/bridge-nf-call-{file}")


def _is_on(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _security_names(answer: Json) -> None:
    """Names alone, without options; and the driver that is none any more."""
    options = [dict(pair.partition("=")[::2] for pair in each.split(",")) for each in answer["SecurityOptions"]]
    answer["SecurityOptions"] = [each["name"] for each in options]
    answer["ExecutionDriver"] = "<not supported>"


_INFO = re.compile(r"/info")

CHANGES: Sequence[Change] = (
    Change((1, 50), _INFO, _without("DiscoveredDevices")),
    Change((1, 50), _INFO, _bridge_filters),
    Change((1, 49), _INFO, _without("FirewallBackend")),
    Change((1, 44), _INFO, _plain_runtimes),
    Change((1, 42), _INFO, _kernel_memory),
    Change((1, 25), _INFO, _security_names),
)
"""The newest first, as a client walks back."""


def as_of(version: Version, method: str, path: str, response: Response) -> None:
    """Write an answer as this version has it."""
    if version >= NEWEST or response.status >= 300:
        return
    if version < STREAMS_TYPED and response.headers.get("content-type") == MULTIPLEXED:
        response.headers.set("Content-Type", RAW)
    if method != "GET" or not isinstance(response.body, bytes):
        return
    edits = [each.edit for each in CHANGES if version < each.below and each.path.fullmatch(path)]
    if edits:
        answer: Any = msgspec.json.decode(response.body)
        for edit in edits:
            edit(answer)
        response.body = msgspec.json.encode(answer)
