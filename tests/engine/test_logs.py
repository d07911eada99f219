"""Logs: the format, tails, following, rotation."""

import asyncio
import gzip
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.boxes import Place, put_image, spec, text_of

from wherry.clock import machine
from wherry.doors.docker.logs import log_pieces
from wherry.engine import logs, rotation, runs
from wherry.engine.local import LocalEngine
from wherry.engine.types import LogLine
from wherry.errors import Broken, Unsupported
from wherry.host.engine_calls import Inotify

STAMP = "2026-01-31T23:59:59.123456789+00:00"


async def collect(path: Path, *, tail: int | None = None, since: float = 0.0) -> list[LogLine]:
    """Read a log that does not grow."""
    inotify = Inotify()
    try:
        blocks = logs.read(
            str(path),
            5,
            inotify,
            follow=False,
            tail=tail,
            since=since,
            has_ended=lambda: True,
            ending=lambda _: lambda: None,
        )
        return [line async for line in logs.each(blocks)]
    finally:
        inotify.close()


async def test_a_long_log_is_read_by_the_block_and_not_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tens of megabytes must not keep others waiting: lines are read and taken apart in a thread, many at once."""
    path = tmp_path / "log"
    path.write_text("".join(f"{STAMP} stdout F line {number}\n" for number in range(20000)))
    threads: set[int] = set()
    parse = logs.parse
    monkeypatch.setattr(logs, "parse", lambda line: threads.add(threading.get_ident()) or parse(line))
    inotify = Inotify()
    try:
        blocks = [
            block
            async for block in logs.read(
                str(path), 5, inotify, follow=False, tail=None, since=0.0, has_ended=lambda: True,
                ending=lambda _: lambda: None,
            )
        ]  # fmt: skip
    finally:
        inotify.close()
    assert [line.data for block in blocks for line in block] == [b"line %d\n" % number for number in range(20000)]
    assert len(blocks) <= path.stat().st_size // logs.READ_BYTES + 1
    assert threading.get_ident() not in threads

    async def given() -> AsyncIterator[Sequence[LogLine]]:
        for block in blocks:
            yield block

    pieces = [piece async for piece in log_pieces(given(), tty=True, stdout=True, stderr=True, timestamps=False)]
    assert len(pieces) == len(blocks)
    assert b"".join(pieces) == b"".join(line.data for block in blocks for line in block)


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


async def test_stamps_are_kept_to_the_nanosecond(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(f"{STAMP} stdout F a\n{STAMP.replace('789+', '790+')} stdout F b\n")
    assert [line.stamp for line in await collect(path)] == [
        "2026-01-31T23:59:59.123456789Z", "2026-01-31T23:59:59.123456790Z",
    ]  # fmt: skip


async def test_compressed_files_are_read_like_the_others(tmp_path: Path) -> None:
    def lines(first: int) -> bytes:
        return "".join(f"2026-01-01T00:00:{n:02}.5+00:00 stdout F {n}\n" for n in range(first, first + 5)).encode()

    path = tmp_path / "log"
    path.write_bytes(lines(15))
    (tmp_path / "log.1").write_bytes(lines(10))
    (tmp_path / "log.2.gz").write_bytes(gzip.compress(lines(5)))
    (tmp_path / "log.3.gz").write_bytes(gzip.compress(lines(0)))
    assert [int(line.data) for line in await collect(path)] == list(range(20))
    assert [int(line.data) for line in await collect(path, tail=13)] == list(range(7, 20))
    assert [int(line.data) for line in await collect(path, since=1767225600.0 + 8)] == list(range(8, 20))


async def test_a_file_compressed_while_it_is_read(tmp_path: Path) -> None:
    """A slow reader goes on with the right file, though the one it reads has another inode by now."""
    path = tmp_path / "log"
    path.write_text("2026-01-01T00:00:00.5+00:00 stdout F 0\n")
    ended = False
    inotify = Inotify()
    blocks = logs.read(
        str(path), 5, inotify, follow=True, tail=None, since=0.0, has_ended=lambda: ended, ending=lambda _: lambda: None
    )
    reading = logs.each(blocks)
    try:
        assert (await anext(reading)).data == b"0\n"
        old = path.read_bytes()
        (tmp_path / "log.3.gz").write_bytes(gzip.compress(old))
        path.unlink()
        for number in (2, 1):
            (tmp_path / f"log.{number}").write_text(f"2026-01-01T00:00:0{9 - number}.5+00:00 stdout F {9 - number}\n")
        path.write_text("2026-01-01T00:00:09.5+00:00 stdout F 9\n")
        ended = True
        async with asyncio.timeout(20):
            assert [line.data async for line in reading] == [b"7\n", b"8\n", b"9\n"]
    finally:
        inotify.close()


async def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert await collect(tmp_path / "none") == []


def journal_fields(message: bytes) -> dict[bytes, bytes]:
    """Read one entry of the journal's native protocol: NAME=value, or NAME, a length and the value."""
    fields: dict[bytes, bytes] = {}
    while message:
        line, _, rest = message.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        fields[name], message = value.rstrip(b"\n"), rest
    return fields


@pytest.fixture
def journal() -> Iterator[socket.socket]:
    """The place of systemd's journal; the machine's own, if there is one, is put back."""
    place = Path(runs.JOURNAL)
    made = [each for each in (place.parent, place.parent.parent) if not each.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    kept = place.with_name(f"socket.kept-{os.getpid()}")
    with suppress(FileNotFoundError):
        place.rename(kept)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        listener.bind(str(place))
        listener.settimeout(20)
        yield listener
    finally:
        listener.close()
        place.unlink()
        with suppress(FileNotFoundError):
            kept.rename(place)
        for each in made:
            each.rmdir()


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

    async def test_old_files_go(self, place: Place, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
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
        bundle = engine._paths.bundle(made.id)  # pyright: ignore[reportPrivateUsage]
        assert rotation.rotate(record, bundle)
        async with asyncio.timeout(5):
            while not log.exists():
                assert not rotation.rotate(record, bundle), "conmon is told once"
                await machine.sleep(0.002)
        monkeypatch.setattr(rotation, "FINISH_S", 0.0)
        log.rename(f"{log}.1")  # as far as an engine came that was killed there
        looking = rotation.Rotation(lambda: (), 1.0)
        async with asyncio.timeout(5):
            while not log.exists():
                looking.look([(record, bundle)])
                await machine.sleep(0.002)
        assert sorted(entry.name for entry in log.parent.iterdir()) == ["0.log", "0.log.1"]
        await engine.remove(made.id, force=True)
        await engine.settled()
        assert list(log.parent.iterdir()) == []

    async def test_a_process_that_never_stops_writing(self, place: Place) -> None:
        """100 MB as fast as it can: the files stay bounded, and the newest lines are there."""
        content = place.content()
        other = Place(place.base / "runaway")
        async with other.engine(content, rotate_every_s=0.2) as engine:
            await put_image(content, engine, place.base / "source")
            script = "yes 0123456789012345678901234567890123456789 | head -c 100000000; echo; echo the end"
            made = await engine.create(
                spec("/bin/sh", "-c", script, log_max_bytes=1_000_000, log_max_files=3, log_compress=True)
            )
            path = Path(engine.log_path(made.id))
            most = 0
            await engine.start(made.id)
            while engine._containers.lives.find(made.id).may_write:  # pyright: ignore[reportPrivateUsage]
                most = max(most, engine.log_size(made.id))
                await machine.sleep(0.01)
            assert (await text_of(engine, made.id, tail=1)) == "the end\n"
            assert most < 300_000_000, "conmon's own bound, twice"
            assert len(list(path.parent.iterdir())) <= 4
            await engine.remove(made.id)
            await engine.settled()
            assert not path.parent.exists()
        await content.close()

    async def test_rotated_files_are_compressed(self, engine: LocalEngine) -> None:
        made = await engine.create(
            spec("/bin/sh", "-c", "i=0; while true; do echo line $i; i=$((i+1)); usleep 200; done", log_max_bytes=5000,
                 log_max_files=4, log_compress=True)
        )  # fmt: skip
        path = Path(engine.log_path(made.id))
        record = engine._containers.lives.find(made.id).record  # pyright: ignore[reportPrivateUsage]
        looking = rotation.Rotation(lambda: (), 1.0)
        await engine.start(made.id)
        async with asyncio.timeout(30):
            while not Path(f"{path}.3.gz").exists():
                await asyncio.to_thread(looking.look, [(record, engine._paths.bundle(made.id))])  # pyright: ignore[reportPrivateUsage]
                await machine.sleep(0.005)
        assert gzip.decompress(Path(f"{path}.3.gz").read_bytes()).count(b"stdout F line ") > 50
        await engine.kill(made.id)
        await engine.wait(made.id)
        numbers = [int(line.split()[1]) for line in (await text_of(engine, made.id)).splitlines()]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        await engine.remove(made.id)
        await engine.settled()
        assert not path.parent.exists()

    async def test_the_journal(self, engine: LocalEngine, journal: socket.socket) -> None:
        made = await engine.create(
            spec("/bin/sh", "-c", "echo told; echo wrong >&2", name="teller", log_journal=True,
                 log_options={"tag": "{{.Name}}/{{.ImageName}}"})
        )  # fmt: skip
        await engine.start(made.id)
        assert (await engine.wait(made.id)).code == 0
        seen: dict[bytes, bytes] = {}
        for _ in range(2):
            message = await asyncio.to_thread(journal.recv, 65536)
            fields = journal_fields(message)
            seen[fields[b"MESSAGE"]] = fields[b"PRIORITY"]
            assert fields[b"CONTAINER_ID_FULL"].decode() == made.id
            assert fields[b"CONTAINER_NAME"] == b"teller"
            assert fields[b"CONTAINER_TAG"] == b"teller/box:1"
        assert seen == {b"told": b"6", b"wrong": b"3"}
        assert sorted((await text_of(engine, made.id)).splitlines()) == ["told", "wrong"], "and here, too"
        await engine.remove(made.id)

    async def test_no_journal(self, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(runs, "JOURNAL", str(tmp_path / "none"))
        with pytest.raises(Broken, match="failed to initialize logging driver: journald is not enabled on this host"):
            await engine.create(spec("/bin/true", log_journal=True))

    async def test_no_log(self, engine: LocalEngine) -> None:
        made = await engine.create(spec("/bin/echo", "x", log_driver="none"))
        await engine.start(made.id)
        assert (await engine.wait(made.id)).code == 0
        with pytest.raises(Unsupported, match="none"):
            await text_of(engine, made.id)
        await engine.remove(made.id)
