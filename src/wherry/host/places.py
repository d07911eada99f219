"""Which directory a path is: so that two processes that talk by a socket know whether they mean the same one."""

import os

_ELSEWHERE = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "afs", "virtiofs")


def mark(path: str) -> str:
    """What only the same directory, seen by the same kernel through the same mounts, has. Raises OSError.

    A path alone says nothing to who is in a container, or at the other end of a socket that was carried to another machine.
    """
    found = os.stat(path)
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot} {os.readlink('/proc/self/ns/mnt')} {found.st_dev}:{found.st_ino}"


def is_local(path: str) -> bool:
    """Say whether root reads there what anybody reads: file systems of other machines, and people's own, may refuse it."""
    from wherry.host import mounts  # the command line needs the other half alone

    return not mounts.containing(os.path.realpath(path), mounts.table()).kind.startswith(_ELSEWHERE)
