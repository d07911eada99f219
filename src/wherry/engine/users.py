"""Who a container's process is: `user` of an image or a spec, looked up in the passwd and group files of its root.

The root file system is an image's and may be hostile: files are opened beneath it only, must be regular, and are read
up to a limit.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from wherry.errors import Invalid
from wherry.host import engine_calls

MAX_FILE_BYTES = 4 << 20
MAX_ID = 2**32 - 2
"""The last id that can be used: the kernel keeps 2**32 - 1 for "no change"."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A process's numbers, and its home directory ("/" when nobody says). Its `gid` is the first of its `groups`."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class Account:
    """A line of passwd."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class Group:
    """A line of group."""

    name: str
    gid: int
    members: tuple[str, ...]


def look_up(root: int, user: str, groups: Sequence[int | str] = ()) -> Identity:
    """Find `user` in the files beneath the directory `root` (a descriptor). Raises Invalid when it is not there."""
    return resolve(user, read_text(root, "etc/passwd"), read_text(root, "etc/group"), groups)


def resolve(user: str, passwd: str, group: str, groups: Sequence[int | str] = ()) -> Identity:
    """Turn `name`, `uid`, `name:group`, `uid:gid` (or "" for root) into numbers, given the two files' texts. Pure.

    A number needs no entry; its group is then 0. Without an explicit group the user's own further groups count too;
    `groups`, numbers or names, are added in either case. The main group is among them: a process that could leave it
    (by a set-group-id program) would get around files that are closed to just that group. Raises Invalid.
    Source: Dockerfile reference, USER; runc's user lookup; CVE-2022-36109.
    """
    name, colon, group_name = user.partition(":")
    account = _account(name or "0", parse_passwd(passwd))
    if account is None:
        number = _number(name or "0")
        if number is None:
            raise Invalid(f"unable to find user {name}: no matching entries in passwd file; a number needs none")
        account = Account("", number, 0, "/")
    known = parse_group(group)
    gid, further = account.gid, [each if isinstance(each, int) else _gid(each, known) for each in groups]
    if colon and group_name:
        gid = _gid(group_name, known)
    else:
        further += [entry.gid for entry in known if account.name and account.name in entry.members]
    others = tuple(dict.fromkeys((gid, *further)))
    for number in others:
        if not 0 <= number <= MAX_ID:
            raise Invalid(f"group {number}: groups are numbers from 0 to {MAX_ID}")
    return Identity(account.uid, gid, others, account.home or "/")


def parse_passwd(text: str) -> list[Account]:
    """Read passwd; lines that are not of its form are passed over."""
    accounts: list[Account] = []
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) >= 6 and parts[0]:
            uid, gid = _number(parts[2]), _number(parts[3])
            if uid is not None and gid is not None:
                accounts.append(Account(parts[0], uid, gid, parts[5]))
    return accounts


def parse_group(text: str) -> list[Group]:
    """Read group; lines that are not of its form are passed over."""
    groups: list[Group] = []
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) >= 3 and parts[0]:
            gid = _number(parts[2])
            if gid is not None:
                members = tuple(word.strip() for word in parts[3].split(",")) if len(parts) > 3 and parts[3] else ()
                groups.append(Group(parts[0], gid, members))
    return groups


def read_text(root: int, path: str) -> str:
    """Read a small file beneath `root`; "" when there is none, or it is no regular file. Raises Invalid when too large."""
    try:
        fd = engine_calls.open_beneath(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise Invalid(f"/{path} in the image: more than {MAX_FILE_BYTES} bytes")
    return data.decode(errors="replace")


def _account(name: str, accounts: Sequence[Account]) -> Account | None:
    number = _number(name)
    for account in accounts:
        if account.name == name or (number is not None and account.uid == number):
            return account
    return None


def _gid(name: str, groups: Sequence[Group]) -> int:
    number = _number(name)
    for group in groups:
        if group.name == name or (number is not None and group.gid == number):
            return group.gid
    if number is None:
        raise Invalid(f"unable to find group {name}: no matching entries in group file; a number needs none")
    return number


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        return None
    number = int(text)
    return number if number <= MAX_ID else None
