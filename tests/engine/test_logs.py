"""Logs: the format, tails, following, rotation."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.boxes import Place, spec, text_of

from wherry.clock import machine
from wherry.engine import logs, rotation
from wherry.engine.local import LocalEngine
from wherry.engine.types import LogLine
from wherry.errors import Unsupported
from wherry.host.engine_calls import Inotify

STAMP = "2026-01-31T23:59:59.123456789+00:00"


async def collect(path: Path, *, tail: int | None = None, since: float = 0.0) -> list[LogLine]:
    """Read a log that does not grow."""
    inotify = Inotify()
    try:
        reading = logs.read(
            str(path),
            5,
            inotify,
            follow=False,
            tail=tail,
            since=since,
            has_ended=lambda: True,
            ending=lambda _: lambda: None,
        )
        return [line async for line in reading]
    finally:
        inotify.close()


def test_a_line_of_the_format() -> None:
    line = logs.parse(f"{STAMP} stdout F a b  c\n".encode())
    assert line is not None
    assert (line.stream, line.data, line.partial) == ("stdout", b"a b  c\n", False)
    assert line.time == pytest.approx(1769903999.123456789, abs=1e-6)
    piece = logs.parse(f"{STAMP} stderr P half\n".encode())
    assert piece is not None
    assert (piece.stream, piece.data, piece.partial) == ("stderr", b"half", True)
    odd = logs.parse(b"2026-01-31T23:59:59.1+02:00 stdout F \n")
    assert odd is not None
    assert odd.data == b"\n"
    assert odd.time == pytest.approx(1769903999.1 - 7200)
    for wrong in (b"", b"\n", b"x stdout F y\n", f"{STAMP} other F y\n".encode(), f"{STAMP} stdout F cut".encode()):
        assert logs.parse(wrong) is None


LINES = st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=25), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(pieces=LINES, tail=st.integers(0, 30))
def test_a_tail_is_the_end_of_everything(
    pieces: list[list[tuple[bool, int]]], tail: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever lies in which of the rotated files, and wherever a line is cut to pieces."""
    folder = tmp_path_factory.mktemp("tail")
    whole: list[bytes] = [b""]
    for number, file in enumerate(pieces):
        rank = len(pieces) - 1 - number
        data = b""
        for index, (is_partial, size) in enumerate(file):
            text = f"{number}.{index}." + "x" * size
            data += f"{STAMP} stdout {'P' if is_partial else 'F'} {text}\n".encode()
            whole[-1] += text.encode()
            if not is_partial:
                whole.append(b"")
        (folder / ("log" if rank == 0 else f"log.{rank}")).write_bytes(data)
    ends_open = whole[-1] != b""
    lines = whole if ends_open else whole[:-1]
    expected = b"".join(line for line in lines[len(lines) - min(tail, len(lines)) :])
    found = asyncio.run(collect(folder / "log", tail=tail))
    crosses = any(file and file[-1][0] for file in pieces[:-1])
    if not crosses:  # a line that is cut by a rotation counts in both files
        assert b"".join(line.data.rstrip(b"\n") for line in found) == expected
    everything = asyncio.run(collect(folder / "log"))
    assert b"".join(line.data.rstrip(b"\n") for line in everything) == b"".join(whole)


async def test_since(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"2026-01-01T00:00:0{second}.5+00:00 stdout F {second}\n" for second in range(9)))
    found = await collect(path, since=1767225600.0 + 6)
    assert [line.data for line in found] == [b"6\n", b"7\n", b"8\n"]


async def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert await collect(tmp_path / "none") == []


@pytest.mark.root
class TestReal:
    pytestmark = pytest.mark.asyncio(loop_scope="module")

    async def test_follow_ends_with_the_container(self, engine: LocalEngine) -> None:
        made = await engine.create(spec("/bin/sh", "-c", "for i in 1 2 3; do echo $i; usleep 20000; done; printf cut"))
        await engine.start(made.id)
        async with asyncio.timeout(20):
            text = await text_of(engine, made.id, follow=True)
        assert text == "1\n2\n3\ncut"
        assert await text_of(engine, made.id, tail=2) == "3\ncut"
        await engine.remove(made.id)

    async def test_rotation_while_following_loses_nothing(self, engine: LocalEngine) -> None:
        script = (
            "i=0; while test $i -lt 3000; do echo line $i; i=$((i+1)); test $((i % 300)) = 0 && usleep 9000; done; true"
        )
        made = await engine.create(spec("/bin/sh", "-c", script, log_max_bytes=20_000, log_max_files=20))
        path = Path(engine.log_path(made.id))
        record = engine._containers.lives.find(made.id).record  # pyright: ignore[reportPrivateUsage]
        bundle = engine._paths.bundle(made.id)  # pyright: ignore[reportPrivateUsage]
        rotated = 0

        async def rotate() -> None:
            nonlocal rotated
            while engine._containers.lives.find(made.id).may_write:  # pyright: ignore[reportPrivateUsage]
                rotated += await asyncio.to_thread(rotation.rotate, record, bundle)
                await machine.sleep(0.003)

        rotating = asyncio.create_task(rotate())
        await engine.start(made.id)
        async with asyncio.timeout(30):
            followed = await text_of(engine, made.id, follow=True)
        await rotating
        expected = "".join(f"line {number}\n" for number in range(3000))
        assert followed == expected
        assert await text_of(engine, made.id) == expected
        assert rotated >= 2
        assert os.path.exists(f"{path}.1")
        await engine.remove(made.id)
        await engine.settled()
        assert not path.parent.exists()

    async def test_old_files_go(self, place: Place, engine: LocalEngine) -> None:
        log = place.base / "pods" / "x" / "0.log"
        script = "for i in $(seq 400); do echo $i 012345678901234567890123456789; done; echo end; sleep 100"
        made = await engine.create(
            spec("/bin/sh", "-c", script, log_path=str(log), log_max_bytes=2000, log_max_files=2)
        )
        await engine.start(made.id)
        record = engine._containers.lives.find(made.id).record  # pyright: ignore[reportPrivateUsage]
        async for line in engine.logs(made.id, follow=True):
            if line.data == b"end\n":
                break
        for _ in range(3):
            assert rotation.rotate(record, engine._paths.bundle(made.id)) or log.exists()  # pyright: ignore[reportPrivateUsage]
        async with asyncio.timeout(5):
            while not log.exists():
                await machine.sleep(0.002)
        assert sorted(entry.name for entry in log.parent.iterdir()) == ["0.log", "0.log.1"]
        await engine.remove(made.id, force=True)
        await engine.settled()
        assert list(log.parent.iterdir()) == []

    async def test_no_log(self, engine: LocalEngine) -> None:
        made = await engine.create(spec("/bin/echo", "x", log_driver="none"))
        await engine.start(made.id)
        assert (await engine.wait(made.id)).code == 0
        with pytest.raises(Unsupported, match="none"):
            await text_of(engine, made.id)
        await engine.remove(made.id)
