"""User namespaces: made with the namespaces that they own, pinned, and files shown through them with shifted owners.

A process that has threads can neither make nor enter a user namespace, so a short-lived child does (`unshare`, `nsenter`
of util-linux); everything else is done from outside, where root may. Files keep the owners that they have on disk: an
id-mapped mount shows the disk's 0 as the first id of a range, and what the range's root makes there is 0 on the disk.
"""

import asyncio
import os
import select
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from wherry.errors import Broken, Unsupported
from wherry.host import kernel, mounts, namespaces, spawn

T = TypeVar("T")
HELPER_S = 10.0
NOBODY = 65534
_FLAGS: Mapping[str, str] = {"net": "--net", "ipc": "--ipc", "uts": "--uts"}
_OPEN_TREE, _OPEN_TREE_CLONE, _CLOEXEC = 428, 1, 0x80000
_AT_FDCWD, _AT_EMPTY_PATH, _ATTR_IDMAP, _MOVE_FROM_EMPTY_PATH = -100, 0x1000, 0x00100000, 4
_PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 4
_SET_IDS = {"x86_64": (157, 117, 119), "aarch64": (167, 147, 149)}
"""prctl, setresuid, setresgid: by number, since libc's functions change every thread of a process."""


@dataclass(frozen=True, slots=True)
class IdRange:
    """The machine's users and groups from `base` on, `size` of each: inside they are 0 to `size`-1."""

    base: int
    size: int

    def inside(self, number: int) -> int:
        """Say what an id of the machine is inside; nobody's where it is none of the range."""
        return number - self.base if self.base <= number < self.base + self.size else NOBODY

    def outside(self, number: int) -> int:
        """Say what an id from inside is on the machine. Raises Unsupported for one that the range does not reach."""
        if not 0 <= number < self.size:
            raise Unsupported(f"id {number}: this user namespace has only the ids 0 to {self.size - 1}")
        return self.base + number


async def create(
    directory: str,
    kinds: Sequence[str],
    ids: IdRange,
    *,
    owner: str = "",
    hostname: str = "",
    sysctls: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Make a user namespace and others that it owns, pin each at `directory/KIND`; return the paths by kind ("user" too).

    `owner`: the path of a user namespace that takes the place of a new one. Otherwise as `namespaces.create`.
    Raises Broken.
    """
    os.makedirs(directory, mode=0o755, exist_ok=True)
    paths = {kind: f"{directory}/{kind}" for kind in ("user", *kinds)}
    if all(namespaces.is_pinned(path) for path in paths.values()):
        return paths
    for path in paths.values():
        namespaces.unpin(path)
    words = [_FLAGS[kind] for kind in kinds]
    argv = ["nsenter", f"--user={owner}", "unshare", *words, "cat"] if owner else ["unshare", "--user", *words, "cat"]
    ours, theirs = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    try:
        child = await spawn.plain.start(argv, stdin=ours[0], stdout=theirs[1], env={"PATH": "/usr/bin:/bin:/usr/sbin"})
        try:
            os.write(ours[1], b"x")
            os.close(theirs[1])
            theirs = (theirs[0], -1)
            if not await asyncio.to_thread(_answers, theirs[0]):
                raise Broken(f"{' '.join(argv)}: no user namespace could be made here; see user.max_user_namespaces")
            if not owner:
                for name in ("uid_map", "gid_map"):
                    _write_map(f"/proc/{child.pid}/{name}", ids)
            await namespaces.in_thread_async(lambda: _pin(child.pid, paths), "pin")
        finally:
            await asyncio.shield(child.end())
            child.close()
    finally:
        for fd in (*ours, *theirs):
            if fd >= 0:
                os.close(fd)
    try:
        await _settle(paths, ids, hostname, sysctls or {})
    except BaseException:
        for path in paths.values():
            namespaces.unpin(path)
        raise
    return paths


def show(source: str, target: str, user_namespace: str) -> None:
    """Bind `source` at `target` (of the same sort) as those see it who are in the pinned `user_namespace`: owners shifted.

    Raises Unsupported where the kernel or the file system cannot, Broken.
    """
    what = f"show {source} at {target} with shifted owners"
    with open(user_namespace, "rb") as pin:
        tree = kernel.call(
            _OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | _CLOEXEC, what=f"{what}: open_tree"
        )
        try:
            attributes = struct.pack("QQQQ", _ATTR_IDMAP, 0, 0, pin.fileno())
            try:
                kernel.call(kernel.MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes), what=what)
            except Broken as error:
                kind = mounts.containing(os.path.realpath(source), mounts.table()).kind
                raise Unsupported(
                    f"{source}: its file system ({kind}, Linux {os.uname().release}) cannot show files with other owners, "
                    "which a user namespace needs: use ext4, xfs or btrfs on Linux 5.19 or newer, or --userns=host"
                ) from error
            kernel.call(kernel.MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_FROM_EMPTY_PATH, what=what)
        finally:
            os.close(tree)


def as_root_of(ids: IdRange, function: Callable[[], T]) -> T:
    """Run `function` in a thread that makes files as the range's root does, with all our rights kept; raises what it does."""
    return namespaces.in_thread(lambda: _become(ids, function), "as another root")


async def as_root_of_async(ids: IdRange, function: Callable[[], T]) -> T:
    """Do as `as_root_of` while the loop goes on."""
    return await namespaces.in_thread_async(lambda: _become(ids, function), "as another root")


def closed_to_others(path: str) -> str:
    """Name the first directory on the way to `path` that users without rights may not pass; "" when there is none."""
    place = "/"
    for part in ["", *os.path.realpath(path).strip("/").split("/")]:
        place = os.path.join(place, part)
        if not os.stat(place).st_mode & 0o001:
            return place
    return ""


def _become(ids: IdRange, function: Callable[[], T]) -> T:
    numbers = _SET_IDS.get(os.uname().machine)
    if numbers is None:
        raise Unsupported(f"user namespaces: the system calls of {os.uname().machine} are not known here")
    prctl, setresuid, setresgid = numbers
    kernel.call(prctl, _PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0, what="prctl(PR_SET_SECUREBITS)")
    kernel.call(setresgid, -1, ids.base, -1, what=f"setresgid({ids.base})")
    kernel.call(setresuid, -1, ids.base, -1, what=f"setresuid({ids.base})")
    return function()


def _answers(fd: int) -> bool:
    ready, _, _ = select.select([fd], [], [], HELPER_S)
    return bool(ready) and os.read(fd, 1) == b"x"


def _write_map(path: str, ids: IdRange) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"0 {ids.base} {ids.size}\n")
    except OSError as error:
        raise kernel.refused(f"map {ids.size} ids from {ids.base}", error.errno or 0) from error


def _pin(pid: int, paths: Mapping[str, str]) -> None:
    try:
        for kind, path in paths.items():
            os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o444))
            mounts.bind(f"/proc/{pid}/ns/{kind}", path)
    except BaseException:
        for path in paths.values():
            namespaces.unpin(path)
        raise


async def _settle(paths: Mapping[str, str], ids: IdRange, hostname: str, sysctls: Mapping[str, str]) -> None:
    if "net" in paths:
        await namespaces.inside_async(paths["net"], namespaces.lo_up)
    if hostname and "uts" in paths:
        await namespaces.inside_async(paths["uts"], lambda: namespaces.name_host(hostname), kind="uts")
    for name, value in sysctls.items():
        kind = "net" if name.startswith("net.") else "ipc"

        def write(name: str = name, value: str = value) -> None:
            _become(ids, lambda: namespaces.sysctl(name, value))

        await namespaces.inside_async(paths[kind], write, kind=kind)
