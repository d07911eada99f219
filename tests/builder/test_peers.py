"""What docker's classic builder builds too comes out the same: paths, kinds, modes, owners, contents, config."""

import gzip
import os
import re
import shlex
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.builder import corpus, corpus_later
from tests.builder.peers import WHERRY, Peer, dockers, images_of, ours
from tests.engine.boxes import BUSYBOX

from wherry.cli.building import ask_for_build
from wherry.cli.engine import show_progress
from wherry.content.digests import digest_of

pytestmark = [pytest.mark.root]

HEAD = """\
FROM scratch AS box
COPY busybox /bin/
RUN ["/bin/busybox", "--install", "-s", "/bin"]
COPY passwd group /etc/
FROM box AS donor
WORKDIR /made
RUN echo one > one && mkdir -m 1777 two && echo x > two/x && chown -R 7:8 two && ln -s two link && ln one hard && chmod 4755 one
"""
CASES = {
    "a file to a file": "COPY a /x",
    "a file into a folder": "COPY a /new/folder/",
    "a file to where a folder is": "COPY a /bin",
    "several files": "COPY a b.txt /d/",
    "a folder's content": "COPY dir /d",
    "a folder's content to one that is there": "COPY dir /etc",
    "all of the context": "COPY . /all",
    "a pattern": "COPY *.txt dir/*.txt /p/",
    "a pattern of one letter": "COPY dir/in?er /p/",
    "a link is copied as what it means": "COPY link /l",
    "links within a folder": "COPY dir/links /l",
    "modes are kept": "COPY modes /m",
    "to a relative place": "WORKDIR /w\nCOPY a x/",
    "to where we are": "WORKDIR /w/deep\nCOPY a .",
    "through a link in the image": "RUN ln -s /etc /lnk\nCOPY a /lnk/",
    "owners by number": "COPY --chown=5:6 dir /d",
    "an owner by name": "COPY --chown=app dir /d",
    "an owner and a group by name": "COPY --chown=app:staff a /new/x",
    "a user alone by number": "COPY --chown=9 a /x",
    "from a stage": "COPY --from=donor /made /m",
    "one file from a stage": "COPY --from=donor /made/one /m/",
    "with an owner from a stage": "COPY --from=donor --chown=3:4 /made/two /m",
    "a name with a blank": 'COPY ["a b", "/x y"]',
    "over a file": "COPY a /x\nCOPY b.txt /x",
    "over a folder that has more": "COPY dir /d\nRUN rm -r /d/inner && echo n > /d/new\nCOPY dir /d",
    "an archive": "ADD dir.tar /t/",
    "an archive, squeezed": "ADD dir.tar.gz /t",
    "a file by ADD": "ADD a /x",
    "an archive that is copied": "COPY dir.tar.gz /t/",
    "a folder to work in": "WORKDIR /w\nWORKDIR deep\nWORKDIR ../flat",
    "a folder of a user's": "USER app\nWORKDIR /mine",
    "files come and go": "RUN echo a > /a; mkdir /d; echo b > /d/b\nRUN rm /a && rm -r /d\nRUN mkdir /d",
    "a file for a folder": "RUN mkdir -p /t/a/b\nRUN rm -r /t/a && echo f > /t/a",
    "a folder for a file": "RUN echo f > /t\nRUN rm /t && mkdir -p /t/a",
    "modes, links and pipes": "RUN echo a > /a && chmod 2751 /a && ln /a /b && ln -s a /c && mkfifo -m 600 /p && chown 3:4 /p",
    "a command of a user": "RUN mkdir -m 777 /t\nUSER app\nRUN id > /t/id && umask > /t/umask",
    "by its group too": "RUN mkdir -m 777 /t\nUSER app:staff\nRUN id > /t/id",
    "in another shell": 'SHELL ["/bin/sh", "-ec"]\nRUN echo $0 > /zero',
    "variables": "ARG X=1\nENV A=$X B=${A:-z}\nRUN echo $A $B $X > /env; pwd >> /env; echo $HOME $PATH >> /env",
    "what a container says of itself": 'ENV A=1\nLABEL l="a b" m=$A\nEXPOSE 80 53/udp\nVOLUME /v /w\n'
    "USER app\nSTOPSIGNAL SIGQUIT\nCMD echo $A",
    "an entrypoint ends the command of its base": 'CMD ["a"]\nENTRYPOINT ["/e"]',
    "a check": "HEALTHCHECK --interval=5s --retries=2 CMD true",
    "for later builds": "ONBUILD RUN echo\nONBUILD COPY a /x",
}  # fmt: skip

KNOWN = {
    ("a folder of a user's", "mine"): "dir 0o755 1000:1001  ",
    ("all of the context", "all/modes/setuid"): "file 0o4711 0:0",
    ("modes are kept", "m/setuid"): "file 0o4711 0:0",
    ("platform ARGs", "Labels"): "{'p': 'linux/",
}
"""Where the classic builder does otherwise than BuildKit, and we do as BuildKit: the folder of a WORKDIR is the USER's,
COPY keeps a file's set-user-id bit, and ARG knows platforms."""


@dataclass(frozen=True)
class Sides:
    """The two, and a context that both build."""

    ours: Peer
    theirs: Peer
    context: Path


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    base = tmp_path_factory.mktemp("peers")
    context = base / "context"
    _fill(context)
    with ours(base / "ours") as mine, dockers(base / "theirs") as theirs:
        yield Sides(mine, theirs, context)


def _fill(context: Path) -> None:
    inner = context / "dir/inner/deep"
    inner.mkdir(parents=True)
    (context / "modes").mkdir()
    for name, mode in (("plain", 0o640), ("run", 0o755), ("setuid", 0o4711)):
        (context / "modes" / name).write_text(name)
        (context / "modes" / name).chmod(mode)
    (context / "modes/sticky").mkdir()
    (context / "modes/sticky").chmod(0o1777)
    for path in ("a", "a b", "b.txt", "dir/c.txt", "dir/inner/d", "dir/inner/deep/e"):
        (context / path).write_text(f"{path}\n")
    (context / "dir/links").mkdir()
    (context / "dir/links/to-file").symlink_to("../c.txt")
    (context / "dir/links/to-folder").symlink_to("../inner")
    (context / "dir/links/nowhere").symlink_to("/not/there")
    (context / "link").symlink_to("b.txt")
    (context / "passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
    (context / "group").write_text("root:x:0:\napp:x:1001:\nstaff:x:50:app\n")
    shutil.copy(BUSYBOX, context / "busybox")
    (context / "busybox").chmod(0o755)
    with tarfile.open(context / "dir.tar", "w") as archive:
        archive.add(context / "dir", "dir")
        archive.add(context / "modes", "modes")
    (context / "dir.tar.gz").write_bytes(gzip.compress((context / "dir.tar").read_bytes()))


def _stage(number: int, text: str) -> str:
    return f"FROM box AS case{number}\n{text}\n"


def test_cases_come_out_the_same(sides: Sides, tmp_path: Path) -> None:
    """One file of all cases: docker's builder makes them one after the other, ours the one that is asked for."""
    text = HEAD + "".join(_stage(number, case) for number, case in enumerate(CASES.values()))
    (sides.context / "Dockerfile").write_text(text)
    said = sides.theirs.docker("build", "--network=none", str(sides.context)).stdout
    made = re.findall(r"^ ---> ([0-9a-f]{12})\n(?=Step \d+/\d+ : FROM box AS case|Successfully|\Z)", said, re.MULTILINE)
    assert len(made) == len(CASES) + 1  # the donor's end comes first
    names = [f"case:{number}" for number in range(len(CASES))]
    for name, id in zip(names, made[1:], strict=True):
        sides.theirs.docker("tag", id, name)
    for number, name in enumerate(names):
        sides.ours.wherry("build", "--network=none", "-q", "-t", name, f"--target=case{number}", str(sides.context))
    compare(sides, dict(zip(names, CASES, strict=True)), tmp_path)


def compare(sides: Sides, cases: dict[str, str], place: Path) -> None:
    """Fails with all that differs, by case."""
    mine, theirs = (images_of(peer, list(cases), place) for peer in (sides.ours, sides.theirs))
    wrong: list[str] = []
    for name, case in cases.items():
        for what in (0, 1):
            left, right = mine[name][what], theirs[name][what]
            for key in sorted({*left, *right}):
                if known := KNOWN.get((case, key)):
                    assert str(left[key]).startswith(known)
                    assert not str(right[key]).startswith(known)
                elif left.get(key) != right.get(key):
                    wrong.append(f"{case}: {key}: ours {left.get(key)}, theirs {right.get(key)}")
    assert wrong == []


def test_a_context_that_the_engine_sees_too_is_not_sent(
    sides: Sides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the directory by itself; to one that sees another there (or none) the files go as a tar."""
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
        (tmp_path / name / "Dockerfile").write_text("FROM scratch\nCOPY . /all\n")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "here/socket"))  # nobody sends those
    listening.close()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{sides.ours.socket}")

    def sent() -> Iterator[bytes]:
        pytest.fail("the context was sent")
        yield b""

    query: dict[str, object] = {"t": ["seen:here"], "dockerfile": "Dockerfile", "wherry": "{}"}
    show_progress(ask_for_build(query, {}, sent(), str(tmp_path / "here")), quiet=True)
    other, here = tmp_path / "elsewhere", tmp_path / "here"
    hidden = f"mount --bind {other} {here} && exec {shlex.join(WHERRY)} build -q -t seen:elsewhere {here}"
    subprocess.run(["unshare", "-m", "sh", "-c", hidden], check=True, capture_output=True, timeout=60)
    found = images_of(sides.ours, ["seen:here", "seen:elsewhere"], tmp_path)
    for name in ("here", "elsewhere"):
        _, files = found[f"seen:{name}"]
        assert sorted(files) == ["all", "all/Dockerfile", "all/f"]
        assert files["all/f"].endswith(digest_of(name.encode()))


def layers_of(peer: Peer, name: str) -> int:
    """How many layers an image has."""
    return int(peer.docker("image", "inspect", "-f", "{{len .RootFS.Layers}}", name).stdout)


@pytest.mark.soak
def test_the_corpus_comes_out_the_same(sides: Sides, tmp_path: Path) -> None:
    """Every case of the corpus that docker's builder can make, on a base whose commands are all `true`."""
    (sides.context / "Dockerfile").write_text(
        HEAD
        + 'FROM box AS base\nRUN for n in a b c d e x own app; do ln -sf true /bin/$n; done\nENV LANG=C\nCMD ["/bin/sh"]\n'
    )
    for peer in (sides.ours, sides.theirs):
        peer.docker("build", "--network=none", "-q", "-t", "base", "--target=base", str(sides.context))
    os.unlink(sides.context / "Dockerfile")
    compared: dict[str, str] = {}
    alone: list[str] = []
    for number, case in enumerate([*corpus.GOOD, *corpus_later.GOOD]):
        (sides.context / "Dockerfile").write_text(re.sub(r"(?im)^(from)(\s+)scratch", r"\1\2base", case.text))
        words = [word for key, value in case.args.items() for word in ("--build-arg", f"{key}={value}")]
        words += ["--target", case.target] if case.target else []
        name = f"corpus:{number}"
        tried = [
            peer.docker("build", "--network=none", "-q", "-t", name, *words, str(sides.context), check=False)
            for peer in (sides.theirs, sides.ours)
        ]
        if tried[0].returncode == 0 and layers_of(sides.theirs, name):  # dockerd cannot save an image without any
            assert tried[1].returncode == 0, (case.name, tried[1].stderr)
            compared[name] = case.name
        else:
            alone.append(case.name)
    assert len(compared) >= 40, alone
    compare(sides, compared, tmp_path)
