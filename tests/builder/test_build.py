"""Builds from the first line to the image, on an engine that runs no containers."""

import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.builder.yard import Yard

from wherry.engine.types import ContainerSpec, Image
from wherry.errors import Invalid, NotFound

WEB = """# syntax=docker/dockerfile:1
ARG VERSION=1
FROM scratch
ARG VERSION
COPY app /app/
COPY --chown=10:20 --chmod=755 run.sh /usr/bin/run
RUN ["/bin/prepare"]
ENV VERSION=$VERSION
WORKDIR /app/work
EXPOSE 8080
CMD ["/usr/bin/run"]
"""


async def test_an_image_is_built_with_its_config_and_history(yard: Yard) -> None:
    yard.file("app/index.html", "hello")
    yard.file("app/sub/deep", mode=0o600)
    (yard.context / "app/link").symlink_to("index.html")
    yard.file("run.sh", "#!/bin/sh\n")
    image = await yard.build(WEB, args={"VERSION": "2"}, labels={"by": "test"})
    assert image.names == ["docker.io/library/web:1"]
    body = image.config["config"]
    assert body["Cmd"] == ["/usr/bin/run"]
    assert body["Env"][-1] == "VERSION=2"
    assert body["WorkingDir"] == "/app/work"
    assert body["ExposedPorts"] == {"8080/tcp": {}}
    assert body["Labels"] == {"by": "test"}
    history = image.config["history"]
    assert [entry["created_by"] for entry in history if not entry.get("empty_layer")] == [
        "COPY app /app/",
        "COPY --chown=10:20 --chmod=755 run.sh /usr/bin/run",
        "RUN |1 VERSION=2 /bin/prepare",
        "WORKDIR /app/work",
    ]
    assert len(image.layers) == len(image.config["rootfs"]["diff_ids"]) == 4
    first, second, _, last = (yard.rows(layer) for layer in image.layers)
    assert {path: (row.kind, row.mode, row.uid) for path, row in first.items()} == {
        "app/": ("dir", 0o755, 0),
        "app/index.html": ("file", 0o644, 0),
        "app/link": ("symlink", 0o777, 0),
        "app/sub/": ("dir", 0o755, 0),
        "app/sub/deep": ("file", 0o600, 0),
    }
    assert (second["usr/bin/run"].mode, second["usr/bin/run"].uid, second["usr/bin/run"].gid) == (0o755, 10, 20)
    assert second["usr/"].uid == 10  # made on the way, for the same owner, as BuildKit does
    assert list(last) == ["app/", "app/work/"]
    assert [event.text for event in yard.events if event.kind == "output"] == ["ran /bin/prepare\n"]
    steps = [(event.step, event.total) for event in yard.events if event.kind == "step"]
    assert steps == [(number, 9) for number in range(1, 10)]
    assert not yard.engine.specs
    assert not yard.engine.unnamed
    assert yard.events[-1].text == image.id


async def test_the_same_build_again_is_all_cached_also_after_a_restart(yard: Yard) -> None:
    yard.file("app/index.html", "hello")
    yard.file("run.sh", "#!/bin/sh\n")
    first = await yard.build(WEB)
    assert yard.cached == []
    await yard.clock.advance(1000)
    (yard.context / "run.sh").touch()  # a new time is no change
    again = await yard.build(WEB)
    assert again.id == first.id
    assert len(yard.cached) == 4
    await yard.builder.close()
    yard.builder = yard.open()
    await yard.builder.start()
    assert (await yard.build(WEB)).id == first.id
    assert len(yard.engine.ran) == 1
    yard.file("run.sh", "#!/bin/ash\n")
    changed = await yard.build(WEB)
    assert changed.id != first.id
    assert yard.cached == ["COPY app /app/"]
    fresh = await yard.build(WEB, no_cache=True)
    assert yard.cached == []
    assert len(yard.engine.ran) == 3
    assert fresh.layers[0] == changed.layers[0]  # the same bytes all the same


async def test_an_argument_changes_only_what_comes_after_it(yard: Yard) -> None:
    text = "FROM scratch\nRUN a\nARG V\nRUN b\n"
    await yard.build(text, args={"V": "1"})
    await yard.build(text, args={"V": "2"})
    assert yard.cached == ["RUN a"]


async def test_stages_hand_files_on(yard: Yard) -> None:
    yard.file("src/a", "from the context")
    image = await yard.build(
        "FROM scratch AS build\nCOPY --chown=5:6 src /out/\nRUN never-mind\n"
        "FROM scratch AS unused\nRUN fail\n"
        "FROM scratch\nCOPY --from=build /out /srv\nCOPY --from=build /out/a /b\n"
    )
    assert yard.read(image, "srv/a") == yard.read(image, "b") == b"from the context"
    assert (yard.rows(image.layers[0])["srv/a"].uid, yard.rows(image.layers[0])["srv/a"].gid) == (5, 6)
    assert len(image.layers) == 2
    assert [spec.entrypoint[-1] for spec in yard.engine.ran if spec.entrypoint] == ["never-mind"]
    await yard.build("FROM web:1\nCOPY --from=web:1 /srv/a /copy\n")
    assert yard.events[-1].kind == "done"


async def test_a_base_brings_its_files_and_copies_follow_its_links(yard: Yard) -> None:
    yard.file("passwd", "root:x:0:0::/:/bin/sh\napp:x:7:8::/:/bin/sh\n")
    yard.file("group", "root:x:0:\nstaff:x:50:\n")
    yard.file("real/keep", mode=0o644)
    (yard.context / "real").chmod(0o1777)
    (yard.context / "tree").mkdir()
    (yard.context / "tree/lib").symlink_to("usr/lib")
    yard.file("tree/usr/lib/x")
    await yard.build("FROM scratch\nCOPY passwd group /etc/\nCOPY tree /\nCOPY real /tmp/dir\nLABEL base=1\n")
    yard.file("f", "new")
    image = await yard.build("FROM web:1\nCOPY --chown=app:staff f /lib/\nCOPY f /etc\nUSER app\nWORKDIR /home/app\n")
    rows = yard.rows(image.layers[-3])
    assert (rows["usr/lib/f"].uid, rows["usr/lib/f"].gid) == (7, 50)  # through the link, not over it
    assert "lib/" not in rows
    assert "etc/f" in yard.rows(image.layers[-2])  # /etc is a directory of the base
    assert yard.rows(image.layers[-1])["home/app/"].uid == 7
    assert image.config["config"]["Labels"] == {"base": "1"}
    with pytest.raises(Invalid, match="no user 'nobody'"):
        await yard.build("FROM web:1\nCOPY --chown=nobody f /\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("COPY absent /x", "'absent' is not there in the build context"),
        ("COPY hidden/a /x", r"\.dockerignore leaves it out"),
        ("COPY ../../etc/passwd /x", "'../../etc/passwd' is not there"),
        ("COPY out /x", "'out' is not there"),
        ("COPY *.zip /x/", "nothing fits"),
        ("COPY a /d\nCOPY d /d", "is a file, and a directory is copied"),
        ("COPY d/ /a\nCOPY a /a/sub/", "a file replace the directory"),
        ("COPY [x /y", "not closed"),
        ("WORKDIR /w\nCOPY a /w/f\nWORKDIR /w/f", "it is a file in the image"),
        ("RUN fail", "returned a non-zero code: 3"),
        ("RUN killed", "killed by signal 9"),
        ('RUN ["/absent"]', "/absent cannot be run"),
    ],
)
async def test_a_step_that_fails_points_at_its_line(yard: Yard, text: str, words: str) -> None:
    yard.engine.fails = {"fail": 3, "killed": 137}
    yard.file("a")
    yard.file("d/sub/a/b")
    yard.file("hidden/a")
    yard.file(".dockerignore", "hidden\n")
    (yard.context / "out").symlink_to("/etc/passwd")
    with pytest.raises(Invalid, match=words) as refused:
        await yard.build(f"FROM scratch\n{text}\n")
    line = 1 + text.count("\n") + 1
    assert refused.value.message.startswith(f"Dockerfile:{line}: ")
    assert refused.value.causes[0].field == f"Dockerfile:{line}"
    assert not yard.engine.specs
    assert not list((yard.root / "builder/tmp").iterdir())


async def test_a_base_that_cannot_be_had_is_named_with_its_line(yard: Yard) -> None:
    with pytest.raises(
        NotFound, match=r"Dockerfile:2: the image docker.io/library/nope:latest cannot be had"
    ) as refused:
        await yard.build("FROM scratch AS a\nFROM nope\n")
    assert "   2 | FROM nope" in refused.value.message
    with pytest.raises(Invalid, match=r"no Dockerfile\.prod in the build context"):
        await yard.builder.build(yard.context, "Dockerfile.prod")
    with pytest.raises(Invalid, match="lower-case"):
        await yard.builder.build(yard.context, tags=["UPPER"])


async def test_ignored_files_are_not_copied_and_do_not_change_the_key(yard: Yard) -> None:
    yard.file(".dockerignore", "**/*.log\nDockerfile\n.dockerignore\n!keep.log\n")
    yard.file("a.log")
    yard.file("keep.log")
    yard.file("src/b.log")
    yard.file("src/c")
    image = await yard.build("FROM scratch\nCOPY . /\n")
    assert sorted(yard.rows(image.layers[0])) == ["keep.log", "src/", "src/c"]
    yard.file("a.log", "other")
    await yard.build("FROM scratch\nCOPY . /\n")
    assert yard.cached == ["COPY . /"]
    assert sorted(yard.rows((await yard.build("FROM scratch\nCOPY *.log s?c/* /x/\n")).layers[0])) == [
        "x/",
        "x/c",
        "x/keep.log",
    ]


async def test_a_context_comes_as_a_tar_and_cannot_lead_out(yard: Yard) -> None:
    async def stream(*rows: tuple[str, bytes, bytes | str]) -> AsyncIterator[bytes]:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, kind, data in rows:
                info = tarfile.TarInfo(name)
                info.type = kind
                if isinstance(data, str):
                    info.linkname = data
                    archive.addfile(info)
                else:
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        for start in range(0, len(out.getvalue()), 1000):
            yield out.getvalue()[start : start + 1000]

    dockerfile = ("Dockerfile", tarfile.REGTYPE, b"FROM scratch\nCOPY a .wh.b /d/\n")
    image = await yard.builder.build(
        stream(dockerfile, ("a", tarfile.REGTYPE, b"1"), (".wh.b", tarfile.REGTYPE, b"2")), tags=["t"]
    )
    assert sorted(yard.rows(image.layers[0])) == ["d/", "d/.wh.b", "d/a"]
    secret = yard.root / "secret"
    secret.write_text("FROM scratch\n")
    with pytest.raises(Invalid, match="outside the build context"):
        await yard.builder.build(stream(("Dockerfile", tarfile.SYMTYPE, str(secret))))
    with pytest.raises(Invalid, match=r"'\.\.' in its path"):
        await yard.builder.build(stream(dockerfile, ("../evil", tarfile.REGTYPE, b"")))
    with pytest.raises(Invalid, match="'a' is not there"):
        await yard.builder.build(stream(dockerfile, ("a", tarfile.SYMTYPE, str(secret))))
    assert not list((yard.root / "builder/tmp").iterdir())


async def test_the_cache_keeps_its_budget_and_what_is_held(yard: Yard) -> None:
    yard.builder = yard.open(budget_bytes=1500)
    for number in range(6):
        yard.file("a", str(number) * 100)
        await yard.build("FROM scratch\nCOPY a /\n")
        await yard.clock.advance(10)
    held = await yard.content.holders("cache/")
    sizes = [(await yard.content.stat(digest)).size_bytes for _, digest in held]  # type: ignore[union-attr]
    assert 0 < sum(sizes) <= 1500
    await yard.clock.advance(2 * 86400)
    await yard.content.collect()
    yard.file("a", "5" * 100)
    await yard.build("FROM scratch\nCOPY a /\n")
    assert yard.cached == ["COPY a /"]
    assert await yard.builder.prune() > 0
    assert await yard.content.holders("cache/") == []
    await yard.content.hold("cache/" + "0" * 64, held[-1][1])
    await yard.builder.start()
    assert await yard.content.holders("cache/") == []


async def test_a_given_time_makes_the_same_image_everywhere(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = Yard(tmp_path / "elsewhere")
    await other.clock.advance(12345)
    built: list[Image] = []
    for each in (yard, other):
        each.file("d/a")
        built.append(await each.build("FROM scratch\nCOPY d /d\nWORKDIR /w\n", args={"SOURCE_DATE_EPOCH": "1000"}))
    assert built[0].digest == built[1].digest
    assert built[0].config["created"].startswith("1970-01-01T00:16:40")
    await other.builder.close()
    await other.content.close()


async def test_what_a_killed_build_left_goes_at_the_next_start(yard: Yard) -> None:
    image = await yard.build("FROM scratch\nCOPY Dockerfile /\n")
    config = {**image.config, "config": {"Labels": {"wherry.build": "dead"}}}
    left = await yard.engine.commit_image(config, image.layers, [])
    spec = ContainerSpec(name="build-dead", id="c" * 64, image=left.id, labels={"wherry.build": "dead"})
    await yard.engine.create(spec)
    await yard.engine.create(ContainerSpec(name="mine", id="d" * 64, image=image.names[0]))
    yard.file("../builder/tmp/build-dead/file")
    await yard.builder.start()
    assert list(yard.engine.specs) == ["d" * 64]
    assert not yard.engine.unnamed
    assert list(yard.engine.named) == list(image.names)
    assert not (yard.root / "builder/tmp").exists()
