"""System calls that Python has no function for, and the words for their refusals.

Every other module of this room goes through here, so that a refusal always reads the same way: what we asked for, then
the kernel's words and the name of the errno.
"""

import ctypes
import errno
import os

from wherry.errors import Broken

libc = ctypes.CDLL(None, use_errno=True)

# Numbers of the calls that glibc may not wrap; the same on every architecture (asm-generic, from 424 on).
MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, MOUNT_SETATTR = 429, 430, 431, 432, 442

CLONE_NEWNS, CLONE_FS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x20000, 0x200, 0x4000000, 0x8000000, 0x40000000

_mount = libc.mount
_mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = libc.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_unshare = libc.unshare
_unshare.argtypes = (ctypes.c_int,)
_setns = libc.setns
_setns.argtypes = (ctypes.c_int, ctypes.c_int)
_sync_file_range = libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2


def refused(what: str, number: int) -> Broken:
    """Make the error for a refused call: `what` we asked for, and the kernel's `number`; `errno_of` reads it back."""
    error = Broken(f"{what}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
    error.__cause__ = OSError(number, os.strerror(number))
    return error


def errno_of(error: BaseException) -> int:
    """Say which errno is behind an error of this room; 0 for none."""
    if isinstance(error, OSError):
        return error.errno or 0
    cause = error.__cause__
    return (cause.errno or 0) if isinstance(cause, OSError) else 0


def mount(source: str, target: str, kind: str, flags: int, data: bytes, what: str) -> None:
    """mount(2)."""
    done = _mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, data or None)
    if done < 0:
        raise refused(what, ctypes.get_errno())


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    if _umount2(os.fsencode(target), flags) < 0:
        raise refused(f"unmount {target}", ctypes.get_errno())


def unshare(flags: int) -> None:
    """unshare(2): new namespaces for the calling thread alone."""
    if _unshare(flags) < 0:
        raise refused(f"unshare({flags:#x})", ctypes.get_errno())


def setns(fd: int, kind: int, what: str) -> None:
    """setns(2): move the calling thread alone into the namespace behind `fd`."""
    if _setns(fd, kind) < 0:
        raise refused(f"enter {what}", ctypes.get_errno())


def begin_writeback(fd: int, start: int, size: int) -> None:
    """sync_file_range(2): let the disk begin with what was written, so that fsync finds little later. A refusal is no harm."""
    _sync_file_range(fd, start, size, _SYNC_FILE_RANGE_WRITE)


def call(number: int, *arguments: int | bytes | None, what: str) -> int:
    """syscall(2) by number; integers go as longs, bytes and None as pointers."""
    words = [ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word) for word in arguments]
    done = int(libc.syscall(ctypes.c_long(number), *words))
    if done < 0:
        raise refused(what, ctypes.get_errno())
    return done
