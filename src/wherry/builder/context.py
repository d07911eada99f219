"""A build's context: a directory, or a tar that is unpacked by a child without rights; its Dockerfile and .dockerignore."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from wherry.builder.ignore import Ignore
from wherry.content.unpack_child import unpack
from wherry.errors import BadRequest, Cause, Invalid

DOCKERFILE_MAX_BYTES = 1024 * 1024
IGNORE_FILE = ".dockerignore"


@dataclass(frozen=True, slots=True)
class Context:
    """Where the files are, what is left out of them, and the Dockerfile's text and name.

    `lasts` says that the files are still there at the next build, so that their digests are worth remembering.
    """

    root: Path
    ignore: Ignore
    dockerfile: str = ""
    name: str = ""
    lasts: bool = False


@asynccontextmanager
async def opened(context: Path | AsyncIterator[bytes], dockerfile: str, scratch: Path) -> AsyncGenerator[Context]:
    """Give the context; a tar's files are below `scratch` until the end. Raises Invalid, BadRequest."""
    if isinstance(context, Path):
        if not context.is_dir():
            raise Invalid(f"build context {context}: it is not a directory")
        yield await asyncio.to_thread(_read, context, dockerfile, True)
        return
    folder = Path(tempfile.mkdtemp(prefix="context-", dir=scratch))
    try:
        root = folder / "files"
        root.mkdir()
        with (folder / "tar").open("wb") as file:
            async for part in context:
                await asyncio.to_thread(file.write, part)
        if not (folder / "tar").stat().st_size:
            raise BadRequest("build context: it is empty; a tar archive is needed")
        await unpack(folder / "tar", root, name="build context", layer=False)
        (folder / "tar").unlink()
        yield await asyncio.to_thread(_read, root, dockerfile, False)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def named(root: Path, name: str) -> Context:
    """A named context: a directory with its own .dockerignore. Raises Invalid."""
    if not root.is_dir():
        raise Invalid(f"build context {name}={root}: it is not a directory")
    return Context(root, Ignore(_text(root, IGNORE_FILE) or "", IGNORE_FILE), lasts=True)


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
