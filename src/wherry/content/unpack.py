"""Unpacking a layer into a directory that overlayfs can take as one of its lower ones.

What a layer says by `.wh.NAME` becomes a character device 0/0, and `.wh..wh..opq` the attribute
`trusted.overlay.opaque` on its directory. unpack_child.py does it in a process without rights over anything but files
below the target; `unpack_here` in this one. Sources: OCI image-spec 1.1, "Layer Filesystem Changeset"; Linux, "Overlay
Filesystem".
"""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wherry.content.digests import hasher
from wherry.content.inflate import Read, pieces
from wherry.content.rooted import Rooted
from wherry.content.tars import Member, Tar
from wherry.errors import Broken, Invalid, TooLarge

OPAQUE = "trusted.overlay.opaque"
WHITEOUT = ".wh."
OPAQUE_MARK = ".wh..wh..opq"
TAR_MAX_BYTES = 256 * 1024**3
"""More than any real layer; a bomb stops here at the latest (the disk's own quota comes earlier)."""
ID_END = 2**32 - 1
DEVICE_END = 2**20
TIME_END_NS = 2**34 * 10**9
"""What ext4 can write: the year 2446. A later time is a mistake of who packed, and harmless."""
HOLE_BYTES = 64 * 1024
"""So many zeros in a file become a hole: gigabytes of zeros, which compress to nothing, cost no disk either."""
HEADROOM_BYTES = 32 * 1024 * 1024
"""What unpacking leaves free on the disk: a bomb does not take the last of it from everybody else."""
_AHEAD = 4
_ZEROS = bytes(HOLE_BYTES)


@dataclass(slots=True)
class Unpacked:
    """What came out: the diff id, the plain tar's size, the count of entries, directories to be made opaque, and the bytes
    of its files.
    """

    diff_id: str
    size_bytes: int
    entries: int
    opaque: list[str] = field(default_factory=list[str])
    file_bytes: int = 0


def unpack_here(blob: Path, target: Path, *, name: str = "layer") -> Unpacked:
    """Unpack a layer file into the directory `target` in this process and thread; opaque marks are set too.

    Raises Invalid, Damaged or Unsupported for the layer, Broken for the disk. Without root everything belongs to us.
    """
    source = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        done = extract(source, root, name=name, owners=os.geteuid() == 0)
        mark_opaque(root, done.opaque)
        return done
    finally:
        os.close(root)
        os.close(source)


def extract(
    source: int,
    root: int,
    *,
    name: str,
    owners: bool,
    layer: bool = True,
    below: str = "",
    owner: tuple[int, int] | None = None,
    keep_kinds: bool = False,
    outside: Callable[[int], int] | None = None,
    read: Read | None = None,
) -> Unpacked:
    """Unpack the open file below the open directory. Opaque directories are listed, not marked.

    With `layer` False it is a plain archive: `.wh.` is a name like any other, and devices are refused. `below`: the path
    beneath `root` that the entries are of. `owner` takes the place of the owners in the archive. With `keep_kinds` a
    directory gives way to nothing else, nor anything else to a directory: that is Invalid then. `outside` says what an owner is
    in the file system, where that shows owners shifted; it may raise. `read` gives the bytes in place of `source`.
    """
    state = hasher()
    total = 0

    def hashed(stream: Iterator[bytes], pool: ThreadPoolExecutor) -> Iterator[bytes]:
        """Inflate one piece ahead, and hash behind, in two threads of their own."""
        nonlocal total
        pending: deque[Future[None]] = deque()
        ahead = inflater.submit(next, stream, None)
        while (piece := ahead.result()) is not None:
            ahead = inflater.submit(next, stream, None)
            total += len(piece)
            if total > TAR_MAX_BYTES:
                raise TooLarge(f"{name}: more than {TAR_MAX_BYTES} bytes when unpacked")
            if total // HEADROOM_BYTES != (total - len(piece)) // HEADROOM_BYTES:
                _check_headroom(root, name)
            pending.append(pool.submit(state.update, piece))
            if len(pending) > _AHEAD:
                pending.popleft().result()
            yield piece
        while pending:
            pending.popleft().result()

    with ThreadPoolExecutor(1, "inflate") as inflater, ThreadPoolExecutor(1, "digest") as digester:
        tar = Tar(hashed(pieces(source, name=name, read=read), digester), name=name)
        work = _Extraction(root, name, owners, layer, keep_kinds, outside(0) if outside is not None else 0)
        try:
            count = file_bytes = 0
            for member in tar:
                if below:
                    member.path = f"{below}/{member.path}"
                    member.link = f"{below}/{member.link}" if member.kind == "link" else member.link
                if owner is not None:
                    member.uid, member.gid = owner
                if outside is not None:
                    member.uid, member.gid = outside(member.uid), outside(member.gid)
                work.add(member, tar)
                count += 1
                file_bytes += member.size if member.pieces is None else member.real_size
            tar.drain()
            work.finish()
        except OSError as error:
            raise Broken(f"{name}: {error.strerror or error} while unpacking {error.filename!r}") from error
        finally:
            work.close()
    return Unpacked(f"sha256:{state.hexdigest()}", total, count, sorted(work.opaque), file_bytes)


def mark_opaque(root: int, paths: list[str]) -> None:
    """Give directories below `root` overlayfs's mark; no link is followed on the way."""
    for path in paths:
        fd = os.dup(root)
        try:
            for part in path.split("/"):
                if part in ("", "."):
                    continue
                step = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = step
            os.setxattr(fd, OPAQUE, b"y")
        except OSError as error:
            raise Broken(f"layer: the directory {path!r} cannot be made opaque: {error.strerror}") from error
        finally:
            os.close(fd)


def _check_headroom(root: int, name: str) -> None:
    disk = os.fstatvfs(root)
    free = disk.f_bavail * disk.f_frsize
    if free < HEADROOM_BYTES:
        raise Broken(f"{name}: no space left on device: {free >> 20} MiB are free; prune images, or make room")


def _fill(fd: int, member: Member, tar: Tar) -> None:
    """Write a file's bytes, with holes where it says so and where it has long runs of zeros."""
    if member.pieces is None:
        if _write(fd, tar.data()):
            os.ftruncate(fd, member.size)
        return
    data = tar.data()
    part = memoryview(b"")
    for offset, length in member.pieces:
        while length:
            part = part or next(data)
            written = os.pwrite(fd, part[:length], offset)
            part, offset, length = part[written:], offset + written, length - written
    os.ftruncate(fd, member.real_size)


def _write(fd: int, parts: Iterator[memoryview]) -> bool:
    """Write parts one after the other; say whether the last of it became a hole."""
    hole = False
    for part in parts:
        while part:
            length = _plain_length(part)
            hole = not length
            if hole:
                os.lseek(fd, HOLE_BYTES, os.SEEK_CUR)
                part = part[HOLE_BYTES:]
                continue
            part = part[os.write(fd, part[:length]) :]
    return hole


def _plain_length(part: memoryview) -> int:
    """Count the bytes before the first window of zeros; 0 when it begins with one."""
    for start in range(0, len(part), HOLE_BYTES):
        window = part[start : start + HOLE_BYTES]
        if len(window) == HOLE_BYTES and window[0] == 0 == window[-1] and bytes(window) == _ZEROS:
            return start
    return len(part)


class _Extraction:
    def __init__(self, root: int, name: str, owners: bool, layer: bool, keep_kinds: bool, first: int) -> None:
        self._first = first
        self._keep_kinds = keep_kinds
        self._root = root
        self._name = name
        self._owners = owners
        self._layer = layer
        self._rooted = Rooted(root, name=name, made=self._made)
        self._directories: dict[str, Member] = {}
        self.opaque: set[str] = set()

    def add(self, member: Member, tar: Tar) -> None:
        """Make one entry."""
        if max(member.uid, member.gid) >= ID_END or min(member.uid, member.gid) < 0 or max(member.device) >= DEVICE_END:
            numbers = f"owner {member.uid}:{member.gid}, device {member.device}"
            raise Invalid(f"{self._name}: {member.path!r} has numbers that no file can have ({numbers})")
        if not member.link and member.kind in ("symlink", "link"):
            raise Invalid(f"{self._name}: {member.path!r} is a link to nothing")
        member.mtime_ns = min(max(member.mtime_ns, 0), TIME_END_NS)
        parent, name, real = self._rooted.place(member.path)
        path = f"{real}/{name}" if real else name
        if not name:
            if member.kind == "dir":
                self._directories[""] = member
            return
        if self._keep_kinds:
            self._check_kind(parent, name, member)
        if name == OPAQUE_MARK and self._layer:
            self.opaque.add(real)
        elif name.startswith(WHITEOUT) and self._layer:
            self._whiteout(parent, name.removeprefix(WHITEOUT), real, member)
        elif member.kind == "dir":
            self._directory(parent, name, path, member)
        else:
            try:
                self._make(parent, name, member, tar)
            except FileExistsError:
                self._rooted.remove(parent, name)
                self._forget(path)
                self._make(parent, name, member, tar)

    def finish(self) -> None:
        """Set owners, modes and times of directories: from the deepest up, when nothing changes in them any more."""
        for path in sorted(self._directories, key=lambda path: path.count("/"), reverse=True):
            member = self._directories[path]
            parent, name, _ = self._rooted.place(path)
            fd = os.open(name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                self._settle(fd, member)
            finally:
                os.close(fd)

    def close(self) -> None:
        self._rooted.close()

    def _make(self, parent: int, name: str, member: Member, tar: Tar) -> None:
        match member.kind:
            case "file":
                fd = os.open(
                    name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
                )
                try:
                    _fill(fd, member, tar)
                    self._settle(fd, member)
                finally:
                    os.close(fd)
                return
            case "link":
                source, source_name, _ = self._rooted.place(member.link)
                parent, name, _ = self._rooted.place(member.path)  # again: what was open may have been closed
                try:
                    os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                except (FileNotFoundError, PermissionError, IsADirectoryError):
                    raise Invalid(
                        f"{self._name}: {member.path!r} is a hard link to {member.link!r}, no file of this layer"
                    ) from None
                return
            case "symlink":
                os.symlink(member.link, name, dir_fd=parent)
            case "fifo":
                os.mkfifo(name, 0o600, dir_fd=parent)
            case _ if not self._layer:
                raise Invalid(f"{self._name}: {member.path!r} is a device, which an archive may not bring")
            case _:
                kind = stat.S_IFCHR if member.kind == "char" else stat.S_IFBLK
                try:
                    os.mknod(name, kind | 0o600, os.makedev(*member.device), dir_fd=parent)
                except PermissionError:
                    raise Broken(f"{self._name}: making the device {member.path!r} needs CAP_MKNOD") from None
        if self._owners:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if member.kind != "symlink":
            os.chmod(name, member.mode, dir_fd=parent)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _check_kind(self, parent: int, name: str, member: Member) -> None:
        with suppress(FileNotFoundError):
            is_directory = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
            if is_directory != (member.kind == "dir"):
                old, new = ("directory", "non-directory") if is_directory else ("non-directory", "directory")
                raise Invalid(f"{self._name}: cannot overwrite {old} {member.path!r} with {new}")

    def _directory(self, parent: int, name: str, path: str, member: Member) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            seen = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(seen.st_mode):
                if stat.S_ISCHR(seen.st_mode) and seen.st_rdev == 0:
                    self.opaque.add(path)
                self._rooted.remove(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        self._directories[path] = member

    def _whiteout(self, parent: int, name: str, real: str, member: Member) -> None:
        if name in ("", ".", ".."):
            raise Invalid(f"{self._name}: {member.path!r} is a whiteout of no name")
        try:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
            if self._owners:
                os.chown(name, 0, 0, dir_fd=parent, follow_symlinks=False)
        except FileExistsError:  # this layer's own entry wins; a directory must still hide the lower one
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                self.opaque.add(f"{real}/{name}" if real else name)

    def _settle(self, fd: int, member: Member) -> None:
        if self._owners:
            os.fchown(fd, member.uid, member.gid)
        for key, value in member.xattrs.items():
            if key == "security.capability" or (key.startswith("user.") and not key.startswith("user.overlay.")):
                with suppress(OSError):  # a file system without attributes keeps the file all the same
                    os.setxattr(fd, key, value)
        os.fchmod(fd, member.mode)
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))

    def _made(self, parent: int, name: str, path: str) -> None:
        """A directory that the layer does not list: root's, as other unpackers make it."""
        if self._owners:
            os.chown(name, self._first, self._first, dir_fd=parent, follow_symlinks=False)
        if path in self._rooted.uncovered:
            self.opaque.add(path)

    def _forget(self, path: str) -> None:
        below = f"{path}/"
        for known in [known for known in self._directories if known == path or known.startswith(below)]:
            del self._directories[known]
        self.opaque -= {known for known in self.opaque if known == path or known.startswith(below)}
