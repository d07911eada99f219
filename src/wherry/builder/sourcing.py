"""Where a step's files come from, and the digest of them: the context, another stage, an image, a text, a URL, a repository."""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from wherry.builder.adding import fetched, file_name, is_archive, unpacked
from wherry.builder.cache import Cache, Seen
from wherry.builder.context import Context
from wherry.builder.git import GitAccess, checkout, resolve
from wherry.builder.gitnames import parse_git
from wherry.builder.ignore import Ignore
from wherry.builder.layers import fetch
from wherry.builder.operations import Copy, From, is_git, is_url
from wherry.builder.selection import CopyError, Source, digest, files, select
from wherry.builder.tree import Node, Tree, tree_of
from wherry.clock import machine
from wherry.content.protocol import Content
from wherry.errors import WherryError

SETTLED_S = 2.0
SMALL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Files:
    """What a step takes: its digest, and the files themselves once they are needed."""

    digest: str
    sources: Callable[[], Awaitable[Sequence[Source]]]


class Sourcing:
    """The sources of one build."""

    def __init__(
        self,
        content: Content,
        cache: Cache,
        context: Context,
        contexts: Mapping[str, Context],
        scratch: Path,
        access: GitAccess | None = None,
    ) -> None:
        self._content = content
        self._cache = cache
        self._context = context
        self._contexts = contexts
        self._scratch = scratch
        self._access = access or GitAccess()
        self._commits: dict[str, str] = {}
        self._trees: dict[str, Tree] = {}
        self._reading = asyncio.Lock()
        self._digests: dict[Path, str] = {}
        self._folders = 0

    async def files(
        self,
        origin: From,
        sources: Sequence[str],
        *,
        tree: Callable[[], Awaitable[Tree]] | None,
        key: str,
        operation: Copy | None,
        trust: bool,
    ) -> Files:
        """Say what a step takes. `tree` and `key` are those of the stage or image that `origin` means.

        With `trust` the digest of an earlier build is believed where all that it stands on is the same. Raises CopyError.
        """
        found: Sequence[Source] | None = None
        if operation is not None and operation.is_add:
            with _said():
                await self._resolve(sources, operation)

        async def take() -> Sequence[Source]:
            nonlocal found
            if found is None:
                found = await self._find(origin, sources, tree, operation)
            return found

        coarse = self._coarse(origin, sources, key, operation)
        if coarse and operation is not None and operation.is_add and any(is_git(text) for text in sources):
            return Files(coarse, take)  # the commits say it all
        known = await self._cache.content(coarse) if coarse and trust else None
        if known is None:
            owners = origin.has_owners or (operation is not None and operation.is_add)
            known = digest(await take(), self._digest_of, owners=owners)
            if coarse:
                await self._cache.put_content(coarse, known)
        return Files(known, take)

    def _coarse(self, origin: From, sources: Sequence[str], key: str, operation: Copy | None) -> str:
        """A name for files that need not be looked at again: those of a stage, an image, a URL with its checksum."""
        if operation is not None and any(is_git(text) for text in sources if operation.is_add):
            if not all(text in self._commits for text in sources):
                return ""
            # where a commit came from, and by which name, is in no key
            commits = [(self._commits[text], parse_git(text).subdir, parse_git(text).submodules) for text in sources]
            return _hash(["git", commits, self._keeps(sources, operation), operation.excludes])
        if operation is not None and operation.checksum:
            return _hash(["url", list(sources), operation.checksum, operation.unpack])
        if not origin.has_owners:
            return ""
        more = [] if operation is None else [operation.excludes, operation.parents, operation.inline]
        return _hash(["from", key, sources, *more])

    @property
    def commits(self) -> Mapping[str, str]:
        """The commits of the repositories that were added, by their addresses."""
        return self._commits

    async def _find(
        self,
        origin: From,
        sources: Sequence[str],
        tree: Callable[[], Awaitable[Tree]] | None,
        operation: Copy | None,
    ) -> Sequence[Source]:
        found: list[Source] = []
        for text in sources:
            if operation is not None and text in operation.inline:
                name, body = operation.inline[text]
                data = body.encode()
                found.append(Source(name, Node("file", 0o644, size=len(data), origin=data), ()))
            elif operation is not None and operation.is_add and text in self._commits:
                found += await self._checked_out(text, operation)
            elif operation is not None and operation.is_add and is_url(text):
                found.append(await self._fetched(text, operation))
            else:
                found += await self._local(origin, text, tree, operation)
        every = dict.fromkeys(node.origin for node in files(found) if isinstance(node.origin, Path))
        paths = [path for path in every if path not in self._digests]
        if paths:
            lasts = not origin.has_owners and self._of(origin).lasts
            known = await self._cache.seen() if lasts else {}
            made, fresh = await asyncio.to_thread(digests, paths, known)
            self._digests |= made
            if lasts:
                await self._cache.put_seen(fresh)
        return found

    async def _local(
        self, origin: From, text: str, tree: Callable[[], Awaitable[Tree]] | None, operation: Copy | None
    ) -> Sequence[Source]:
        excludes = operation.excludes if operation is not None else ()
        parents = operation is not None and operation.parents
        if tree is not None:
            found = select(await tree(), [text], lambda _: "", excludes=excludes, parents=parents)
            return await fetch(self._content, found, self._folder("copy"))
        context = self._of(origin)
        found = select(await self._tree(context), [text], _hint(context), excludes=excludes, parents=parents)
        if operation is None or not operation.is_add or operation.unpack is False:
            return found
        made: list[Source] = []
        for source in found:
            path = source.node.origin
            archive = isinstance(path, Path) and await asyncio.to_thread(is_archive, path)
            if archive and isinstance(path, Path):
                made.append(await unpacked(path, source.name, self._folder("archive") / "files"))
            else:
                made.append(source)
        return made

    async def _resolve(self, sources: Sequence[str], operation: Copy) -> None:
        """Ask for the commit of each git repository, once in a build."""
        for text in sources:
            if is_git(text) and text not in self._commits and text not in operation.inline:
                source = parse_git(text)
                source = replace(source, checksum=operation.checksum or source.checksum)
                self._commits[text] = await resolve(source, self._access, self._folder("git"))

    def _keeps(self, sources: Sequence[str], operation: Copy) -> bool:
        return operation.keep_git or any(parse_git(text).keeps for text in sources if is_git(text))

    async def _checked_out(self, text: str, operation: Copy) -> Sequence[Source]:
        keeps = self._keeps([text], operation)
        with _said():
            made = await checkout(
                parse_git(text), self._commits[text], self._access, self._folder("git") / "at", keeps=keeps
            )
        tree = await asyncio.to_thread(tree_of, made.root, Ignore())
        return select(tree, ["/"], lambda _: "", excludes=operation.excludes)

    async def _fetched(self, url: str, operation: Copy) -> Source:
        source = await fetched(url, operation.checksum, self._folder("url") / "files")
        path = source.node.origin
        if operation.unpack and isinstance(path, Path) and await asyncio.to_thread(is_archive, path):
            return await unpacked(path, source.name or url, self._folder("archive") / "files")
        if operation.dest.endswith("/") and not file_name(url):
            raise CopyError(f"ADD {url}: the URL names no file; write the file's name at the end of the destination")
        return source

    def _of(self, origin: From) -> Context:
        return self._contexts[origin.context] if origin.context else self._context

    async def _tree(self, context: Context) -> Tree:
        async with self._reading:
            name = str(context.root)
            if name not in self._trees:
                self._trees[name] = await asyncio.to_thread(tree_of, context.root, context.ignore)
            return self._trees[name]

    def _digest_of(self, node: Node) -> str:
        if isinstance(node.origin, bytes):
            return hashlib.sha256(node.origin).hexdigest()
        if not isinstance(node.origin, Path):
            raise CopyError("a file has no bytes")
        return self._digests[node.origin]

    def _folder(self, kind: str) -> Path:
        self._folders += 1
        folder = self._scratch / f"{kind}-{self._folders}"
        folder.mkdir()
        return folder


def _hint(context: Context) -> Callable[[str], str]:
    def hint(path: str) -> str:
        if context.ignore.hides(path) and (context.root / path).exists():
            return f" for the build: {context.ignore.name} leaves it out"
        return " in the build context"

    return hint


def digests(paths: Sequence[Path], known: Mapping[str, Seen]) -> tuple[dict[Path, str], dict[str, Seen]]:
    """The digest of each file: by what is known of a file that has not changed, or of its bytes."""
    found: dict[Path, str] = {}
    fresh: dict[str, Seen] = {}
    for path in paths:
        try:
            if known:
                now = os.lstat(path)
                seen = known.get(f"{now.st_dev}:{now.st_ino}")
                if seen is not None and seen[:3] == (now.st_size, now.st_mtime_ns, now.st_ctime_ns):
                    found[path] = seen[3]
                    continue
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise CopyError(f"{path.name!r} cannot be read: {error.strerror}") from error
        with open(fd, "rb", buffering=0) as file:
            now = os.fstat(fd)
            small = os.read(fd, SMALL_BYTES) if now.st_size < SMALL_BYTES else None
            taken = hashlib.file_digest(file, "sha256") if small is None else hashlib.sha256(small)
            found[path] = taken.hexdigest()
            if (
                now.st_ctime < machine.now() - SETTLED_S
            ):  # a later write in the same tick of the clock would look the same
                fresh[f"{now.st_dev}:{now.st_ino}"] = (now.st_size, now.st_mtime_ns, now.st_ctime_ns, found[path])
    return found, fresh


@contextmanager
def _said() -> Generator[None]:
    """What git says is the step's failure."""
    try:
        yield
    except WherryError as error:
        raise CopyError(f"ADD: {error.message}") from error


def _hash(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()
