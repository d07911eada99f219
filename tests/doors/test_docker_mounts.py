"""Mounts of a container: read from Docker's shapes; spread, read-only below, parts of volumes, images, by the stock client."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doors.conftest import Docker
from wherry.clock import machine
from wherry.doors.docker.mounts import read_mounts
from wherry.engine.types import Mount
from wherry.errors import BadRequest, Unsupported

MOUNTED = "mount | while read a b c d; do case $c in /m*) echo $c $d;; esac; done"


def bind(**further: Any) -> dict[str, Any]:
    return {"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/s", "Target": "/m", "ReadOnly": True, **further}]}}


@pytest.mark.parametrize(
    ("options", "version", "below", "recursive"),
    [
        ({}, (1, 47), True, True),
        ({}, (1, 43), False, True),
        ({"ReadOnlyNonRecursive": True}, (1, 47), False, True),
        ({"ReadOnlyForceRecursive": True, "Propagation": "rprivate"}, (1, 43), True, True),
        ({"NonRecursive": True}, (1, 47), True, False),
    ],
)
def test_read_only_holds_below_as_the_version_says(
    options: dict[str, Any], version: tuple[int, int], below: bool, recursive: bool
) -> None:
    (mount,) = read_mounts({}, bind(BindOptions=options)["HostConfig"], version)
    assert (mount.read_only, mount.read_only_below, mount.recursive) == (True, below, recursive)


@pytest.mark.parametrize(
    ("mount", "error", "says"),
    [
        ({"BindOptions": {"ReadOnlyForceRecursive": True}}, BadRequest, "rprivate"),
        ({"BindOptions": {"ReadOnlyNonRecursive": True}, "ReadOnly": False}, BadRequest, "needs ReadOnly"),
        ({"BindOptions": {"Magic": True}}, Unsupported, "BindOptions.Magic"),
        ({"Consistency": "perhaps"}, BadRequest, "perhaps"),
        ({"Type": "npipe"}, Unsupported, "npipe"),
        ({"Target": "/"}, BadRequest, "destination can't be '/'"),
        ({"VolumeOptions": {"Subpath": "a"}}, BadRequest, "VolumeOptions must not be specified"),
        ({"Type": "volume", "Source": "", "VolumeOptions": {"Subpath": "a"}}, BadRequest, "anonymous"),
        ({"Type": "volume", "Source": "v", "VolumeOptions": {"Subpath": "../a"}}, BadRequest, "'../a'"),
        ({"Type": "image", "Source": ""}, BadRequest, "Source must not be empty"),
        ({"Type": "tmpfs", "Source": "", "TmpfsOptions": {"Options": [["odd"]]}}, BadRequest, "odd"),
    ],
)
def test_mounts_that_cannot_be(mount: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read_mounts({}, bind(**mount)["HostConfig"])


@pytest.mark.parametrize("options", ["odd", "size", "size=", "odd=1"])
def test_options_of_tmpfs_are_checked(options: str) -> None:
    with pytest.raises(BadRequest, match="invalid tmpfs option"):
        read_mounts({}, {"Tmpfs": {"/m": options}})
    assert read_mounts({}, {"Tmpfs": {"/m": "ro,size=1m"}}) == [Mount("/m", "", "tmpfs", True, ["size=1m"])]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A shared mount with another one below it."""
    place = tmp_path / "tree"
    (place / "sub").mkdir(parents=True)
    for argv in (["--bind", place, place], ["--make-shared", place], ["-t", "tmpfs", "below", place / "sub"]):
        subprocess.run(["mount", *map(str, argv)], check=True)
    yield place
    for mounted in (place / "sub", place):
        subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.root
def test_what_is_mounted_below_is_read_only_too(newest: Docker, tree: Path) -> None:
    wrote = "touch /m/sub/x 2>/dev/null && echo wrote; true"
    write = ("web:1", "sh", "-c", wrote)
    for runtime in ("crun", "runc"):
        assert newest("run", "--rm", "--runtime", runtime, "-v", f"{tree}:/m:ro", *write).out == ""
    assert newest("run", "--rm", "-v", f"{tree}:/m", *write).out == "wrote\n"
    mount = f"type=bind,src={tree},dst=/m,ro"
    assert newest("run", "--rm", "--mount", f"{mount},bind-recursive=writable", *write).out == "wrote\n"
    forced = f"{mount},bind-recursive=readonly,bind-propagation=rprivate"
    assert newest("run", "--rm", "--mount", forced, *write).out == ""
    shown = newest("run", "--rm", "--mount", f"{mount},bind-recursive=disabled", "web:1", "sh", "-c", MOUNTED).out
    assert shown.count("\n") == 1


@pytest.mark.root
def test_mounts_spread_only_from_shared_ones(newest: Docker, tree: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "x", str(private)], check=True)
    try:
        subprocess.run(["mount", "--make-private", str(private)], check=True)
        assert "not a shared mount" in newest("create", "-v", f"{private}:/m:rshared", "web:1", code=1).err
        assert "not a shared or slave mount" in newest("create", "-v", f"{private}:/m:rslave", "web:1", code=1).err
    finally:
        subprocess.run(["umount", str(private)], check=True)
    newest("run", "-d", "--name", "web", "-v", f"{tree}:/m:rslave", "web:1", "sleep", "100")
    (tree / "later").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "later", str(tree / "later")], check=True)
    try:
        assert "/m/later" in newest("exec", "web", "sh", "-c", MOUNTED).out
        assert json.loads(newest("inspect", "web").out)[0]["Mounts"][0]["Propagation"] == "rslave"
    finally:
        newest("rm", "-f", "web")
        subprocess.run(["umount", str(tree / "later")], check=True)  # it is still there: nothing spread back
    argv = ("--privileged", "-v", f"{tree}:/m:rshared", "web:1", "sh", "-c", "mount -t tmpfs x /m/later; sleep 100")
    newest("run", "-d", "--name", "web", "--runtime", "runc", *argv)
    try:
        deadline = machine.monotonic() + 10
        while not os.path.ismount(tree / "later"):
            assert machine.monotonic() < deadline
            machine.pause(0.02)
    finally:
        newest("rm", "-f", "web")
        subprocess.run(["umount", str(tree / "later")], check=True)


@pytest.mark.root
def test_parts_of_volumes_images_and_memory(newest: Docker, tmp_path: Path) -> None:
    newest("run", "--rm", "-v", "parts:/m", "web:1", "sh", "-c", "echo one > /m/a; echo x > /m/b")
    place = Path(newest("volume", "inspect", "-f", "{{.Mountpoint}}", "parts").out.strip())
    (place / "out").symlink_to("/etc")
    part = "type=volume,src=parts,dst=/m,volume-subpath="
    assert newest("run", "--rm", "--mount", f"{part}a", "web:1", "cat", "/m").out == "one\n"
    assert "cannot access path none" in newest("create", "--mount", f"{part}none", "web:1", code=1).err
    # a link that leads out of the volume is looked up within it, where there is no /etc
    assert "cannot access path out" in newest("create", "--mount", f"{part}out", "web:1", code=1).err
    look = "ls /m; touch /m/new 2>/dev/null && echo wrote; true"
    image = ("--mount", "type=image,src=web:1,dst=/m")
    assert newest("run", "--name", "web", *image, "web:1", "sh", "-c", look).out == "bin\netc\ntmp\n"
    (shown,) = json.loads(newest("inspect", "web").out)[0]["Mounts"]
    assert (shown["Type"], shown["Source"], shown["RW"]) == ("image", "web:1", False)
    within = ("--mount", "type=image,src=web:1,dst=/m,image-subpath=etc")
    assert newest("run", "--rm", *within, "web:1", "sh", "-c", look).out == "passwd\n"
    assert newest("run", "--rm", "--volumes-from", "web", "web:1", "ls", "/m").out == "bin\netc\ntmp\n"
    argv = ("--tmpfs", "/m1:exec,size=1m,mode=700", "--mount", "type=tmpfs,dst=/m2,tmpfs-mode=0750,tmpfs-size=2m")
    shown = newest("run", "--name", "two", *argv, "web:1", "sh", "-c", MOUNTED).out
    lines = dict(line.removesuffix(")").split(" type tmpfs (") for line in shown.splitlines())
    assert {"nosuid", "nodev", "size=1024k", "mode=700"} <= set(lines["/m1"].split(","))
    assert "noexec" not in lines["/m1"]
    assert {"noexec", "size=2048k", "mode=750"} <= set(lines["/m2"].split(","))
    host = json.loads(newest("inspect", "two").out)[0]["HostConfig"]
    assert host["Tmpfs"] == {"/m1": "exec,size=1m,mode=700"}
    newest("rm", "web", "two")
    newest("volume", "rm", "parts")
