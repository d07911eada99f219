"""A tree of files as values: of a build context, or of an image's layers put over each other. Links are read within it."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wherry.builder.ignore import Ignore
from wherry.content.tars import Member
from wherry.content.unpack import OPAQUE_MARK, WHITEOUT

HOPS_MAX = 40

Origin = Path | bytes | tuple[str, str] | None
"""A file's bytes, or where they are: a path on this machine, (layer digest, path in it), or nowhere."""


@dataclass(frozen=True, slots=True)
class Node:
    """One file, directory or link, kinds as in content/tars."""

    kind: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    origin: Origin = None


class NotInTree(Exception):
    """A path leads nowhere, through a file, or through too many links."""


class Tree:
    """Nodes by path; paths have no leading slash, "" is the root."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {"": Node("dir")}
        self._below: dict[str, set[str]] = {"": set()}

    def copy(self) -> "Tree":
        """An independent copy."""
        other = Tree()
        other._nodes = dict(self._nodes)
        other._below = {path: set(names) for path, names in self._below.items()}
        return other

    def get(self, path: str) -> Node | None:
        """The node at a real path."""
        return self._nodes.get(path)

    def names(self, path: str) -> Sequence[str]:
        """The names in a directory, sorted."""
        return sorted(self._below.get(path, ()))

    def walk(self, path: str) -> Iterator[tuple[str, Node]]:
        """All that is below a directory, (path relative to it, node), parents first, sorted."""
        for name in self.names(path):
            child = f"{path}/{name}" if path else name
            node = self._nodes[child]
            yield name, node
            if node.kind == "dir":
                for rest, below in self.walk(child):
                    yield f"{name}/{rest}", below

    def resolve(self, path: str) -> str | None:
        """Follow links, the last one too; the real path, or None when there is nothing. `..` stops at the root."""
        try:
            real = self.target(path, follow_last=True)
        except NotInTree:
            return None
        return real if real in self._nodes else None

    def target(self, path: str, *, follow_last: bool) -> str:
        """The real path where something at `path` would be made; what is missing is taken as it is written.

        Raises NotInTree when the way goes through a file, or round in circles.
        """
        waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        real: list[str] = []
        hops = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                if real:
                    real.pop()
                continue
            here = "/".join([*real, part])
            node = self._nodes.get(here)
            if node is not None and node.kind == "symlink" and (waiting or follow_last):
                hops += 1
                if hops > HOPS_MAX:
                    raise NotInTree(f"/{here}: more than {HOPS_MAX} links")
                if node.link.startswith("/"):
                    real = []
                waiting += [step for step in reversed(node.link.split("/")) if step not in ("", ".")]
                continue
            if node is not None and node.kind != "dir" and waiting:
                raise NotInTree(f"/{here} is not a directory")
            real.append(part)
        return "/".join(real)

    def put(self, path: str, node: Node) -> None:
        """Add or replace a node; a directory over a directory keeps what is in it."""
        if not path:
            self._nodes[""] = node
            return
        old = self._nodes.get(path)
        if old is not None and not (old.kind == "dir" and node.kind == "dir"):
            self.remove(path)
        above, _, name = path.rpartition("/")
        parent = self._nodes.get(above)
        if parent is None or parent.kind != "dir":
            self.put(above, Node("dir"))
        self._below[above].add(name)
        self._nodes[path] = node
        if node.kind == "dir":
            self._below.setdefault(path, set())

    def remove(self, path: str) -> None:
        """Remove a node and all below it; nothing if it is not there."""
        if path not in self._nodes:
            return
        self.empty(path)
        del self._nodes[path]
        self._below.pop(path, None)
        above, _, name = path.rpartition("/")
        self._below[above].discard(name)

    def empty(self, path: str) -> None:
        """Remove all below a directory."""
        for name in self.names(path):
            self.remove(f"{path}/{name}" if path else name)

    def lay(self, layer: str, members: Sequence[Member]) -> None:
        """Put a layer over it, given its entries and its digest. Whiteouts take away only what was below."""
        named = [(_clean(member.path), member) for member in members]
        for path, _ in named:
            above, _, name = path.rpartition("/")
            if name == OPAQUE_MARK:
                self.empty(above)
            elif name.startswith(WHITEOUT):
                gone = name.removeprefix(WHITEOUT)
                self.remove(f"{above}/{gone}" if above else gone)
        for path, member in named:
            if path.rpartition("/")[2].startswith(WHITEOUT):
                continue
            if member.kind == "link":
                first = self._nodes.get(_clean(member.link))
                if first is not None:
                    self.put(path, first)
                continue
            node = Node(
                member.kind,
                member.mode,
                member.uid,
                member.gid,
                int(member.mtime),
                member.size,
                member.link,
                member.device,
                member.xattrs,
                (layer, member.path) if member.kind == "file" else None,
            )
            self.put(path, node)


def tree_of(root: Path, ignore: Ignore) -> Tree:
    """Read a context directory without what `ignore` hides. Links are not followed; owners and attributes not kept."""
    tree = Tree()
    _fill(tree, str(root), "", ignore)
    return tree


def _fill(tree: Tree, root: str, below: str, ignore: Ignore) -> None:
    with os.scandir(f"{root}/{below}") as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = f"{below}{entry.name}"
        seen = entry.stat(follow_symlinks=False)
        hidden = ignore.hides(path)
        if stat.S_ISDIR(seen.st_mode):
            if not hidden:
                tree.put(path, _node("dir", seen))
            if not ignore.prunes(path):
                _fill(tree, root, f"{path}/", ignore)
        elif not hidden:
            if stat.S_ISREG(seen.st_mode):
                tree.put(path, _node("file", seen, size=seen.st_size, origin=Path(entry.path)))
            elif stat.S_ISLNK(seen.st_mode):
                tree.put(path, _node("symlink", seen, link=os.readlink(entry.path)))
            elif not stat.S_ISSOCK(seen.st_mode):  # nobody sends those either
                tree.put(path, _node("special", seen))


def _node(kind: str, seen: os.stat_result, *, size: int = 0, link: str = "", origin: Origin = None) -> Node:
    mode = stat.S_IMODE(seen.st_mode)
    return Node(kind, mode, mtime=int(seen.st_mtime), size=size, link=link, origin=origin)


def _clean(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))
