"""Volumes at the engine's level: filled whole or not at all, and what a kill leaves."""

import os
from pathlib import Path

import pytest
from tests.engine.boxes import run, spec

from wherry.engine.copying import copy_tree
from wherry.engine.local import LocalEngine
from wherry.engine.types import Mount
from wherry.errors import Conflict, Invalid, NotFound, Unsupported

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_a_volume_is_filled_with_all_that_files_say(engine: LocalEngine) -> None:
    made = spec("/bin/sh", "-c", "ls -ln /home | grep ann; id -u", mounts=[Mount("/home", "homes", "volume")])
    code, text = await run(engine, made)
    assert code == 0
    assert "ann" in text
    place = Path(engine.volumes.find("homes").place)
    assert (place / "ann").is_dir()
    (place / "ann").rmdir()
    code, text = await run(engine, spec("/bin/ls", "/home", mounts=[Mount("/home", "homes", "volume", copy=False)]))
    assert (code, text) == (0, "")
    await engine.settled()
    engine.volumes.remove("homes")
    with pytest.raises(NotFound):
        engine.volumes.find("homes")


async def test_links_of_the_image_do_not_lead_out(engine: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to("/etc/shadow")
    (tmp_path / "in" / "one").write_text("1")
    os.link(tmp_path / "in" / "one", tmp_path / "in" / "two")
    os.mkfifo(tmp_path / "in" / "pipe")
    os.chown(tmp_path / "in" / "one", 7, 8)
    os.setxattr(tmp_path / "in" / "one", "user.note", b"x")
    (tmp_path / "to").mkdir()
    copy_tree(tmp_path / "in", tmp_path / "to")
    assert os.readlink(tmp_path / "to" / "out") == "/etc/shadow"
    seen = os.stat(tmp_path / "to" / "one")
    assert (seen.st_uid, seen.st_gid, seen.st_nlink) == (7, 8, 2)
    assert os.getxattr(tmp_path / "to" / "two", "user.note") == b"x"


async def test_what_a_kill_left_is_finished_or_taken_back(engine: LocalEngine) -> None:
    place = Path(engine.volumes.create("cut").place)
    (place.parent / "filled").mkdir()
    (place.parent / "filled" / "rest").touch()
    (place.parent / "filling").mkdir()
    (place.parent.parent / ".making-1").mkdir()
    engine.volumes.open()
    assert os.listdir(place) == ["rest"]
    assert sorted(os.listdir(place.parent)) == ["_data", "volume.json"]
    assert not (place.parent.parent / ".making-1").exists()
    engine.volumes.remove("cut")


async def test_what_cannot_be_a_volume(engine: LocalEngine) -> None:
    for name in ("../x", ".x", "a b", "x" * 300):
        with pytest.raises(Invalid):
            engine.volumes.create(name)
        with pytest.raises(Invalid):
            await engine.create(spec(mounts=[Mount("/x", name, "volume")]))
    with pytest.raises(Unsupported):
        engine.volumes.create("x", options={"type": "tmpfs"})
    made = await engine.create(spec(mounts=[Mount("/x", "used", "volume")]))
    with pytest.raises(Conflict, match=made.id):
        engine.volumes.remove("used")
    await engine.remove(made.id)
    await engine.settled()
    engine.volumes.remove("used")
