"""A fork: a new store that shares every sealed file with the old one."""

import os
import secrets
import shutil
from itertools import pairwise
from pathlib import Path

from wherry.errors import AlreadyExists, Broken, Damaged
from wherry.store.files import Directory, link_or_copy, sync_directory
from wherry.store.log import create_log
from wherry.store.seals import Sealer


def fork(source: Directory, at: int, floor: int, root: Path, sealer: Sealer | None) -> None:
    """Make a store in `root` with the state of `source` as of revision `at`, all of which must be in sealed files.

    It is put together beside `root` and moved there whole, so that a death leaves no store with a part of the keys.
    `sealer` is set when the data keys of Secrets come along.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise AlreadyExists(f"fork into {root}: it is not empty; name a directory that is absent or empty")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        made = root.parent / f".{root.name}.fork-{secrets.token_hex(4)}"
        made.mkdir(mode=0o700)
        try:
            _fill(source, at, floor, Directory(made), sealer)
            os.rename(made, root)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        sync_directory(root.parent)
    except OSError as error:
        raise Broken(f"fork into {root}: {error}") from error


def _fill(source: Directory, at: int, floor: int, target: Directory, sealer: Sealer | None) -> None:
    bases = [snapshot for snapshot in source.snapshots() if snapshot.revision <= at]
    base = bases[-1].revision if bases else 0
    if bases:
        link_or_copy(bases[-1].path, target.snapshot(base))
    logs = source.logs()
    covered = base
    for log, after in pairwise(logs):
        if log.revision <= at and after.revision - 1 > base:
            link_or_copy(log.path, target.log(log.revision))
            covered = after.revision - 1
    if covered < at:
        raise Damaged(f"store {source.root}: revisions {covered + 1} to {at} are not in sealed files")
    create_log(target, at + 1, min(floor, at))
    if sealer is not None:
        sealer.copy_to(target.root, at)
    target.sync()
