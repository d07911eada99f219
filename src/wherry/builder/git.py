"""Git repositories: which commit is meant, and its files, as build contexts and for ADD.

The `git` program runs in a child with no configuration but ours: none of the machine's or a user's, no hooks, no prompts, and
only the transports that are named here. What it brings depends on the commit alone: modes are 0644 or 0755, times its own.
Source: git-config, git-fetch, git-ls-remote.
"""

import asyncio
import base64
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from wherry.builder.gitnames import GitSource
from wherry.errors import Broken, DeadlineExceeded, Invalid, NotFound, Unavailable, WherryError
from wherry.host.spawn import plain

GIT_S = 1800.0
TOKEN, HEADER = "GIT_AUTH_TOKEN", "GIT_AUTH_HEADER"
"""Ids of the secrets that sign in over HTTPS, for every host, or with `.HOST` behind for one."""
PROTOCOLS = ("https", "http", "git", "ssh")
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SAID_BYTES = 64 * 1024
_PASSED = (
    *("http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"),
    *("GIT_SSL_CAINFO", "SSL_CERT_FILE"),
)
"""What git may know of our own environment."""


@dataclass(frozen=True, slots=True)
class GitAccess:
    """How to sign in: secrets by id, the socket of an SSH agent, the file that remembers hosts' keys.

    `local`: file:// is allowed.
    """

    secrets: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    agent: str = ""
    known_hosts: Path | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class Checkout:
    """A commit's files, at `root`."""

    root: Path
    commit: str


async def resolve(source: GitSource, access: GitAccess, scratch: Path) -> str:
    """Ask the repository which commit is meant: its id. Raises NotFound, Invalid, Broken."""
    if _SHA.fullmatch(source.ref):
        return _checked(source, source.ref)
    wanted = source.ref or "HEAD"
    said = await _git(source, access, scratch, ["ls-remote", "--", source.url, wanted, f"{wanted}^{{}}"])
    found: dict[str, str] = {}
    for row in said.splitlines():
        id, _, name = row.partition("\t")
        if _SHA.fullmatch(id):
            found[name] = id
    for name in (f"refs/tags/{wanted}", f"refs/heads/{wanted}", wanted):
        if id := found.get(f"{name}^{{}}") or found.get(name):
            return _checked(source, id)
    words = f"it has no branch or tag {wanted!r}" if source.ref else "it has no commits"
    raise NotFound(f"git repository {source.shown}: {words}")


async def checkout(source: GitSource, commit: str, access: GitAccess, scratch: Path, *, keeps: bool) -> Checkout:
    """Bring the files of a commit below `scratch`; `.git` is among them where it `keeps`.

    Raises NotFound for a commit or directory that is not there, Invalid for one that leads out, Broken.
    """
    root = scratch / "files"
    root.mkdir(parents=True)
    at = ["-C", str(root)]
    await _git(source, access, scratch, ["init", "-q", "--template=", str(root)])
    try:
        await _git(source, access, scratch, [*at, "fetch", "-q", "--depth=1", "--no-tags", "--", source.url, commit])
    except NotFound:  # servers may refuse single commits, and have no shallow ones
        every = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
        await _git(source, access, scratch, [*at, "fetch", "-q", "--", source.url, *every])
    try:
        await _git(source, access, scratch, [*at, "checkout", "-q", "--detach", commit])
    except NotFound:
        raise NotFound(f"git repository {source.shown}: it has no commit {commit}") from None
    if source.submodules and (root / ".gitmodules").exists():
        above = ["-c", f"remote.origin.url={source.url}"]
        words = ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"]
        await _git(source, access, scratch, [*at, *above, *words], protocols=PROTOCOLS)
    when = int(await _git(source, access, scratch, [*at, "show", "-s", "--format=%ct", commit]))
    await asyncio.to_thread(_tidy, root, when, keeps)
    return Checkout(_inside(source, root), commit)


def _tidy(root: Path, when: int, keeps: bool) -> None:
    """Make the files depend on the commit alone."""
    for folder, names, files in os.walk(root, topdown=False):
        for name in files:
            place = os.path.join(folder, name)
            if name == ".git" and not keeps:
                os.unlink(place)  # a submodule's
            elif not os.path.islink(place):
                os.chmod(place, 0o755 if os.stat(place).st_mode & 0o100 else 0o644)
        for name in names:
            place = os.path.join(folder, name)
            if name == ".git" and not keeps and folder == str(root):
                shutil.rmtree(place)
            elif not os.path.islink(place):
                os.chmod(place, 0o755)
    for folder, names, files in os.walk(root, topdown=False):
        for name in (*files, *names):
            os.utime(os.path.join(folder, name), (when, when), follow_symlinks=False)
    os.utime(root, (when, when))


def _inside(source: GitSource, root: Path) -> Path:
    real, top = os.path.realpath(root / source.subdir), os.path.realpath(root)
    if os.path.commonpath([real, top]) != top:
        raise Invalid(f"git repository {source.shown}: the directory {source.subdir!r} lies outside of it")
    if not os.path.isdir(real):
        raise NotFound(f"git repository {source.shown}: it has no directory {source.subdir!r}")
    return Path(real)


async def _git(
    source: GitSource, access: GitAccess, scratch: Path, words: Sequence[str], protocols: Sequence[str] = ()
) -> str:
    """Run git; return what it says.

    Raises NotFound for what the repository does not have, Unavailable, Invalid, Broken, DeadlineExceeded.
    """
    program = shutil.which("git")
    if program is None:
        raise Broken(f"git repository {source.shown}: there is no git program on this machine; install the package git")
    scratch.mkdir(parents=True, exist_ok=True)
    home = scratch / "home"
    home.mkdir(exist_ok=True)
    allowed = protocols or ((*PROTOCOLS, "file") if access.local else PROTOCOLS)
    with (home / "out").open("w+b") as out, (home / "err").open("w+b") as err:
        child = await plain.start(
            [program, *words], stdout=out.fileno(), stderr=err.fileno(), new_session=True,
            env=_environment(source, access, home, allowed), cwd=str(home),
        )  # fmt: skip
        try:
            code = await child.wait(timeout_s=GIT_S)
        finally:
            if child.code is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # its helpers too
                await asyncio.shield(child.wait(timeout_s=5.0))
            child.close()
        out.seek(0)
        err.seek(0)
        said, words_of_error = out.read(_SAID_BYTES * 64), err.read(_SAID_BYTES).decode(errors="replace").strip()
    if code is None:
        raise DeadlineExceeded(f"git repository {source.shown}: not done after {GIT_S:g} s")
    if code != 0:
        raise _failure(source, words_of_error)
    return said.decode(errors="replace")


def _failure(source: GitSource, said: str) -> WherryError:
    message = f"git repository {source.shown}: {_tell(said) or 'git failed, and said nothing'}"
    lower = said.lower()
    if "not allowed" in lower and "transport" in lower:
        return Invalid(f"{message}; {', '.join(PROTOCOLS)} are")
    if "authentication" in lower or "could not read username" in lower or "permission denied" in lower:
        return Broken(f"{message}; give a secret {TOKEN} for https, or --ssh for ssh")
    if re.search(r"could not resolve|failed to connect|connection refused|timed out|could not read from remote", lower):
        return Unavailable(message)
    return NotFound(message)


def _tell(said: str) -> str:
    """The first words that say what is wrong, without the address, which may have a password."""
    rows = [row.strip() for row in said.splitlines() if row.strip()]
    chosen = next((row for row in rows if row.startswith(("fatal:", "error:"))), rows[0] if rows else "")
    return re.sub(r"://[^/@\s']*@", "://", chosen)[:500]


def _environment(source: GitSource, access: GitAccess, home: Path, protocols: Sequence[str]) -> dict[str, str]:
    known = access.known_hosts or home / "known_hosts"
    ssh = f"ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={known}"
    settings = [
        ("core.hooksPath", "/dev/null"),
        ("core.fsmonitor", "false"),
        ("core.autocrlf", "false"),
        ("core.symlinks", "true"),
        ("advice.detachedHead", "false"),
        ("init.defaultBranch", "main"),
        ("gc.auto", "0"),
        ("credential.helper", ""),
    ]
    host = urlsplit(source.url).hostname or ""
    scheme = urlsplit(source.url).scheme
    secret = access.secrets.get(f"{HEADER}.{host}") or access.secrets.get(HEADER)
    token = access.secrets.get(f"{TOKEN}.{host}") or access.secrets.get(TOKEN)
    if scheme in ("http", "https") and (secret or token):
        text = (
            secret.decode()
            if secret
            else f"basic {base64.b64encode(b'x-access-token:' + (token or b'').strip()).decode()}"
        )
        place = f"{scheme}://{urlsplit(source.url).netloc.rpartition('@')[2]}/"
        settings.append((f"http.{place}.extraHeader", f"Authorization: {text.strip()}"))
    made = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(home),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(protocols),
        "GIT_SSH_COMMAND": ssh,
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (key, value) in enumerate(settings):  # not on the command line, which everybody can read
        made[f"GIT_CONFIG_KEY_{number}"], made[f"GIT_CONFIG_VALUE_{number}"] = key, value
    made |= {name: os.environ[name] for name in _PASSED if name in os.environ}
    if access.agent:
        made["SSH_AUTH_SOCK"] = access.agent
    return made


def _checked(source: GitSource, commit: str) -> str:
    if source.checksum and not commit.startswith(source.checksum):
        raise Invalid(
            f"git repository {source.shown}: {source.ref or 'HEAD'} is the commit {commit}, not {source.checksum}"
        )
    return commit
