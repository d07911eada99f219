"""Directories that lie apart from each other on the disk."""

import fcntl
import os
import subprocess
from pathlib import Path

from wherry.host.engine_calls import spread_directories


def flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return int.from_bytes(fcntl.ioctl(fd, 0x80086601, bytes(8))[:4], "little")
    finally:
        os.close(fd)


def test_what_is_made_in_a_directory_lies_apart_where_the_file_system_can(tmp_path: Path) -> None:
    for place in (tmp_path, Path("/dev/shm"), Path("/proc")):  # ext4, mostly, and two that know nothing of it
        spread_directories(str(place))
        spread_directories(str(place))
    (tmp_path / "made").mkdir()
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert kind.strip() != "ext2/ext3" or flags(tmp_path) & 0x20000
    assert kind.strip() != "ext2/ext3" or not flags(tmp_path / "made") & 0x20000
