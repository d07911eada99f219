"""Blobs are verified before they are seen, and live exactly as long as somebody needs them."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from tests.content.images import FILE, sample, tar

from wherry.clock import VirtualClock, machine
from wherry.content.digests import digest_of
from wherry.content.local import LocalContent
from wherry.errors import Conflict, Damaged, Expired, Invalid, NotFound, TooLarge


async def test_bytes_come_back_by_their_digest(content: LocalContent) -> None:
    data = os.urandom(3_000_000)
    lease = await content.lease(seconds=60)
    writer = await content.ingest(lease=lease)
    for start in range(0, len(data), 70_000):
        await writer.write(data[start : start + 70_000])
    assert writer.offset == len(data)
    blob = await writer.commit(digest_of(data))
    assert blob.size_bytes == len(data)
    assert await content.stat(blob.digest) == blob
    assert await content.read(blob.digest) == data
    assert b"".join([part async for part in content.stream(blob.digest)]) == data
    assert b"".join([part async for part in content.stream(blob.digest, start=5, stop=9)]) == data[5:9]
    assert content.path(blob.digest).read_bytes() == data
    assert not list((content.root / "uploads").iterdir())
    with pytest.raises(TooLarge):
        await content.read(blob.digest, limit=100)


async def test_sha512_is_taken_too_and_an_empty_blob(content: LocalContent) -> None:
    blob = await content.put(b"x", digest=digest_of(b"x", "sha512"))
    assert blob.digest.startswith("sha512:")
    assert await content.read(blob.digest) == b"x"
    empty = await content.put(b"")
    assert [part async for part in content.stream(empty.digest)] == []


async def test_wrong_bytes_are_dropped(content: LocalContent) -> None:
    writer = await content.ingest(lease="")
    await writer.write(b"abc")
    with pytest.raises(Invalid, match="3 bytes have the digest"):
        await writer.commit(digest_of(b"abd"))
    assert await content.stat(digest_of(b"abc")) is None
    assert not list((content.root / "uploads").iterdir())
    with pytest.raises(NotFound):
        await content.resume(writer.id)


async def test_an_upload_goes_on_after_a_restart(content: LocalContent, tmp_path: Path, clock: VirtualClock) -> None:
    writer = await content.ingest(lease="")
    await writer.write(b"abc")
    with pytest.raises(Conflict, match="another request"):
        await content.resume(writer.id)
    await writer.close()
    again = await content.resume(writer.id)
    await again.write(b"def")
    await again.close()
    other = LocalContent.open(content.root, clock=clock)  # another process: it has no hash state of it
    last = await other.resume(writer.id)
    assert last.offset == 6
    await last.write(b"ghi")
    assert (await last.commit(digest_of(b"abcdefghi"))).size_bytes == 9
    assert await content.read(digest_of(b"abcdefghi")) == b"abcdefghi"
    await other.close()


async def test_a_damaged_blob_is_never_served_whole(content: LocalContent) -> None:
    data = os.urandom(1_500_000)
    blob = await content.put(data)
    assert content.verified(blob.digest)
    path = content.path(blob.digest)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not content.verified(blob.digest)
    with pytest.raises(Damaged, match="remove"):
        await content.read(blob.digest)
    got: list[bytes] = []

    async def take_all() -> None:
        async for part in content.stream(blob.digest):
            got.append(part)

    with pytest.raises(Damaged):
        await take_all()
    assert len(b"".join(got)) < len(data)
    assert (await content.put(data)).digest == blob.digest  # sent again, it is whole again
    assert await content.read(blob.digest) == data


async def test_what_is_held_stays_with_all_it_refers_to(content: LocalContent) -> None:
    image = await sample(content, tar([("a", FILE, b"1")]), tar([("b", FILE, b"2")]))
    loose = await content.put(b"nobody needs this")
    await content.hold("image/docker.io/library/web:1", image.digest)
    assert [blob.digest for blob in await content.collect(dry_run=True)] == [loose.digest]
    assert await content.stat(loose.digest) is not None
    assert [blob.digest for blob in await content.collect()] == [loose.digest]
    assert await content.holders("image/") == [("image/docker.io/library/web:1", image.digest)]
    assert await content.holders("repo/") == []
    await content.release("image/docker.io/library/web:1")
    gone = {blob.digest for blob in await content.collect()}
    assert gone == {image.digest, image.config, *image.layers}
    with pytest.raises(NotFound, match="repo/x"):
        await content.hold("repo/x", image.digest)


async def test_a_lease_keeps_until_its_time(content: LocalContent, clock: VirtualClock) -> None:
    lease = await content.lease(seconds=60)
    mine = await content.put(b"mine", lease=lease)
    old = await content.put(b"old")
    assert await content.cover(old.digest, lease) == old
    assert await content.cover(digest_of(b"absent"), lease) is None
    assert await content.collect() == []
    await clock.advance(61)
    with pytest.raises(Expired):
        await content.put(b"late", lease=lease)
    assert {blob.digest for blob in await content.collect()} == {mine.digest, old.digest}
    second = await content.lease(seconds=60)
    await content.put(b"x", lease=second)
    await content.end_lease(second)
    assert len(await content.collect()) == 1


async def test_references_are_known_again_after_a_lost_row(content: LocalContent, clock: VirtualClock) -> None:
    image = await sample(content, tar([("a", FILE, b"1")]))
    saved = {digest: content.path(digest).read_bytes() for digest in (image.digest, image.config, *image.layers)}
    await content.collect()
    for digest, data in saved.items():  # as after a power loss: the files are there, the rows are not
        content.path(digest).write_bytes(data)
    await content.hold("image/x", image.digest)
    assert await content.collect() == []


async def test_old_uploads_are_swept_but_not_those_in_use(content: LocalContent) -> None:
    left, used = await content.ingest(lease=""), await content.ingest(lease="")
    await left.close()
    for writer in (left, used):
        os.utime(writer.path, (0, machine.now() - 2 * 86400))
    await content.collect()
    assert [path.name for path in (content.root / "uploads").iterdir()] == [used.id]
    await used.abort()


_WRITER = """
import asyncio, sys
from pathlib import Path
from wherry.clock import RealClock
from wherry.content.local import LocalContent
from wherry.content.digests import digest_of

async def main(root, seed):
    content = LocalContent.open(Path(root), clock=RealClock())
    for turn in range(40):
        data = b"blob %d" % (turn % 5)
        lease = await content.lease(seconds=60)
        blob = await content.put(data, lease=lease)
        await content.hold(f"{seed}/{turn}", blob.digest)
        await content.end_lease(lease)
        assert await content.read(blob.digest) == data, "a held blob was collected"
        await content.release(f"{seed}/{turn}")
    await content.close()
asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_collector_and_writers_in_other_processes_never_lose_a_held_blob(tmp_path: Path) -> None:
    from wherry.clock import RealClock

    content = LocalContent.open(tmp_path / "shared", clock=RealClock())
    writers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _WRITER, str(content.root), str(seed))
        for seed in range(3)
    ]
    waiting = asyncio.gather(*(writer.wait() for writer in writers))
    async with machine.timeout(60):
        while not waiting.done():
            await content.collect()
            await machine.sleep(0.002)
    assert waiting.result() == [0, 0, 0]
    await content.collect()
    assert await content.holders("") == []
    assert await content.collect(dry_run=True) == []
    await content.close()


_AS_NOBODY = """
import asyncio, concurrent.futures.thread, os, sys
from pathlib import Path
from wherry.clock import RealClock
from wherry.content.digests import digest_of
from wherry.content.local import LocalContent

os.setgroups([]); os.setgid(65534); os.setuid(65534)  # after the imports: python itself may lie in root's home

async def main(root):
    content = LocalContent.open(Path(root), clock=RealClock())
    assert await content.read(digest_of(b"by root")) == b"by root"
    lease = await content.lease(seconds=60)
    blob = await content.put(b"by nobody", lease=lease)
    await content.put(b"by root", lease=lease)
    await content.hold("repo/x", blob.digest)
    await content.end_lease(lease)
    assert [blob.digest for blob in await content.collect()] == [digest_of(b"by root")]
    await content.close()
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.root
async def test_root_and_the_unprivileged_owner_share_one_store(tmp_path: Path) -> None:
    from tempfile import TemporaryDirectory

    from wherry.clock import RealClock

    with TemporaryDirectory(dir="/tmp", prefix="content-") as folder:
        os.chmod(folder, 0o755)
        root = Path(folder) / "store"
        root.mkdir()
        os.chown(root, 65534, 65534)
        content = LocalContent.open(root, clock=RealClock())
        await content.put(b"by root")
        await content.put(b"loose")
        assert await content.collect(dry_run=True) != []
        await content.hold("image/x", (await content.put(b"kept")).digest)
        await content.release("image/x")
        await content.hold("image/y", digest_of(b"loose"))
        await content.hold("image/y", digest_of(b"kept"))
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", _AS_NOBODY, str(root))
        async with machine.timeout(30):
            assert await process.wait() == 0
        assert await content.holders("repo/") == [("repo/x", digest_of(b"by nobody"))]
        await content.release("repo/x")
        assert [blob.digest for blob in await content.collect()] == [digest_of(b"by nobody")]
        await content.close()
