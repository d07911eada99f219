"""Volumes by the stock client: made, filled from the image, shared, pruned; binds, tmpfs and what cannot be."""

import json
from pathlib import Path

import pytest

from tests.doors.conftest import Docker

pytestmark = pytest.mark.root


def test_a_volume_lives_on_until_it_is_removed(newest: Docker) -> None:
    assert newest("volume", "create", "--label", "team=boats", "kept").out == "kept\n"
    assert newest("volume", "create", "kept").out == "kept\n"
    newest("run", "--rm", "-v", "kept:/data", "web:1", "sh", "-c", "echo word > /data/f")
    assert (
        newest("run", "--rm", "--mount", "type=volume,src=kept,dst=/in,readonly", "web:1", "cat", "/in/f").out
        == "word\n"
    )
    shown = json.loads(newest("volume", "inspect", "kept").out)[0]
    assert (shown["Driver"], shown["Labels"], shown["Scope"]) == ("local", {"team": "boats"}, "local")
    assert (Path(shown["Mountpoint"]) / "f").read_text() == "word\n"
    assert newest("volume", "ls", "-q", "--filter", "label=team=boats").out == "kept\n"
    assert newest("volume", "ls", "-q", "--filter", "label=team=cars").out == ""
    newest("create", "--name", "user", "-v", "kept:/data:ro", "web:1", "true")
    mount = json.loads(newest("inspect", "user").out)[0]["Mounts"][0]
    assert (mount["Type"], mount["Name"], mount["Source"], mount["RW"]) == (
        "volume",
        "kept",
        shown["Mountpoint"],
        False,
    )
    assert "volume is in use" in newest("volume", "rm", "kept", code=1).err
    newest("rm", "user")
    newest("volume", "rm", "kept")
    assert not Path(shown["Mountpoint"]).exists()
    assert "o such volume" in newest("volume", "inspect", "kept", code=1).err
    newest("volume", "rm", "-f", "kept")


def test_an_empty_volume_gets_what_the_image_has(newest: Docker) -> None:
    script = "cat /etc/passwd | wc -l; echo new > /etc/mine"
    newest("run", "--rm", "-v", "filled:/etc", "web:1", "sh", "-c", script)
    assert set(newest("run", "--rm", "-v", "filled:/x", "web:1", "ls", "/x").out.split()) >= {"passwd", "mine"}
    bare = ("run", "--rm", "-v", "bare:/etc:nocopy", "web:1", "cat")
    assert "No such" in newest(*bare, "/etc/passwd", code=1).err
    assert len(newest(*bare, "/etc/hostname").out) == 13
    mount = "type=volume,src=bare2,dst=/etc,volume-nocopy"
    assert "passwd" not in newest("run", "--rm", "--mount", mount, "web:1", "ls", "/etc").out
    newest("volume", "rm", "filled", "bare", "bare2")


def test_anonymous_volumes_go_with_their_container(newest: Docker) -> None:
    newest("run", "--rm", "-v", "/scratch", "web:1", "touch", "/scratch/x")
    newest("create", "--name", "one", "-v", "/scratch", "web:1", "true")
    newest("create", "--name", "two", "--volumes-from", "one:ro", "web:1", "true")
    (first,) = json.loads(newest("inspect", "one").out)[0]["Mounts"]
    (second,) = json.loads(newest("inspect", "two").out)[0]["Mounts"]
    assert (first["Name"], first["RW"], second["RW"]) == (second["Name"], True, False)
    newest("rm", "-v", "one")  # the other still has it
    assert newest("volume", "ls", "-q").out == f"{first['Name']}\n"
    newest("rm", "two")
    assert newest("volume", "ls", "-qf", "dangling=true").out == f"{first['Name']}\n"
    for noun in ("volume", "network", "image"):
        assert "invalid filter 'dangling=maybe'" in newest(noun, "ls", "-f", "dangling=maybe", code=1).err
    assert first["Name"] in newest("volume", "prune", "-f").out
    assert newest("volume", "ls", "-q").out == ""


def test_a_volume_that_is_a_directory_of_the_machine(newest: Docker, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("outside\n")
    newest("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", f"device={tmp_path}", "outside")
    assert newest("run", "--rm", "-v", "outside:/x", "web:1", "cat", "/x/f").out == "outside\n"
    newest("volume", "rm", "outside")
    assert (tmp_path / "f").exists()
    assert "are supported" in newest("volume", "create", "-o", "type=nfs", "-o", "device=:/x", "far", code=1).err
    assert "only local" in newest("volume", "create", "-d", "rexray", "far", code=1).err


def test_binds_and_tmpfs(newest: Docker, tmp_path: Path) -> None:
    newest("run", "--rm", "-v", f"{tmp_path}/made:/x", "web:1", "touch", "/x/y")  # -v makes what is not there
    assert (tmp_path / "made/y").exists()
    script = "touch /x/z 2>/dev/null || echo sealed; mount | head -n 100"
    bind, tmpfs = f"type=bind,src={tmp_path}/made,dst=/x,readonly", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770"
    mounts = ("--mount", bind, "--mount", tmpfs)
    text = newest("run", "--rm", *mounts, "web:1", "sh", "-c", script).out
    assert text.startswith("sealed\n")
    (line,) = [line for line in text.splitlines() if " /t " in line]
    assert "size=1024k" in line
    assert "mode=1770" in line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--mount", "type=bind,src=/no/such/place,dst=/x"), "does not exist"),
        (("--mount", "type=volume,src=v,dst=/x,volume-driver=far"), "only local is supported"),
        (("-v", "v:/x:rshared"), "no propagation"),
        (("-v", "a b:/x"), "volume"),
        (("-v", "/tmp:/"), "destination can't be '/'"),
        (("-v", "one:/x", "-v", "two:/x"), "Duplicate mount point"),
        (("--volume-driver", "far", "-v", "v:/x"), "only local is supported"),
    ],
)
def test_what_cannot_be_mounted_says_so(newest: Docker, argv: tuple[str, ...], says: str) -> None:
    assert says in newest("create", *argv, "web:1", "true", code=1).err
    assert newest("volume", "ls", "-q").out == ""
