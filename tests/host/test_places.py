"""Whether two processes mean the same directory, and whether root can read what others can."""

import subprocess
import sys
from pathlib import Path

import pytest

from wherry.host import mounts
from wherry.host.places import is_local, mark

ASK = "import sys; from wherry.host.places import mark; print(mark(sys.argv[1]))"


def test_a_mark_is_of_one_directory(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("a")
    a = mark(str(tmp_path / "a"))
    assert mark(str(tmp_path / "link")) == a != mark(str(tmp_path / "b"))
    other = subprocess.run([sys.executable, "-c", ASK, str(tmp_path / "a")], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == a
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "a").mkdir()
    assert mark(str(tmp_path / "a")) != a
    with pytest.raises(OSError, match="absent"):
        mark(str(tmp_path / "absent"))


@pytest.mark.root
def test_other_mounts_are_another_place(tmp_path: Path) -> None:
    here = mark(str(tmp_path))
    words = ["unshare", "-m", sys.executable, "-c", ASK, str(tmp_path)]
    there = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    assert there.split()[0] == here.split()[0]
    assert there != here


def test_a_file_system_of_elsewhere_is_not_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_local(str(tmp_path))
    root = mounts.containing("/", mounts.table())
    for kind, local in (("nfs4", False), ("fuse.sshfs", False), ("btrfs", True)):
        point = mounts.MountPoint(9, 1, "/", str(tmp_path), frozenset(), 0, kind, "x", ())
        monkeypatch.setattr(mounts, "table", lambda point=point: [root, point])
        assert is_local(str(tmp_path / "below")) is local
