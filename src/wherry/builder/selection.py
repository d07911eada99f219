"""What a COPY copies and where it lands. Pure, but for the digests of files, which are handed in."""

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from wherry.builder.ignore import is_pattern, pattern_regex
from wherry.builder.modes import KEEP, Mode
from wherry.builder.tree import Node, NotInTree, Tree
from wherry.content.tarwrite import Entry


class CopyError(Exception):
    """A COPY that cannot be; the caller knows its line."""


@dataclass(frozen=True, slots=True)
class Source:
    """One source that was found: its own name, its node, and for a directory all that is in it.

    With `above` (--parents) the name is a path, it lands below that path, and these are the directories on the way.
    """

    name: str
    node: Node
    below: Sequence[tuple[str, Node]]
    above: Sequence[tuple[str, Node]] | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """Who the copies belong to; None leaves a node's own."""

    uid: int
    gid: int


def select(
    tree: Tree,
    sources: Sequence[str],
    hint: Callable[[str], str],
    *,
    excludes: Sequence[str] = (),
    parents: bool = False,
) -> Sequence[Source]:
    """Find the sources in a tree. Raises CopyError for one that is not there; `hint(path)` may say why.

    `..` and absolute links end at the tree's root. A pattern that fits nothing is an error, as for Docker. `excludes` are
    patterns for what is left out, below a source, or a source itself by its name; `parents` keeps the way to each source.
    """
    hidden = _excluder(excludes)
    found: list[Source] = []
    for text in sources:
        pivot, path = "", posixpath.normpath("/" + text).lstrip("/")
        if parents and "/./" in text:
            pivot = posixpath.normpath("/" + text.partition("/./")[0]).lstrip("/")
        matches = _matches(tree, path) if is_pattern(path) else [path]
        if not matches:
            raise CopyError(f"nothing fits {text!r}{hint(path)}")
        for match in matches:
            real = tree.resolve(match)
            node = tree.get(real) if real is not None else None
            if real is None or node is None:
                raise CopyError(f"{text!r} is not there{hint(path)}")
            name = match.rpartition("/")[2]
            if node.kind != "dir" and hidden(name):
                continue
            below = (
                [(inner, each) for inner, each in tree.walk(real) if not hidden(inner)] if node.kind == "dir" else []
            )
            for inner, each in [(match, node), *below]:
                if each.kind not in ("file", "dir", "symlink"):
                    raise CopyError(f"{inner!r} is neither a file, a directory nor a link")
            if parents:
                name = match.removeprefix(pivot).lstrip("/")
                found.append(Source(name, node, below, _above(tree, match, name)))
            else:
                found.append(Source(name, node, below))
    return found


def _above(tree: Tree, match: str, name: str) -> Sequence[tuple[str, Node]]:
    """The directories on the way to a source, by their path at the destination."""
    before = match.removesuffix(name)
    made: list[tuple[str, Node]] = []
    parts = name.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        path = "/".join(parts[:count])
        real = tree.resolve(before + path)
        node = tree.get(real) if real is not None else None
        made.append((path, node if node is not None and node.kind == "dir" else Node("dir")))
    return made


def _excluder(patterns: Sequence[str]) -> Callable[[str], bool]:
    try:
        regexes = [re.compile(pattern_regex(text.strip("/")), re.DOTALL) for text in patterns]
    except (ValueError, re.error) as error:
        raise CopyError(f"--exclude: {error}") from None

    def hidden(path: str) -> bool:
        parts = path.split("/")
        ways = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return any(regex.fullmatch(way) for regex in regexes for way in ways)

    return hidden if regexes else lambda _: False


def files(sources: Sequence[Source]) -> Iterator[Node]:
    """Every regular file among the sources."""
    for source in sources:
        for node in (source.node, *(node for _, node in source.below)):
            if node.kind == "file":
                yield node


def digest(sources: Sequence[Source], digest_of: Callable[[Node], str], *, owners: bool) -> str:
    """Say one digest of all that is copied: names, kinds, modes, links and bytes; owners too if they are kept. No times."""
    rows: list[object] = []
    for source in sources:
        for name, node in source.above or ():
            rows.append(["above", name, node.mode, (node.uid, node.gid) if owners else 0])
        for name, node in [("", source.node), *source.below]:
            own = node.kind != "dir" or name != "" or source.above is not None
            rows.append(
                [
                    source.name if own else "",
                    name,
                    node.kind,
                    node.mode if own else 0,
                    (node.uid, node.gid) if owners else 0,
                    node.link,
                    digest_of(node) if node.kind == "file" else "",
                    sorted((key, value.hex()) for key, value in node.xattrs.items()) if node.xattrs else 0,
                ]
            )
        rows.append(None)
    return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()


def entries(
    base: Tree,
    sources: Sequence[Source],
    dest: str,
    *,
    owner: Owner | None,
    mode: Mode = KEEP,
    made_at: int | None = None,
    epoch: int | None,
) -> Sequence[Entry]:
    """Say the layer's entries: the sources at `dest` (absolute, with "/" at its end for a folder) over the tree `base`.

    Directories on the way are listed with what they have in `base`, or made 0755 for `owner` with the time `made_at` (None:
    the latest time of the sources: the same sources give the same bytes). `mode` is for what is copied, not for those.
    `epoch` is the latest time that any entry may have. Raises CopyError where a file would replace a directory, or a
    directory a file.
    """
    try:
        real = base.target(dest, follow_last=True)
    except NotInTree as error:
        raise CopyError(f"the destination {dest}: {error}") from None
    there = base.get(real)
    is_folder = dest.endswith("/") or (there is not None and there.kind == "dir")
    times = [node.mtime for source in sources for node in (source.node, *(below for _, below in source.below))]
    now = made_at if made_at is not None else max(times, default=0)
    into: dict[str, Node] = {}
    for source in sources:
        if source.above is not None:
            for name, node in source.above:
                _add(base, into, f"{real}/{name}".lstrip("/"), node)
            place = f"{real}/{source.name}".strip("/")
            if place != real or source.node.kind != "dir":
                _add(base, into, place, source.node)
            for name, node in source.below:
                _add(base, into, f"{place}/{name}".lstrip("/"), node)
        elif source.node.kind == "dir":
            if there is not None and there.kind != "dir":
                raise CopyError(f"the destination {dest} is a file, and a directory is copied")
            _add(base, into, real, Node("dir", mtime=now), keep=True)
            for name, node in source.below:
                _add(base, into, f"{real}/{name}".lstrip("/"), node)
        else:
            _add(base, into, f"{real}/{source.name}".lstrip("/") if is_folder else real, source.node)
    parents: dict[str, Node] = {}
    for path in into:
        above = path
        while above:
            above = above.rpartition("/")[0]
            if above and above not in into:
                parents.setdefault(above, base.get(above) or Node("dir", mtime=now, origin=None))
    made: list[Entry] = []
    for path in sorted({**parents, **into}):
        node = into.get(path) or parents[path]
        known = base.get(path)
        if path in parents and known is not None:
            if known.kind != "dir":
                raise CopyError(f"/{path} is not a directory")
            made.append(_entry(path, known, None, Mode(), epoch))
        elif path in parents or (path in into and node.kind == "dir" and path == real):
            if known is not None and known.kind == "dir":
                made.append(_entry(path, known, None, Mode(), epoch))
            else:
                made.append(_entry(path, node, owner, Mode(), epoch))
        else:
            made.append(_entry(path, node, owner, mode, epoch))
    return [entry for entry in made if entry.path]


def _add(base: Tree, into: dict[str, Node], path: str, node: Node, *, keep: bool = False) -> None:
    known = into.get(path) or base.get(path)
    if known is not None and (known.kind == "dir") != (node.kind == "dir") and path:
        what = "a file replace the directory" if known.kind == "dir" else "a directory replace the file"
        raise CopyError(f"COPY cannot let {what} /{path}")
    if not (keep and path in into):
        into[path] = node


def _entry(path: str, node: Node, owner: Owner | None, mode: Mode, epoch: int | None) -> Entry:
    source = node.origin
    if isinstance(source, tuple):
        raise CopyError(f"/{path}: its bytes were not taken out of the layer")
    return Entry(
        path,
        node.kind,
        mode.apply(node.mode, is_dir=node.kind == "dir") if node.kind != "symlink" else node.mode,
        owner.uid if owner else node.uid,
        owner.gid if owner else node.gid,
        node.mtime if epoch is None else min(node.mtime, epoch),
        node.link,
        node.size,
        source,
        node.device,
        node.xattrs,
    )


def _matches(tree: Tree, pattern: str) -> Sequence[str]:
    """Paths that fit, name by name, so that `*` does not cross a slash."""
    found = [""]
    for part in pattern.split("/"):
        if part == "**":
            found = [*found, *(way for folder in found for way in _folders(tree, folder))]
            continue
        try:
            regex = re.compile(pattern_regex(part.replace("**", "*")), re.DOTALL)
        except (ValueError, re.error) as error:
            raise CopyError(f"the pattern {pattern!r}: {error}") from None
        following: list[str] = []
        for folder in found:
            real = tree.resolve(folder)
            for name in tree.names(real) if real is not None else ():
                if regex.fullmatch(name):
                    following.append(f"{folder}/{name}".lstrip("/"))
        found = following
    return sorted(dict.fromkeys(found))


def _folders(tree: Tree, folder: str) -> Iterator[str]:
    """Every directory below one, at any depth."""
    for name, node in tree.walk(folder):
        if node.kind == "dir":
            yield f"{folder}/{name}".lstrip("/")


def owner_of(text: str, passwd: str, group: str) -> Owner:
    """Read `USER[:GROUP]` (names or numbers) by an image's /etc/passwd and /etc/group. Raises CopyError.

    Without a group it is the user's own by passwd, or for an unlisted number the same number.
    """
    user, colon, wanted = text.partition(":")
    users = _table(passwd)
    if user.isdigit():
        uid = int(user)
        gid = uid
    elif user in users:
        uid, gid = int(users[user][2]), int(users[user][3])
    else:
        raise CopyError(f"there is no user {user!r} in the image's /etc/passwd; write a number, or make the user first")
    if colon:
        groups = _table(group)
        if wanted.isdigit():
            gid = int(wanted)
        elif wanted in groups:
            gid = int(groups[wanted][2])
        else:
            raise CopyError(f"there is no group {wanted!r} in the image's /etc/group; write a number, or make it first")
    return Owner(uid, gid)


def _table(text: str) -> Mapping[str, Sequence[str]]:
    rows = (row.split(":") for row in text.splitlines())
    return {row[0]: row for row in rows if len(row) >= 4 and row[2].isdigit()}
