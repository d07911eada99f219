"""Mounts: made, listed and taken away, in the mount namespace of the calling thread."""

import errno
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from wherry.errors import Broken
from wherry.host import kernel

READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT = 1, 2, 4, 8, 32
_BIND, _REC, _RELATIME = 4096, 16384, 1 << 21
_PROPAGATION = {"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20}
_DETACH, _NO_FOLLOW = 2, 8
_AT_FDCWD, _AT_RECURSIVE, _ATTR_READ_ONLY = -100, 0x8000, 1
_OPEN_TREE, _OPEN_TREE_CLONE, _O_CLOEXEC, _AT_EMPTY_PATH = 428, 1, 0x80000, 0x1000
_PAGE_BYTES = 4096
_FSCONFIG_SET_STRING, _FSCONFIG_CREATE, _CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, 6, 1, 4


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of mountinfo. `root`: which directory of the file system is mounted; `shared`: its peer group or 0."""

    id: int
    parent: int
    root: str
    target: str
    options: frozenset[str]
    shared: int
    kind: str
    source: str
    super_options: tuple[str, ...]
    is_slave: bool = False


def mount(source: str, target: str, kind: str, *, flags: int = 0, options: str = "") -> None:
    """Mount a file system of `kind`, as mount(2) does. Raises Broken with the kernel's words."""
    kernel.mount(source, target, kind, flags, options.encode(), f"mount {kind} on {target}")


def unmount(target: str, *, detach: bool = True) -> bool:
    """Take the topmost mount at `target` away; False when nothing is mounted there.

    With `detach` also when it is busy: it leaves the tree now, and goes when its last user does.
    """
    try:
        kernel.umount2(target, _NO_FOLLOW | (_DETACH if detach else 0))
    except Broken as error:
        if kernel.errno_of(error) in (errno.EINVAL, errno.ENOENT):
            return False
        raise
    return True


def bind(source: str, target: str, *, read_only: bool = False, recursive: bool = False) -> None:
    """Show `source` (a file or directory) at `target`, which must exist and be of the same sort."""
    what = f"bind {source} on {target}"
    kernel.mount(source, target, "none", _BIND | (_REC if recursive else 0), b"", what)
    if read_only:
        try:
            _make_read_only(target, recursive=recursive)
        except Broken:
            unmount(target)
            raise


def follow(source: str, target: str, *, recursive: bool = False) -> None:
    """Bind as `bind` does, and as a slave of where `source` lies: what is mounted there later shows here too, and nothing
    that is mounted or taken away here ever shows there. Raises Broken.

    It is a slave before it is in its place, which may lie on a shared mount: so no copy in another namespace spreads, either.
    """
    what = f"bind {source} on {target} as a slave"
    flags = _OPEN_TREE_CLONE | _O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    tree = kernel.call(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags, what=what)
    try:
        attributes = struct.pack("QQQQ", 0, 0, _PROPAGATION["slave"], 0)
        at = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
        kernel.call(kernel.MOUNT_SETATTR, tree, b"", at, attributes, len(attributes), what=what)
        place = os.fsencode(target)
        kernel.call(kernel.MOVE_MOUNT, tree, b"", _AT_FDCWD, place, _MOVE_MOUNT_F_EMPTY_PATH, what=what)
    finally:
        os.close(tree)


def tmpfs(target: str, *, size_bytes: int = 0, mode: int = 0o755, flags: int = NO_SUID | NO_DEV) -> None:
    """Mount an empty file system in memory; `size_bytes` 0 means the kernel's default, half of the memory."""
    size = f",size={size_bytes}" if size_bytes else ""
    mount("tmpfs", target, "tmpfs", flags=flags, options=f"mode={mode:o}{size}")


def propagate(target: str, how: str, *, recursive: bool = False) -> None:
    """Set how mounts spread from and to `target`: "shared", "slave", "private" or "unbindable"."""
    flags = _PROPAGATION[how] | (_REC if recursive else 0)
    kernel.mount("none", target, "none", flags, b"", f"make {target} {how}")


def share(directory: str) -> bool:
    """Let mounts made below `directory` from now on be seen in copies of this mount namespace.

    Where the directory lies on a private mount (no systemd), it is bound on itself and made shared; True when that was
    needed: `unmount` it at the end. Without this, a mount namespace copied earlier never sees an overlay made later.
    """
    directory = os.path.realpath(directory)
    around = containing(directory, table())
    if around.shared:
        return False
    if around.target != directory:
        bind(directory, directory)
    propagate(directory, "shared")
    return around.target != directory


def overlay(
    target: str, lower: Sequence[str], upper: str = "", work: str = "", *, options: Mapping[str, str] | None = None
) -> None:
    """Mount an overlay: `lower` from the topmost layer down; without `upper` it is read-only.

    Any number of layers that the kernel takes (500), also where their names do not fit in mount(2)'s one page.
    """
    plain = _overlay_options(lower, upper, work, options or {})
    if len(plain) < _PAGE_BYTES:
        kernel.mount("overlay", target, "overlay", 0, plain, f"mount overlay on {target}")
        return
    try:
        _overlay_step_by_step(target, lower, upper, work, options or {})
    except Broken as error:
        if kernel.errno_of(error) not in (errno.EINVAL, errno.ENOSYS):
            raise
        _overlay_from_inside(target, lower, upper, work, options or {})


def table(path: str = "/proc/thread-self/mountinfo") -> list[MountPoint]:
    """List the mounts of the calling thread's namespace, in the order they were made."""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        return [_parse(line) for line in lines]


def containing(path: str, points: Sequence[MountPoint]) -> MountPoint:
    """Find the mount that `path` (absolute, without links) lies on. Raises Broken when there is none."""
    best: MountPoint | None = None
    for point in points:
        inside = path == point.target or path.startswith(point.target.rstrip("/") + "/")
        if inside and (best is None or len(point.target) >= len(best.target)):
            best = point
    if best is None:
        raise Broken(f"{path} lies on no mount that we can see")
    return best


def is_mounted(path: str) -> bool:
    """Say whether something is mounted exactly at `path`."""
    path = os.path.realpath(path)
    return any(point.target == path for point in table())


def unmount_below(path: str) -> int:
    """Take away every mount at or below `path`, the newest first; return how many went."""
    path = os.path.realpath(path).rstrip("/")
    count = 0
    for point in reversed(table()):
        if point.target == path or point.target.startswith(path + "/"):
            count += unmount(point.target)
    return count


def _make_read_only(target: str, *, recursive: bool) -> None:
    attributes = struct.pack("QQQQ", _ATTR_READ_ONLY, 0, 0, 0)
    try:
        kernel.call(
            kernel.MOUNT_SETATTR,
            _AT_FDCWD,
            os.fsencode(target),
            _AT_RECURSIVE if recursive else 0,
            attributes,
            len(attributes),
            what=f"make {target} read-only",
        )
    except Broken as error:
        if kernel.errno_of(error) != errno.ENOSYS:  # before Linux 5.12: only the mount itself, not those below it
            raise
        kernel.mount("none", target, "none", REMOUNT | _BIND | READ_ONLY, b"", f"make {target} read-only")


def _escape(path: str, more: str = "") -> str:
    for sign in "\\" + more:
        path = path.replace(sign, "\\" + sign)
    return path


def _overlay_options(lower: Sequence[str], upper: str, work: str, options: Mapping[str, str]) -> bytes:
    words = ["lowerdir=" + ":".join(_escape(path, ":,") for path in lower)]
    if upper:
        words += [f"upperdir={_escape(upper, ',')}", f"workdir={_escape(work, ',')}"]
    words += [f"{key}={value}" if value else key for key, value in options.items()]
    return os.fsencode(",".join(words))


def _overlay_step_by_step(target: str, lower: Sequence[str], upper: str, work: str, options: Mapping[str, str]) -> None:
    """By fsopen and one `lowerdir+` for each layer (Linux 6.8); EINVAL on older kernels."""
    what = f"mount overlay of {len(lower)} layers on {target}"
    context = kernel.call(kernel.FSOPEN, b"overlay", _CLOEXEC, what=what)
    try:
        pairs = [("lowerdir+", path) for path in lower]
        if upper:
            pairs += [("upperdir", upper), ("workdir", work)]
        for key, value in [*pairs, *options.items()]:
            words = (key.encode(), os.fsencode(value))
            kernel.call(kernel.FSCONFIG, context, _FSCONFIG_SET_STRING, *words, 0, what=f"{what}: {key}={value}")
        kernel.call(kernel.FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0, what=what)
        made = kernel.call(kernel.FSMOUNT, context, _CLOEXEC, 0, what=what)
        try:
            place = os.fsencode(target)
            kernel.call(kernel.MOVE_MOUNT, made, b"", _AT_FDCWD, place, _MOVE_MOUNT_F_EMPTY_PATH, what=what)
        finally:
            os.close(made)
    finally:
        os.close(context)


def _overlay_from_inside(target: str, lower: Sequence[str], upper: str, work: str, options: Mapping[str, str]) -> None:
    """By names relative to the layers' common directory, in a thread with a working directory of its own."""
    base = os.path.commonpath(lower)
    plain = _overlay_options([os.path.relpath(path, base) for path in lower], upper, work, options)
    if len(plain) >= _PAGE_BYTES:
        raise Broken(
            f"overlay on {target}: the names of {len(lower)} layers do not fit in a page; Linux 6.8 takes them"
        )
    failure: list[BaseException] = []

    def inside() -> None:
        try:
            kernel.unshare(kernel.CLONE_FS)
            os.chdir(base)
            kernel.mount("overlay", target, "overlay", 0, plain, f"mount overlay on {target}")
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=inside, name="overlay")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _parse(line: str) -> MountPoint:
    left, _, right = line.rstrip("\n").partition(" - ")
    number, parent, _device, root, target, options, *tags = left.split(" ")
    kind, source, super_options = right.split(" ", 2)
    shared = 0
    for tag in tags:
        if tag.startswith("shared:"):
            shared = int(tag[7:])
    return MountPoint(
        id=int(number),
        parent=int(parent),
        root=_unescape(root),
        target=_unescape(target),
        options=frozenset(options.split(",")),
        shared=shared,
        kind=kind,
        source=_unescape(source),
        super_options=tuple(super_options.split(",")),
        is_slave=any(tag.startswith("master:") for tag in tags),
    )


def _unescape(text: str) -> str:
    """Undo mountinfo's octal signs: `\\040` is a space."""
    if "\\" not in text:
        return text
    pieces = text.split("\\")
    result = [pieces[0]]
    for piece in pieces[1:]:
        with suppress(ValueError):
            result.append(chr(int(piece[:3], 8)) + piece[3:])
            continue
        result.append("\\" + piece)
    return "".join(result)
