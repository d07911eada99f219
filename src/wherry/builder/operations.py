"""What a stage does, as values: the operations of a plan."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.builder.modes import KEEP, Mode
from wherry.builder.source import Line

_SCP = re.compile(r"[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:(?!//)\S+")


@dataclass(frozen=True, slots=True)
class From:
    """Where files come from: an earlier stage, an image, a named context; none of them is the build context.

    `image` is a whole name, and for another platform than the target's `NAME PLATFORM` (graph.image_key).
    """

    stage: int = -1
    image: str = ""
    context: str = ""

    @property
    def has_owners(self) -> bool:
        """Say whether its files have owners of their own: only those of an image do."""
        return self.stage >= 0 or self.image != ""


@dataclass(frozen=True, slots=True)
class RunMount:
    """One `--mount` of a RUN. `kind`: bind, cache, tmpfs, secret, ssh. `mode`, `uid`, `gid`: of the new directory or file.

    A secret is at `target`, in the variable `env`, or both; an agent's socket at `target`. `sharing` is a cache's: shared,
    private or locked.
    """

    kind: str
    target: str = ""
    source: str = ""
    origin: From = From()
    read_only: bool = False
    id: str = ""
    sharing: str = "shared"
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    env: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Meta:
    """Only the config changes."""

    line: Line
    created_by: str


@dataclass(frozen=True, slots=True)
class Run:
    """A command in a container. `env` is all it sees; `proxies` too, but they are in no key.

    `network` is "", none or host. `script` is a file with the command, (name, text), below /dev/pipes. `insecure` has
    the rights of a privileged container.
    """

    line: Line
    created_by: str
    argv: Sequence[str]
    env: Sequence[str]
    workdir: str
    user: str
    proxies: Sequence[str] = ()
    mounts: Sequence[RunMount] = ()
    network: str = ""
    script: tuple[str, str] | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """COPY and ADD. `inline` are the texts of sources that are heredocs; `extracts` unpacks local archives (ADD).

    A source `http://` or `https://` of an ADD is fetched and is `checksum`, where that is set. `unpack` says whether archives
    are unpacked: None is by their origin (local ones are, fetched ones are not). A source that is a git repository is its
    files, `.git` among them with `keep_git`; `checksum` is how its commit begins.
    """

    line: Line
    created_by: str
    sources: Sequence[str]
    dest: str
    origin: From = From()
    chown: str = ""
    chmod: Mode = KEEP
    link: bool = False
    parents: bool = False
    excludes: Sequence[str] = ()
    inline: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    is_add: bool = False
    unpack: bool | None = None
    checksum: str = ""
    keep_git: bool = False


@dataclass(frozen=True, slots=True)
class Workdir:
    """A directory that must be there; it is made for `user`."""

    line: Line
    created_by: str
    path: str
    user: str


Operation = Meta | Run | Copy | Workdir


def is_url(text: str) -> bool:
    """Say whether a source of ADD is fetched over HTTP."""
    return text.lower().startswith(("http://", "https://"))


def is_git(text: str) -> bool:
    """Say whether a text is the address of a git repository: `git@host:`, ssh://, git://, or a URL whose path ends in .git.

    Source: Dockerfile reference, "Adding files from a Git repository".
    """
    address = text.partition("#")[0].partition("?")[0]
    if text.startswith(("git://", "ssh://", "git+ssh://")) or _SCP.fullmatch(text.partition("#")[0]):
        return True
    return text.lower().startswith(("http://", "https://", "file://")) and address.rstrip("/").endswith(".git")
