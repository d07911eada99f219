"""A build's context: a directory, a tar that a child without rights unpacks, an address; its Dockerfile and .dockerignore."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from wherry.builder.git import GitAccess
from wherry.builder.ignore import Ignore
from wherry.builder.remotes import bring, unpack_context
from wherry.errors import BadRequest, Cause, Invalid

DOCKERFILE_MAX_BYTES = 1024 * 1024
IGNORE_FILE = ".dockerignore"
SENT_DOCKERFILE = ".wherry.Dockerfile"
"""A Dockerfile from outside of the context, as `wherry build` sends it along."""
LOCAL = GitAccess(local=True)


@dataclass(frozen=True, slots=True)
class Context:
    """Where the files are, what is left out of them, and the Dockerfile's text and name.

    `lasts` says that the files are still there at the next build, so that their digests are worth remembering. `url` and
    `commit` are where it came from.
    """

    root: Path
    ignore: Ignore
    dockerfile: str = ""
    name: str = ""
    lasts: bool = False
    url: str = ""
    commit: str = ""


@asynccontextmanager
async def opened(
    context: Path | AsyncIterator[bytes] | str, dockerfile: str, scratch: Path, access: GitAccess = LOCAL
) -> AsyncGenerator[Context]:
    """Give the context; files that came in a tar, or from an address, are below `scratch` until the end.

    Raises Invalid, BadRequest, NotFound, Unavailable, Broken.
    """
    if isinstance(context, Path):
        if not context.is_dir():
            raise Invalid(f"build context {context}: it is not a directory")
        yield await asyncio.to_thread(_read, context, dockerfile, True)
        return
    folder = Path(tempfile.mkdtemp(prefix="context-", dir=scratch))
    try:
        if isinstance(context, str):
            brought = await bring(context, access, folder)
            name = "Dockerfile" if brought.is_file else dockerfile
            made = await asyncio.to_thread(_read, brought.root, name, False)
            yield replace(made, url=brought.url, commit=brought.commit)
            return
        root = folder / "files"
        root.mkdir()
        with (folder / "tar").open("wb") as file:
            async for part in context:
                await asyncio.to_thread(file.write, part)
        if not (folder / "tar").stat().st_size:
            raise BadRequest("build context: it is empty; a tar archive is needed")
        await unpack_context(folder / "tar", root)
        made = await asyncio.to_thread(_read, root, dockerfile, False)
        for name in (SENT_DOCKERFILE, f"{SENT_DOCKERFILE}{IGNORE_FILE}"):
            (root / name).unlink(missing_ok=True)  # it is no file of the context
        yield made
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def named(root: Path, name: str) -> Context:
    """A named context: a directory with its own .dockerignore. Raises Invalid."""
    if not root.is_dir():
        raise Invalid(f"build context {name}={root}: it is not a directory")
    return Context(root, Ignore(_text(root, IGNORE_FILE) or "", IGNORE_FILE), lasts=True)


async def named_remote(url: str, access: GitAccess, scratch: Path) -> Context:
    """A named context from an address; its files stay below `scratch`. Raises as `opened`."""
    brought = await bring(url, access, Path(tempfile.mkdtemp(prefix="named-", dir=scratch)))
    rules = await asyncio.to_thread(_text, brought.root, IGNORE_FILE)
    return Context(brought.root, Ignore(rules or "", IGNORE_FILE), url=brought.url, commit=brought.commit)


def _read(root: Path, dockerfile: str, lasts: bool) -> Context:
    text = _text(root, dockerfile)
    if text is None:
        message = f"there is no {dockerfile} in the build context; name another with -f"
        raise Invalid(message, causes=[Cause("dockerfile", "NotFound", message)])
    rules, name = _text(root, f"{dockerfile}{IGNORE_FILE}"), f"{dockerfile}{IGNORE_FILE}"
    if rules is None:
        rules, name = _text(root, IGNORE_FILE), IGNORE_FILE
    return Context(root, Ignore(rules or "", name), text, dockerfile, lasts)


def _text(root: Path, name: str) -> str | None:
    """Read a text file of the context; None when there is none. Raises Invalid for one that leads out of it."""
    real = os.path.realpath(root / name)
    if os.path.commonpath([real, os.path.realpath(root)]) != os.path.realpath(root):
        raise Invalid(f"{name}: it lies outside the build context")
    try:
        with open(real, "rb") as file:
            data = file.read(DOCKERFILE_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Invalid(f"{name}: it cannot be read: {error.strerror}") from None
    if len(data) > DOCKERFILE_MAX_BYTES:
        raise Invalid(f"{name}: more than {DOCKERFILE_MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Invalid(f"{name}: it is not UTF-8 text") from None
