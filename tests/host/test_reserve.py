"""Space kept aside on a small disk: given up when the disk is full, had again when there is room."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.host import mounts
from wherry.host.reserve import SIZE_BYTES, Reserve

pytestmark = pytest.mark.root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    mounts.tmpfs(str(tmp_path), size_bytes=20 * SIZE_BYTES)
    yield tmp_path
    mounts.unmount(str(tmp_path))


def test_a_reserve_is_given_up_and_had_again(disk: Path) -> None:
    path = disk / "reserve"
    reserve = Reserve(path)
    reserve.fill()
    reserve.spend_if_full()
    assert path.stat().st_size == SIZE_BYTES, "there is room: it stays"
    with pytest.raises(OSError, match="No space"):
        (disk / "big").write_bytes(bytes(20 * SIZE_BYTES))
    again = Reserve(path)  # as after a restart
    again.spend_if_full()
    assert not path.exists()
    (disk / "small").write_bytes(b"x" * 5000)
    again.fill()
    assert 0 < path.stat().st_size < SIZE_BYTES, "what is left is kept for the next one"
    os.unlink(disk / "big")
    again.fill()
    assert path.stat().st_size == SIZE_BYTES


def test_none_is_made_where_there_is_little_room(tmp_path: Path) -> None:
    mounts.tmpfs(str(tmp_path), size_bytes=4 * SIZE_BYTES)
    try:
        Reserve(tmp_path / "reserve").fill()
        assert os.listdir(tmp_path) == []
        Reserve(tmp_path / "gone" / "reserve").fill()
    finally:
        mounts.unmount(str(tmp_path))
