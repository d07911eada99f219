"""How git repositories are written: `URL[?key=value][#REF[:SUBDIR]]`. Pure.

Source: Docker, "Build context", "Git repositories".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from wherry.errors import Cause, Invalid

_SUM = re.compile(r"[0-9a-f]{7,64}")
_QUERY = ("ref", "branch", "tag", "checksum", "commit", "subdir", "keep-git-dir", "submodules")


@dataclass(frozen=True, slots=True)
class GitSource:
    """A repository's address, a branch, tag or commit of it ("" for its default), and a directory in it ("" for all).

    `checksum` is how the commit's id must begin. `keeps` is None where the address does not say whether `.git` stays.
    """

    url: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keeps: bool | None = None
    submodules: bool = True

    @property
    def shown(self) -> str:
        """The address without a password."""
        parts = urlsplit(self.url)
        return (
            self.url.replace(f"{parts.netloc}", parts.netloc.rpartition("@")[2], 1) if "://" in self.url else self.url
        )


def parse_git(text: str) -> GitSource:
    """Read `URL[?key=value][#REF[:SUBDIR]]`. Raises Invalid."""
    address, _, fragment = text.partition("#")
    ref, _, subdir = fragment.partition(":")
    words: dict[str, str] = {}
    if "://" in address and "?" in address:
        address, _, query = address.partition("?")
        if fragment:
            raise _invalid(text, "write the reference after '?' or after '#', not both")
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key not in _QUERY:
                raise _invalid(text, f"{key!r} is none of {', '.join(_QUERY)}")
            words[key] = value
        named = [f"refs/heads/{words['branch']}"] if "branch" in words else []
        named += [f"refs/tags/{words['tag']}"] if "tag" in words else []
        named += [words["ref"]] if "ref" in words else []
        if len(named) > 1:
            raise _invalid(text, "one of ref, branch and tag says it all")
        ref, subdir = "".join(named), words.get("subdir", "")
    checksum = words.get("checksum") or words.get("commit") or ""
    if checksum and _SUM.fullmatch(checksum) is None:
        raise _invalid(text, f"checksum {checksum!r}: a commit is 7 to 64 hex digits")
    ref, subdir = unquote(ref), unquote(subdir).strip("/")
    if ref.startswith("-") or re.search(r"[\s~^:?*\[\\\x00-\x1f]|\.\.", ref):
        raise _invalid(text, f"{ref!r} is no name of a branch, tag or commit")
    if address.startswith("-") or re.search(r"[\s\x00-\x1f]", address):
        raise _invalid(text, "that is no address")
    if address.startswith("git+ssh://"):
        address = address.removeprefix("git+")
    keeps, submodules = _flag(text, words, "keep-git-dir"), _flag(text, words, "submodules")
    return GitSource(address, ref, subdir, checksum, keeps, submodules is not False)


def _flag(text: str, words: Mapping[str, str], name: str) -> bool | None:
    if name not in words:
        return None
    if words[name].lower() not in ("", "1", "0", "true", "false"):
        raise _invalid(text, f"{name}={words[name]}: it is true or false")
    return words[name].lower() in ("", "1", "true")


def _invalid(text: str, why: str) -> Invalid:
    message = f"git address {re.sub('://[^/@]*@', '://', text)!r}: {why}"
    return Invalid(message, causes=[Cause("git", "Invalid", message)])
