"""cp, export, import, commit, save and load by the stock client."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.doors.conftest import Docker

pytestmark = pytest.mark.root


def names_in(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


@pytest.mark.parametrize("running", [True, False])
def test_files_go_in_and_out(newest: Docker, tmp_path: Path, running: bool) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/f").write_text("word\n")
    (tmp_path / "in/link").symlink_to("deep/f")
    newest(
        "run" if running else "create",
        *(["-d"] if running else []),
        "--name",
        "web",
        "-v",
        "/vol",
        "web:1",
        "sleep",
        "100",
    )
    newest("cp", f"{tmp_path}/in", "web:/tmp/in")
    newest("cp", f"{tmp_path}/in/deep/f", "web:/vol/g")
    newest("cp", "web:/tmp/in/.", f"{tmp_path}/out")
    assert (tmp_path / "out/deep/f").read_text() == "word\n"
    assert os.readlink(tmp_path / "out/link") == "deep/f"
    newest("cp", "-L", "web:/tmp/in/link", f"{tmp_path}/followed")
    assert (tmp_path / "followed").read_text() == "word\n"
    newest("cp", "web:/vol/g", f"{tmp_path}/g")
    assert (tmp_path / "g").read_text() == "word\n"
    assert "Could not find" in newest("cp", "web:/no/such", f"{tmp_path}/x", code=1).err
    assert "no such directory" in newest("cp", f"{tmp_path}/g", "web:/no/such/", code=1).err.lower()
    assert "cannot" in newest("cp", f"{tmp_path}/in", "web:/etc/passwd", code=1).err.lower()
    if not running:
        newest("start", "web")
    assert newest("exec", "web", "cat", "/tmp/in/link", "/vol/g").out == "word\nword\n"
    newest("rm", "-fv", "web")


def test_links_do_not_lead_out_of_the_container(newest: Docker, tmp_path: Path) -> None:
    newest("run", "-d", "--name", "web", "web:1", "sleep", "100")
    links = io.BytesIO()
    with tarfile.open(fileobj=links, mode="w") as tar:
        for name, target in (("abs", str(tmp_path)), ("up", "../" * 20 + str(tmp_path)[1:]), ("etc", "/etc")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    (tmp_path / "links.tar").write_bytes(links.getvalue())
    (tmp_path / "outside").write_text("outside\n")
    with (tmp_path / "links.tar").open("rb") as source:
        subprocess.run([newest.program, "cp", "-", "web:/tmp"], env=newest.environment, stdin=source, check=True)
    for name in ("abs", "up"):
        assert "outside" not in newest("cp", f"web:/tmp/{name}/outside", "-", code=1).out
        newest("cp", f"{tmp_path}/outside", f"web:/tmp/{name}/written", code=None)
    assert not (tmp_path / "written").exists()
    newest("cp", f"{tmp_path}/outside", "web:/tmp/etc/inside")
    assert newest("exec", "web", "cat", "/etc/inside").out == "outside\n"
    assert not Path("/etc/inside").exists()


def test_export_and_import(newest: Docker, tmp_path: Path) -> None:
    newest("run", "--name", "web", "-v", "/vol", "web:1", "sh", "-c", "echo a > /new; echo b > /vol/kept-out")
    newest("export", "-o", f"{tmp_path}/root.tar", "web")
    names = names_in(tmp_path / "root.tar")
    assert {"bin/busybox", "new"} <= set(names)
    assert "vol/kept-out" not in names
    newest(
        "import",
        "-c",
        'CMD ["cat", "/new"]',
        "-c",
        "ENV PATH=/bin A=b",
        "-m",
        "taken",
        f"{tmp_path}/root.tar",
        "taken:1",
    )
    assert newest("run", "--rm", "taken:1").out == "a\n"
    assert "taken" in newest("history", "taken:1").out
    assert "only a tar" in newest("import", "http://127.0.0.1:1/x.tar", code=1).err
    newest("rm", "-v", "web")
    newest("rmi", "taken:1")


def test_commit_makes_an_image(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "-e", "A=1", "web:1", "sh", "-c", "echo a > /new; rm /etc/passwd; sleep 100")
    while "/etc/passwd" not in newest("diff", "web").out:
        pass
    id = newest(
        "commit", "-a", "Ann", "-m", "why", "-c", "LABEL x=y", "-c", "WORKDIR /tmp", "web", "made:1"
    ).out.strip()
    assert (
        newest("inspect", "-f", "{{.Id}} {{.Author}} {{.Config.Labels.x}} {{.Config.WorkingDir}}", "made:1").out
        == f"{id} Ann y /tmp\n"
    )
    done = newest("run", "--rm", "made:1", "sh", "-c", "cat /new; echo $A; pwd; cat /etc/passwd", code=1)
    assert done.out == "a\n1\n/tmp\n"
    newest("exec", "web", "true")  # it goes on
    assert newest("rmi", "made:1").out.startswith("Untagged: made:1")


def test_save_and_load(newest: Docker, tmp_path: Path) -> None:
    newest("tag", "web:1", "copy:2")
    newest("save", "-o", f"{tmp_path}/two.tar", "web:1", "copy:2")
    names = names_in(tmp_path / "two.tar")
    assert {"oci-layout", "index.json", "manifest.json"} <= set(names)
    newest("rmi", "copy:2")
    assert "Loaded image: copy:2" in newest("load", "-i", f"{tmp_path}/two.tar").out
    newest("rmi", "copy:2")
