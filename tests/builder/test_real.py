"""Builds on the real engine: real containers run the commands, and the image that comes out runs."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engine.boxes import BUSYBOX, Place, run

from wherry.builder.progress import BuildEvent
from wherry.builder.service import Builder, Wanted
from wherry.clock import RealClock
from wherry.content.unpack import Unpacked
from wherry.content.unpack_child import unpack
from wherry.engine.local import LocalEngine
from wherry.engine.types import ContainerSpec, SandboxSpec
from wherry.errors import Invalid

pytestmark = pytest.mark.root

DOCKERFILE = """
FROM scratch AS tools
COPY busybox /bin/
RUN ["/bin/busybox", "--install", "-s", "/bin"]

FROM tools AS build
ARG GREETING=hello
WORKDIR /src
COPY old ./old
RUN echo "$GREETING from $PWD" > greeting && rm old && mkdir d && ln greeting d/hard && chmod 4711 d/hard
USER 1000:1000
RUN id > /tmp/who || id -u > /src/none; id -u

FROM tools
COPY --from=build /src /app
COPY old /etc/old
RUN rm /etc/old && echo root:x:0:0::/:/bin/sh > /etc/passwd
ENV NAME=world
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat /app/greeting; echo $NAME; ls /app; ls /etc | grep -v host | grep -v resolv"]
"""


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[tuple[Builder, LocalEngine, Path]]:
    place = Place(tmp_path)
    content = place.content()
    context = tmp_path / "context"
    context.mkdir()
    (context / "busybox").write_bytes(Path(BUSYBOX).read_bytes())
    (context / "busybox").chmod(0o755)
    (context / "old").write_text("old")
    async with place.engine(content) as engine:
        builder = Builder(engine, content, tmp_path / "builder", clock=RealClock(), network="none")
        await builder.start()
        yield builder, engine, context
        await builder.close()
        await engine.settled()
        assert await engine.containers() == []
        assert [image for image in await engine.images() if not image.names] == []
    await content.close()
    left = place.leftovers()
    place.clear()
    assert left == []


async def test_an_image_is_built_and_runs(yard: tuple[Builder, LocalEngine, Path]) -> None:
    builder, engine, context = yard
    (context / "Dockerfile").write_text(DOCKERFILE)
    events: list[BuildEvent] = []
    image = await builder.build(context, tags=["web:1"], progress=events.append)
    made = ContainerSpec(name="web", image="web:1", sandbox_spec=SandboxSpec(id="", hostname="web", network="none"))
    code, text = await run(engine, made)
    assert code == 0
    assert text.splitlines() == ["hello from /src", "world", "d", "greeting", "passwd"]
    code, text = await run(engine, replace(made, command=["stat -c '%a %u' /app/d/hard"]))
    assert (code, text.split()) == (0, ["4711", "0"])
    said = "".join(event.text for event in events if event.kind == "output" and event.stream == "stdout")
    assert "1000" in said
    assert len(image.layers) == 5
    events.clear()
    again = await builder.build(context, tags=["web:2"], args={"GREETING": "hello"}, progress=events.append)
    assert again.id == image.id
    assert not [event for event in events if event.kind == "output"]
    changed = await builder.build(context, tags=["web:3"], args={"GREETING": "moin"}, progress=events.append)
    assert changed.id != image.id
    _, text = await run(engine, replace(made, image="web:3"))
    assert text.splitlines()[0] == "moin from /src"


async def test_what_a_step_wrote_is_stood_on_as_it_is(
    yard: tuple[Builder, LocalEngine, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No layer of a RUN is unpacked for the steps after it; one whose names a layer would read otherwise is."""
    builder, _, context = yard
    unpacked: list[str] = []

    async def counted(blob: Path, target: Path, **more: Any) -> Unpacked:
        done = await unpack(blob, target, **more)
        unpacked.append(done.diff_id)
        return done

    monkeypatch.setattr("wherry.engine.snapshots.unpack", counted)
    head = 'FROM scratch\nCOPY busybox /bin/\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
    (context / "Dockerfile").write_text(
        f"{head}RUN echo a > /a && mkdir /d && touch /d/x\nRUN rm -r /d /a && mkdir /d\nRUN ls /d > /l\n"
    )
    image = await builder.build(context, tags=["web:1"])
    diff_ids = image.config["rootfs"]["diff_ids"]
    assert unpacked == [diff_ids[0]]
    (context / "Dockerfile").write_text(f"{head}RUN touch /.wh.bin\nRUN true\n")
    with pytest.raises(Invalid, match="/bin/sh cannot be run"):  # as anybody finds it who pulls the image
        await builder.build(context)
    assert len(unpacked) == 2


async def test_a_command_that_fails_leaves_nothing(yard: tuple[Builder, LocalEngine, Path]) -> None:
    builder, _, context = yard
    (context / "Dockerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/\nRUN ["/bin/busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]\n'
    )
    events: list[BuildEvent] = []
    with pytest.raises(Invalid, match=r"Dockerfile:3: The command '.*' returned a non-zero code: 7"):
        await builder.build(context, progress=events.append)
    said = {(event.stream, event.text) for event in events if event.kind == "output"}
    assert said == {("stdout", "out\n"), ("stderr", "err\n")}
    (context / "Dockerfile").write_text("FROM scratch\nCOPY busybox /bin/\nRUN true\n")
    with pytest.raises(Invalid, match=r"Dockerfile:3: /bin/sh cannot be run"):
        await builder.build(context)


LATER = """
FROM scratch AS tools
COPY busybox /bin/
RUN ["/bin/busybox", "--install", "-s", "/bin"]

FROM tools AS left
RUN --mount=type=cache,target=/cache,id=c,sharing=locked echo left >> /cache/log

FROM tools AS right
RUN --mount=type=cache,target=/cache,id=c,sharing=locked echo right >> /cache/log

FROM tools
COPY --from=left /bin/sh /left/
COPY --from=right /bin/sh /right/
RUN --mount=type=cache,target=/cache,id=c sort /cache/log > /log
RUN --mount=target=/ctx,rw --mount=type=tmpfs,target=/tmp,size=1m <<EOF
set -e
cat /ctx/old > /copied
echo changed > /ctx/old
touch /tmp/x
if touch /ctx/new /busybox; then echo writable > /how; fi
EOF
RUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN,target=/elsewhere \\
    sh -c 'wc -c < /run/secrets/token > /size; echo ${#TOKEN} >> /size; stat -c %a /run/secrets/token >> /size'
RUN <<EOF
#!/bin/sh
echo "by $0" > /script
EOF
RUN --network=none ls /sys/class/net > /net
SHELL ["/bin/sh", "-e", "-c"]
RUN cat <<ONE > /one && cat <<TWO >> /one
1
ONE
2
TWO
CMD cat /log /copied /how /size /script /net /one; ls -d /cache /ctx /run/secrets 2>/dev/null | wc -l
"""
SECRET = b"pssst-0123456789-never-kept"


async def test_mounts_heredocs_and_secrets(yard: tuple[Builder, LocalEngine, Path], tmp_path: Path) -> None:
    builder, engine, context = yard
    (context / "Dockerfile").write_text(LATER)
    (context / "old").write_text("old\n")
    wanted = Wanted(tags=["web:1"], secrets={"token": SECRET})
    await builder.build(context, wanted=wanted)
    assert (context / "old").read_text() == "old\n"
    made = ContainerSpec(name="web", image="web:1", sandbox_spec=SandboxSpec(id="", hostname="web", network="none"))
    code, text = await run(engine, made)
    assert code == 0
    expected = ["left", "right", "old", "writable", "27", "27", "400", "by /dev/pipes/EOF", "lo", "1", "2", "0"]
    assert text.splitlines() == expected
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(kept) > 20
    assert [path for path in kept if SECRET in bytes_of(path)] == []
    again = await builder.build(context, wanted=wanted)
    assert list(again.names) == ["docker.io/library/web:1"]


def bytes_of(path: Path) -> bytes:
    """A file's bytes; a namespace's file has none."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_a_given_time_gives_the_same_digest_twice(yard: tuple[Builder, LocalEngine, Path]) -> None:
    builder, engine, context = yard
    (context / "Dockerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\nRUN echo a > /a && mkdir /d\n'
    )
    wanted = Wanted(tags=["web:1"], args={"SOURCE_DATE_EPOCH": "1700000000"}, no_cache=True)
    first = await builder.build(context, wanted=wanted)
    second = await builder.build(context, wanted=wanted)
    assert first.digest == second.digest
    made = ContainerSpec(name="web", image="web:1", sandbox_spec=SandboxSpec(id="", hostname="web", network="none"))
    _, text = await run(engine, replace(made, command=["/bin/stat", "-c", "%Y", "/a", "/d"]))
    assert text.split() == ["1700000000", "1700000000"]
