"""What a registry keeps its blobs in: the machine's store and a bucket, by one contract."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.registry.servers import Postgres, Seaweed

from wherry.clock import VirtualClock
from wherry.content.digests import digest_of
from wherry.content.local import LocalContent
from wherry.content.oci import OCI_MANIFEST
from wherry.content.protocol import Digest
from wherry.errors import Broken, Conflict, Damaged, Expired, Invalid, NotFound, TooLarge
from wherry.registry.bucket import Bucket, key_of
from wherry.registry.incoming import PART_BYTES
from wherry.registry.pile import Pile
from wherry.registry.postgres import PostgresRecords

DAY_S = 24 * 3600.0
LARGE = bytes(range(256)) * (2 * PART_BYTES // 256 + 3)


@pytest.fixture
async def bucket(
    postgres: Postgres, seaweed: Seaweed, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bucket]:
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    records = PostgresRecords(postgres.fresh())
    yield await Bucket.open(seaweed.fresh(), records, clock=clock)
    await records.close()


@pytest.fixture(params=["local", "bucket"])
def pile(request: pytest.FixtureRequest) -> Any:
    """Each of them, empty."""
    return request.getfixturevalue("content" if request.param == "local" else "bucket")


async def read(pile: Pile, digest: Digest, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([part async for part in pile.stream(digest, start=start, stop=stop)])


def keys(bucket: Bucket, prefix: str = "") -> list[str]:
    return sorted(each["path"] for page in bucket.store.list(prefix) for each in page)


@pytest.mark.parametrize("data", [b"", b"x", LARGE], ids=["empty", "small", "large"])
async def test_a_blob_goes_in_and_comes_out(pile: Pile, data: bytes) -> None:
    lease = await pile.lease(seconds=60)
    writer = await pile.ingest(lease=lease)
    for begin in range(0, len(data), 1_000_000):
        await writer.write(data[begin : begin + 1_000_000])
    digest = digest_of(data, "sha256")
    assert await pile.stat(digest) is None
    blob = await writer.commit(digest)
    assert (blob.digest, blob.size_bytes, await pile.stat(digest)) == (digest, len(data), blob)
    assert await read(pile, digest) == data
    assert await read(pile, digest, 1, 5) == data[1:5]
    assert await pile.inspect(digest) == (len(data), True)
    await pile.hold("repo/a", digest)
    await pile.end_lease(lease)
    assert await pile.collect() == []
    await pile.release("repo/a")
    assert await pile.collect(dry_run=True) == [blob]
    assert await pile.collect() == [blob]
    assert await pile.stat(digest) is None
    with pytest.raises(NotFound):
        await read(pile, digest)
    with pytest.raises(NotFound):
        await pile.hold("repo/a", digest)


async def test_bytes_that_are_not_what_was_promised_are_dropped(pile: Pile) -> None:
    wrong = digest_of(b"other", "sha256")
    for data in (b"x", LARGE):
        writer = await pile.ingest(lease="")
        await writer.write(data)
        with pytest.raises(Invalid, match="not sha256"):
            await writer.commit(wrong)
        with pytest.raises(NotFound):
            await pile.resume(writer.id)
    assert await pile.collect(dry_run=True) == []
    if isinstance(pile, Bucket):
        assert keys(pile) == []


async def test_an_upload_goes_on_where_it_was_left(pile: Pile) -> None:
    lease = await pile.lease(seconds=60)
    writer = await pile.ingest(lease="")
    await writer.close()
    for part in (b"abc", LARGE, b"def"):
        writer = await pile.resume(writer.id)
        await writer.write(part)
        await writer.close()
    writer = await pile.resume(writer.id)
    await writer.write(b"end")
    whole = b"abc" + LARGE + b"defend"
    assert writer.offset == len(whole)
    blob = await writer.commit(Digest("sha512:" + hashlib.sha512(whole).hexdigest()), lease=lease)
    assert await read(pile, blob.digest) == whole
    with pytest.raises(NotFound):
        await pile.resume(writer.id)
    if isinstance(pile, Bucket):
        assert keys(pile) == [key_of(blob.digest)]


async def test_an_abandoned_upload_leaves_nothing_after_its_time(pile: Pile, clock: VirtualClock) -> None:
    writer = await pile.ingest(lease="")
    await writer.write(b"abc")
    await writer.close()
    if isinstance(pile, Bucket):
        await clock.advance(DAY_S - 1)
        await pile.collect()
        assert len(keys(pile)) == 1
        await clock.advance(2)
        await pile.collect()
        assert keys(pile) == []
    again = await pile.ingest(lease="")
    await again.write(LARGE)
    await again.abort()
    with pytest.raises(NotFound):
        await pile.resume(again.id)


async def test_leases_and_references_keep_blobs(pile: Pile, clock: VirtualClock) -> None:
    lease = await pile.lease(seconds=60)
    layer = await pile.put(b"layer", lease=lease)
    config = {"mediaType": "text/plain", "size": 5, "digest": layer.digest}
    document = msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []})
    manifest = await pile.put(document, lease=lease)
    assert await pile.read(manifest.digest) == document
    with pytest.raises(TooLarge):
        await pile.read(manifest.digest, limit=3)
    await pile.hold("repo/a", manifest.digest)
    assert await pile.cover(layer.digest, lease) == layer
    assert await pile.cover(digest_of(b"none", "sha256"), lease) is None
    await clock.advance(61)
    with pytest.raises(Expired):
        await pile.cover(layer.digest, lease)
    assert await pile.collect() == []  # held by way of the manifest
    assert await pile.holders("repo/") == [("repo/a", manifest.digest)]
    await pile.release("repo/a", manifest.digest)
    assert {blob.digest for blob in await pile.collect()} == {layer.digest, manifest.digest}


async def test_damage_is_found_and_put_aside(pile: Pile, content: LocalContent) -> None:
    lease = await pile.lease(seconds=60)
    blob = await pile.put(b"right", lease=lease)
    if isinstance(pile, Bucket):
        pile.store.put(key_of(blob.digest), b"wrong")
    else:
        content.path(blob.digest).chmod(0o644)
        content.path(blob.digest).write_bytes(b"wrong")
    assert await pile.inspect(blob.digest) == (5, False)
    with pytest.raises(Damaged):
        await pile.read(blob.digest)
    assert "quarantine" in await pile.put_aside(blob.digest)
    assert await pile.stat(blob.digest) is None
    await pile.put(b"right", lease=lease)
    assert await pile.inspect(blob.digest) == (5, True)
    assert await pile.inspect(digest_of(b"none", "sha256")) == (-1, False)


async def test_two_registries_share_a_bucket(bucket: Bucket, clock: VirtualClock) -> None:
    other = Bucket(bucket.store, bucket.records, clock)
    writer = await bucket.ingest(lease="")
    await writer.write(LARGE)
    await writer.close()
    mine, theirs = await bucket.resume(writer.id), await other.resume(writer.id)
    assert mine.offset == theirs.offset == len(LARGE)
    await mine.write(b"mine")
    await theirs.write(b"theirs")
    await mine.close()
    with pytest.raises(Conflict, match="another request"):
        await theirs.close()
    lease = await other.lease(seconds=60)
    last = await other.resume(writer.id)
    blob = await last.commit(lease=lease)
    assert await read(bucket, blob.digest) == LARGE + b"mine"
    assert keys(bucket) == [key_of(blob.digest)]
    assert await bucket.collect() == []


async def test_one_killed_while_it_sent_leaves_nothing(bucket: Bucket, clock: VirtualClock) -> None:
    lease = await bucket.lease(seconds=60)
    digest = digest_of(b"never", "sha256")
    await bucket.announce(digest, 5, (), lease)  # killed before its object was whole ...
    bucket.store.put(key_of(digest), b"never")  # ... or just after
    bucket.store.put("uploads/deadbeef/0-x", b"half")  # and with an object that no record names
    assert await bucket.stat(digest) is None
    assert await bucket.collect() == []
    await clock.advance(61)
    assert [blob.digest for blob in await bucket.collect()] == [digest]
    assert keys(bucket, "blobs/") == []


@pytest.mark.parametrize(
    ("url", "error"), [("s3://", Invalid), ("gs://x", Invalid), ("s3://there-is-no-such-bucket/x", Broken)]
)
async def test_a_wrong_bucket_is_refused(
    url: str, error: type[Exception], tmp_path: Path, seaweed: Seaweed, bucket: Bucket, clock: VirtualClock
) -> None:
    with pytest.raises(error, match=r"bucket|write"):
        await Bucket.open(url, bucket.records, clock=clock)
