"""Namespaces of a sandbox: made, pinned by bind mounts, entered for a moment.

Nothing here moves a thread of the daemon: what has to happen inside a namespace happens in a thread made for it, which
ends afterwards and takes its own view of the world along. Pinned namespaces live until `remove`, without any process.
"""

import _thread
import asyncio
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from wherry.errors import Broken
from wherry.host import kernel, mounts

T = TypeVar("T")
KINDS: Mapping[str, int] = {
    "net": kernel.CLONE_NEWNET,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
    "mnt": kernel.CLONE_NEWNS,
}
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def in_thread(function: Callable[[], T], name: str) -> T:
    """Run `function` in a thread of its own and wait for it; its errors are raised here."""
    values: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            values.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return values[0]


async def in_thread_async(function: Callable[[], T], name: str) -> T:
    """Run `function` in a thread of its own while the loop goes on. A cancelled caller still waits for its end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # without an error it is a T

    def body() -> None:
        value: T | None = None
        failure: BaseException | None = None
        try:
            value = function()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(deliver, value, failure)

    del name
    _thread.start_new_thread(body, ())  # `Thread.start` would wait, and the loop with it, until the thread runs
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def create(
    directory: str,
    kinds: Sequence[str] = ("net", "ipc", "uts"),
    *,
    hostname: str = "",
    sysctls: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Make new namespaces and pin each at `directory/KIND`; return the paths by kind.

    `lo` is up in a new network; `hostname` needs "uts"; `sysctls` (net.*, kernel.shm*, kernel.msg*, kernel.sem,
    fs.mqueue.*) are set inside. Nothing is left behind when it fails. Safe to repeat: pins that are there stay as they
    are. Raises Broken.
    """
    os.makedirs(directory, mode=0o755, exist_ok=True)
    paths = {kind: f"{directory}/{kind}" for kind in kinds}
    missing = {kind: path for kind, path in paths.items() if not is_pinned(path)}
    if missing:
        in_thread(lambda: _make(missing, hostname, sysctls or {}), "namespaces")
    return paths


async def create_async(
    directory: str,
    kinds: Sequence[str] = ("net", "ipc", "uts"),
    *,
    hostname: str = "",
    sysctls: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Do as `create` while the loop goes on."""
    os.makedirs(directory, mode=0o755, exist_ok=True)
    paths = {kind: f"{directory}/{kind}" for kind in kinds}
    missing = {kind: path for kind, path in paths.items() if not is_pinned(path)}
    if missing:
        await in_thread_async(lambda: _make(missing, hostname, sysctls or {}), "namespaces")
    return paths


def is_pinned(path: str) -> bool:
    """Say whether `path` is a live namespace (not merely the empty file that a reboot leaves)."""
    try:
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def identity(path: str) -> tuple[int, int]:
    """Return what tells one namespace from another: device and inode. Raises Broken when there is none at `path`."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise kernel.refused(f"namespace {path}", error.errno or 0) from error
    return found.st_dev, found.st_ino


def remove(directory: str) -> None:
    """Unpin every namespace in `directory` and remove it; nothing if it is not there."""
    with suppress(FileNotFoundError):
        for name in os.listdir(directory):
            path = f"{directory}/{name}"
            while mounts.unmount(path):
                pass
            with suppress(FileNotFoundError):
                os.unlink(path)
        os.rmdir(directory)


def unpin(path: str) -> None:
    """Unpin one namespace; it goes when the last process in it does. Nothing if it is not there."""
    while mounts.unmount(path):
        pass
    with suppress(FileNotFoundError):
        os.unlink(path)


def inside(path: str, function: Callable[[], T], *, kind: str = "net") -> T:
    """Run `function` in a thread that is in the namespace at `path`; raises what it raises, or Broken."""
    return in_thread(lambda: _enter_and(path, kind, function), f"in {kind} namespace")


async def inside_async(path: str, function: Callable[[], T], *, kind: str = "net") -> T:
    """Do as `inside` while the loop goes on."""
    return await in_thread_async(lambda: _enter_and(path, kind, function), f"in {kind} namespace")


def socket_inside(path: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Make a socket that belongs to the network namespace at `path`, for use from anywhere."""
    return inside(path, lambda: socket.socket(family, kind, protocol))


def lo_up() -> None:
    """Bring `lo` up in the calling thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
            flags = struct.unpack("16sh14x", answer)[1] | _IFF_UP
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))
        except OSError as error:
            raise kernel.refused("bring lo up", error.errno or 0) from error


def name_host(name: str) -> None:
    """Set the host name of the calling thread's UTS namespace. Raises Broken."""
    try:
        socket.sethostname(name)
    except OSError as error:
        raise kernel.refused(f"set hostname {name!r}", error.errno or 0) from error


def sysctl(name: str, value: str) -> None:
    """Set a kernel setting (`net.ipv4.ip_forward`) as the calling thread's namespaces see it. Raises Broken."""
    try:
        with open(sysctl_path(name), "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise kernel.refused(f"sysctl {name}={value}", error.errno or 0) from error


def read_sysctl(name: str) -> str:
    """Read a kernel setting; "" when this kernel does not have it."""
    try:
        with open(sysctl_path(name), encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise kernel.refused(f"sysctl {name}", error.errno or 0) from error


def sysctl_path(name: str) -> str:
    """Find a setting's file: dots separate, and a slash stands for a dot in a name (net/ipv4/conf/eth0.1/rp_filter)."""
    parts = name.split("/") if "/" in name else name.split(".")
    if not parts or any(part in ("", ".", "..") for part in parts):
        raise Broken(f"sysctl {name!r}: no such setting")
    return "/proc/sys/" + "/".join(parts)


def _enter_and(path: str, kind: str, function: Callable[[], T]) -> T:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise kernel.refused(f"open namespace {path}", error.errno or 0) from error
    try:
        if kind == "mnt":
            kernel.unshare(kernel.CLONE_FS)  # a thread that shares its working directory may not change mounts
        kernel.setns(fd, KINDS[kind], f"{kind} namespace {path}")
    finally:
        os.close(fd)
    return function()


def _make(paths: Mapping[str, str], hostname: str, sysctls: Mapping[str, str]) -> None:
    """Unshare this thread, set up what is new, pin it. The thread ends afterwards; only the pins stay."""
    flags = 0
    for kind in paths:
        flags |= KINDS[kind]
    kernel.unshare(flags)
    if "net" in paths:
        lo_up()
    if hostname and "uts" in paths:
        name_host(hostname)
    for name, value in sysctls.items():
        sysctl(name, value)
    done: list[str] = []
    try:
        for kind, path in paths.items():
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
            done.append(path)
            mounts.bind(f"/proc/thread-self/ns/{kind}", path)
    except BaseException as error:
        for path in done:
            unpin(path)
        if isinstance(error, OSError):
            raise kernel.refused("pin namespaces", error.errno or errno.EIO) from error
        raise
