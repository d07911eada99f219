"""The verbs that docker's users reach for next: lives, looks, files, networks, volumes, disk space, credentials."""

import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from tests.cli.test_verbs import Wherry, wherry

__all__ = ["wherry"]
pytestmark = pytest.mark.root


def state(wherry: Wherry, name: str) -> str:
    return json.loads(wherry("inspect", name).out)[0]["State"]["Status"]


def test_a_container_is_made_started_held_renamed_limited_and_waited_for(wherry: Wherry) -> None:
    id = wherry("create", "--name", "one", "-m", "64m", "--init", "web:1", "sleep", "100").out.strip()
    assert state(wherry, "one") == "created"
    assert wherry("start", "one").out == "one\n"
    assert json.loads(wherry("inspect", "one").out)[0]["HostConfig"]["Init"] is True
    wherry("pause", "one")
    assert state(wherry, "one") == "paused"
    wherry("unpause", "one")
    wherry("rename", "one", "two")
    wherry("update", "-m", "128m", "--pids-limit", "50", "--restart", "on-failure:3", "two")
    host = json.loads(wherry("inspect", "two").out)[0]["HostConfig"]
    assert (host["Memory"], host["PidsLimit"]) == (128 << 20, 50)
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    wherry("restart", "-t", "0", "two")
    top = wherry("top", "two").out
    assert "sleep 100" in top
    assert json.loads(wherry("top", "-o", "json", "two").out)["Processes"]
    shown = wherry("stats", "--no-stream", "two").out.splitlines()
    assert shown[0].split()[:2] == ["CONTAINER", "ID"]
    assert (shown[1].split()[1], "MB" in shown[1]) == ("two", True)
    wherry("kill", "-s", "KILL", "two")
    assert wherry("wait", "two").out == "137\n"
    assert wherry("inspect", "--type", "container", id[:12]).out
    assert "no such container or image or network or volume: nobody" in wherry("inspect", "nobody", code=1).err


def test_attaching_carries_streams_and_the_exit_code(wherry: Wherry) -> None:
    wherry("create", "--name", "job", "-i", "web:1", "sh", "-c", "read line; echo got $line; exit 5")
    done = wherry("start", "-a", "-i", "job", input="hello\n", code=5)
    assert done.out == "got hello\n"
    assert "wherry start -a" in wherry("attach", "job", code=1).err
    wherry("run", "-d", "-i", "--name", "talk", "web:1", "sh", "-c", "read line; echo heard $line; exit 3")
    assert wherry("attach", "talk", input="you\n", code=3).out == "heard you\n"


def test_files_go_in_and_out(wherry: Wherry, tmp_path: Path) -> None:
    wherry("create", "--name", "box", "web:1", "true")
    site = tmp_path / "site"
    (site / "deep").mkdir(parents=True)
    (site / "deep" / "file").write_text("inside")
    (tmp_path / "one").write_text("one")
    wherry("cp", str(site), "box:/tmp")
    wherry("cp", str(tmp_path / "one"), "box:/tmp/renamed")
    wherry("cp", f"{site}/.", "box:/tmp/site")
    added = ["/tmp/renamed", "/tmp/site", "/tmp/site/deep", "/tmp/site/deep/file"]
    assert wherry("diff", "box").out.splitlines() == ["C /tmp", *(f"A {path}" for path in added)]
    back = tmp_path / "back"
    wherry("cp", "box:/tmp/site", str(back))
    assert (back / "deep" / "file").read_text() == "inside"
    wherry("cp", "box:/tmp/renamed", str(back))
    assert (back / "renamed").read_text() == "one"
    wherry("cp", "box:/tmp/site/.", str(back))
    assert sorted(os.listdir(back)) == ["deep", "renamed"]
    wherry("cp", "box:/tmp/renamed", str(tmp_path / "other"))
    assert (tmp_path / "other").read_text() == "one"
    assert "no such file" in wherry("cp", str(tmp_path / "none"), "box:/tmp", code=1).err
    assert "no such directory" in wherry("cp", "box:/tmp/renamed", str(tmp_path / "no" / "place"), code=1).err
    assert "CONTAINER:PATH" in wherry("cp", "a", "b", code=1).err
    assert not [each for each in os.listdir(tmp_path) if each.startswith(".wherry-cp")]


def test_images_are_saved_loaded_exported_imported_and_committed(wherry: Wherry, tmp_path: Path) -> None:
    saved, exported = tmp_path / "web.tar", tmp_path / "files.tar"
    wherry("save", "-o", str(saved), "web:1")
    assert "Loaded image: web:1" in wherry("load", "-i", str(saved)).out
    wherry("create", "--name", "box", "web:1", "true")
    wherry("export", "-o", str(exported), "box")
    with tarfile.open(exported) as archive:
        assert "bin/busybox" in archive.getnames()
    assert wherry("import", "-c", 'CMD ["/bin/true"]', str(exported), "flat:1").out.startswith("sha256:")
    wherry("run", "--rm", "flat:1", "/bin/busybox", "true")
    id = wherry("commit", "-m", "as it was", "box", "web:kept").out.strip()
    steps = json.loads(wherry("history", "-o", "json", "web:kept").out)
    assert (steps[0]["Id"], steps[0]["Comment"]) == (id, "as it was")
    assert wherry("history", "web:kept").out.startswith("IMAGE")
    wherry("rmi", "web:kept", "flat:1")


def test_networks_volumes_and_disk_space(wherry: Wherry) -> None:
    wherry("network", "create", "--subnet", "172.31.77.0/24", "--label", "a=b", "front")
    assert "172.31.77.0/24" in wherry("network", "ls", "-f", "label=a=b").out
    wherry("volume", "create", "--label", "a=b", "data")
    wherry("run", "-d", "--name", "web", "-v", "data:/data", "-p", "127.0.0.1::80", "web:1", "sleep", "100")
    wherry("network", "connect", "--ip", "172.31.77.9", "--alias", "db", "front", "web")
    found = json.loads(wherry("network", "inspect", "front").out)[0]
    assert [each["IPv4Address"] for each in found["Containers"].values()] == ["172.31.77.9/24"]
    assert wherry("port", "web", "80").out.startswith("127.0.0.1:")
    assert wherry("port", "web").out.startswith("80/tcp -> 127.0.0.1:")
    assert "no public port '81/tcp'" in wherry("port", "web", "81", code=1).err
    wherry("network", "disconnect", "front", "web")
    assert wherry("volume", "ls", "-q", "-f", "label=a=b").out == "data\n"
    assert json.loads(wherry("volume", "inspect", "data").out)[0]["Name"] == "data"
    rows = wherry("system", "df").out.splitlines()
    assert [row.split()[0] for row in rows] == ["TYPE", "Images", "Containers", "Local", "Build"]
    assert json.loads(wherry("system", "df", "-o", "json").out)["Volumes"]
    wherry("rm", "-f", "web")
    wherry("create", "--name", "old", "web:1", "true")
    assert "give --force" in wherry("system", "prune", code=1).err
    pruned = wherry("system", "prune", "-f").out
    assert "front" in pruned
    assert pruned.splitlines()[-1].startswith("Total reclaimed space:")
    assert wherry("ps", "-aq").out == ""
    wherry("volume", "rm", "data")
    assert "did you mean create?" in wherry("volume", "creat", code=2).err


def test_events_and_what_the_engine_is(wherry: Wherry) -> None:
    wherry("run", "--rm", "--name", "short", "web:1", "true")
    told = wherry("events", "--since", "1m", "--until", "0s", "--filter", "container=short").out
    assert [line.split()[2] for line in told.splitlines()][:3] == ["create", "attach", "start"]
    lines = wherry("events", "--since", "1m", "--until", "0s", "--filter", "event=die", "-o", "json").out.splitlines()
    assert all(json.loads(line)["Action"] == "die" for line in lines)
    assert "runtime" in wherry("info").out
    assert json.loads(wherry("info", "-o", "json").out)["OSType"] == "linux"


def test_signing_in_keeps_credentials_that_hold_and_no_others(
    wherry: Wherry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = wherry.environment["WHERRY_ROOT"]
    secret = Path(root, "server", "registry-token").read_text().strip()
    monkeypatch.setitem(wherry.environment, "DOCKER_CONFIG", str(tmp_path / "docker"))
    wherry("login", "-u", "wherry", "--password-stdin", wherry.registry, input="wrong\n", code=1)
    assert not (tmp_path / "docker").exists()
    assert (
        "Login Succeeded"
        in wherry("login", "-u", "wherry", "--password-stdin", wherry.registry, input=f"{secret}\n").out
    )
    kept = tmp_path / "docker" / "config.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    wherry("tag", "web:1", f"{wherry.registry}/mine/web:1")
    wherry("push", f"{wherry.registry}/mine/web:1")
    wherry("rmi", f"{wherry.registry}/mine/web:1")
    assert "Removed the credentials" in wherry("logout", wherry.registry).out
    assert json.loads(kept.read_text()) == {"auths": {}}
    assert "Not logged in" in wherry("logout", wherry.registry).out
