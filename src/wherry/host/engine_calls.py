"""Kernel calls that the engine needs and the rest of this room does not have: opening beneath a root, inotify, terminals."""

import asyncio
import ctypes
import errno
import fcntl
import os
import struct
import sys
import termios
from collections.abc import Callable
from contextlib import suppress

from wherry.host import kernel

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10

IN_MODIFY, IN_MOVED_TO, IN_CREATE, IN_DELETE_SELF, IN_IGNORED, IN_Q_OVERFLOW = 0x2, 0x80, 0x100, 0x400, 0x8000, 0x4000
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_EVENT = struct.Struct("iIII")

_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x20000

_inotify_init1 = kernel.libc.inotify_init1
_inotify_init1.argtypes = (ctypes.c_int,)
_inotify_add_watch = kernel.libc.inotify_add_watch
_inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_inotify_rm_watch = kernel.libc.inotify_rm_watch
_inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)


def open_beneath(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as if the directory `root` (a descriptor) were `/`: no link and no `..` leads out of it.

    Returns a descriptor that is closed on exec. Raises OSError. Needs Linux 5.6.
    """
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    while True:
        done = int(
            kernel.libc.syscall(
                ctypes.c_long(_OPENAT2),
                ctypes.c_int(root),
                ctypes.c_char_p(os.fsencode(path)),
                ctypes.c_char_p(how),
                ctypes.c_size_t(len(how)),
            )
        )
        if done >= 0:
            return done
        number = ctypes.get_errno()
        if number not in (errno.EINTR, errno.EAGAIN):  # EAGAIN: something was renamed on the way
            raise OSError(number, os.strerror(number), path)


def make_directories(root: int, path: str, mode: int = 0o755) -> None:
    """Make the directory `path` beneath `root`, and those above it; links on the way are followed inside `root`.

    Raises OSError (ENOTDIR when a file is in the way).
    """
    where = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        done = ""
        for part in path.split("/"):
            if part in ("", "."):
                continue
            done = f"{done}/{part}"
            try:
                deeper = open_beneath(root, done, os.O_PATH | os.O_DIRECTORY)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(part, mode, dir_fd=where)
                deeper = open_beneath(root, done, os.O_PATH | os.O_DIRECTORY)
            os.close(where)
            where = deeper
    finally:
        os.close(where)


class Inotify:
    """Tells callbacks what happens in directories. Each event is given to all callbacks of its directory."""

    def __init__(self) -> None:
        self._fd = _inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd < 0:
            raise kernel.refused("inotify_init", ctypes.get_errno())
        self._watches: dict[int, tuple[str, list[Callable[[str], None]]]] = {}
        self._by_path: dict[str, int] = {}
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def watch(self, directory: str, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback(name)` when a file in `directory` was written to or has appeared; return what ends the watch.

        The name is "" when events were lost, or the directory itself went away: look at everything then. Raises Broken.
        """
        number = self._by_path.get(directory)
        if number is None:
            mask = IN_MODIFY | IN_MOVED_TO | IN_CREATE | IN_DELETE_SELF
            number = _inotify_add_watch(self._fd, os.fsencode(directory), mask)
            if number < 0:
                raise kernel.refused(f"watch {directory}", ctypes.get_errno())
            self._by_path[directory] = number
            self._watches[number] = (directory, [])
        callbacks = self._watches[number][1]
        callbacks.append(callback)

        def end() -> None:
            if callback in callbacks:
                callbacks.remove(callback)
                if not callbacks:
                    self._forget(directory)

        return end

    def close(self) -> None:
        """End all watches."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _forget(self, directory: str) -> None:
        number = self._by_path.pop(directory, None)
        if number is not None and self._fd >= 0:
            self._watches.pop(number, None)
            _inotify_rm_watch(self._fd, number)  # EINVAL when the directory is gone: it has forgotten us by itself

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            number, mask, _cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            if mask & IN_Q_OVERFLOW:
                for _, callbacks in list(self._watches.values()):
                    for callback in list(callbacks):
                        callback("")
                continue
            directory, callbacks = self._watches.get(number, ("", []))
            if mask & IN_IGNORED and directory:
                self._watches.pop(number, None)
                if self._by_path.get(directory) == number:
                    del self._by_path[directory]
            for callback in list(callbacks):
                callback("" if mask & (IN_DELETE_SELF | IN_IGNORED) else name)


def resize_terminal(fd: int, rows: int, columns: int) -> None:
    """Set the size of the terminal behind `fd`. Raises Broken."""
    try:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    except OSError as error:
        raise kernel.refused(f"set a terminal's size to {rows}x{columns}", error.errno or 0) from error


def sync_file_system(path: str) -> None:
    """syncfs(2): return when everything on the file system of `path` is on disk. Blocks. Raises Broken."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if kernel.libc.syncfs(fd) < 0:
            raise kernel.refused(f"syncfs {path}", ctypes.get_errno())
    finally:
        os.close(fd)


def spread_directories(path: str) -> None:
    """Have each directory that is made in `path` lie in a part of the disk of its own, where the file system can.

    ext4 puts a new directory beside the one above it, among what was removed there in the last minutes: places that it
    may not use again so soon, and which it tries one by one. After a large removal, making files there costs up to six times
    as much CPU. It is no harm where it cannot be done. Source: ext4, "Block and Inode Allocation Policy"; chattr(1), T.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            flags = int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))[:4], sys.byteorder)
            if not flags & _FS_TOPDIR_FL:
                fcntl.ioctl(fd, _FS_IOC_SETFLAGS, (flags | _FS_TOPDIR_FL).to_bytes(8, sys.byteorder))
    finally:
        os.close(fd)
