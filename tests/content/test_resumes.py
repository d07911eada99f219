"""Pulls that are cut, killed, shared and cancelled; tokens that end; pushes that go on where they stopped."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.content.images import FILE, Sample, sample, tar
from tests.content.test_transfer import Odd, address, image, odd

from wherry.clock import VirtualClock, machine
from wherry.content.arrivals import Arrivals
from wherry.content.credentials import Credentials
from wherry.content.local import LocalContent
from wherry.content.protocol import Digest
from wherry.content.push import push
from wherry.content.remote import Remote
from wherry.content.steps import Progress, Step
from wherry.content.transfer import pull
from wherry.errors import Damaged, Unauthorized, Unavailable
from wherry.wire.http import Request, Response

__all__ = ["address", "image", "odd"]


async def take(content: LocalContent, address: str, **more: object) -> int:
    """Pull `web:1`, and hold it; return the bytes that moved."""
    lease = await content.lease(seconds=600)
    async with Remote(address) as remote:
        pulled = await pull(content, remote, "web", "1", lease=lease, **more)  # type: ignore[arg-type]
    await content.hold("image/web:1", pulled.root)
    await content.end_lease(lease)
    return pulled.bytes_moved


def uploads(content: LocalContent) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (content.root / "uploads").iterdir()}


async def until(holds: Callable[[], object]) -> None:
    """Wait for a state that nothing tells of."""
    async with machine.timeout(20):
        while not holds():
            await machine.sleep(0.005)


class Slow:
    """Sends the beginning of the large layer, then nothing until it is told."""

    def __init__(self, odd: Odd, image: Sample) -> None:
        self.odd, self.image = odd, image
        self.go, self.sent = asyncio.Event(), asyncio.Event()
        self.count = 1_200_000

    def __call__(self, request: Request, response: Response) -> Response:
        start = int((request.headers.get("range") or "bytes=0-")[6:-1])
        if not request.path.endswith(self.image.layers[0]) or start >= self.count:
            return response
        path = self.odd.content.path(self.image.layers[0])

        async def parts() -> AsyncIterator[bytes]:
            yield path.read_bytes()[: self.count]
            self.sent.set()
            await self.go.wait()
            yield path.read_bytes()[self.count :]

        return Response.stream(parts(), {"Content-Length": str(path.stat().st_size)})


async def test_a_new_process_goes_on_with_what_is_there(
    odd: Odd, address: str, image: Sample, content: LocalContent, clock: VirtualClock
) -> None:
    odd.twist = slow = Slow(odd, image)
    pulling = asyncio.create_task(take(content, address))
    await slow.sent.wait()
    name = f"fetch{image.layers[0].replace(':', '')}"
    await until(lambda: uploads(content).get(name))
    pulling.cancel()
    await asyncio.wait((pulling,))
    assert await content.stat(image.layers[0]) is None
    assert uploads(content)[name] == slow.count
    await content.close()
    again = LocalContent.open(content.root, clock=clock)
    odd.ranges.clear()
    moved = await take(again, address)
    assert f"bytes={slow.count}-" in odd.ranges
    assert moved < image_bytes(odd, image) - slow.count + 10_000
    assert await again.read(image.layers[0]) == await odd.content.read(image.layers[0])
    assert uploads(again) == {}
    await again.close()


def image_bytes(odd: Odd, image: Sample) -> int:
    return sum(odd.content.path(digest).stat().st_size for digest in (image.digest, image.config, *image.layers))


async def test_what_a_dead_process_garbled_is_had_anew(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    """As a power loss leaves it: the right length, and zeros."""
    (content.root / "uploads" / f"fetch{image.layers[0].replace(':', '')}").write_bytes(bytes(1_000_000))
    (content.root / "uploads" / f"fetch{image.layers[1].replace(':', '')}").write_bytes(bytes(9_000_000))
    await take(content, address)
    for layer in image.layers:
        assert await content.read(layer) == await odd.content.read(layer)
    assert uploads(content) == {}


async def test_pulls_of_one_image_share_the_work_and_all_see_it(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    odd.twist = slow = Slow(odd, image)
    arrivals: Arrivals[Step] = Arrivals()
    heard: list[list[Step]] = [[], [], []]
    pulls = [asyncio.create_task(take(content, address, arrivals=arrivals, progress=each.append)) for each in heard]
    await slow.sent.wait()
    await until(lambda: all(any(step.action == "download" for step in each) for each in heard))
    slow.go.set()
    moved = await asyncio.gather(*pulls)
    assert sum(count > 1_000_000 for count in moved) == 1
    assert Counter(odd.seen)["GET blobs"] == 3
    for each in heard:
        actions = [step.action for step in each if step.digest == image.layers[0]]
        assert actions[0] == "queued"
        assert actions[-1] == "done"
        assert "exists" not in actions


async def test_when_one_of_two_pulls_goes_the_other_goes_on(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    odd.twist = slow = Slow(odd, image)
    arrivals: Arrivals[Step] = Arrivals()
    first = asyncio.create_task(take(content, address, arrivals=arrivals))
    await slow.sent.wait()
    heard: list[Step] = []
    second = asyncio.create_task(take(content, address, arrivals=arrivals, progress=heard.append))
    await until(lambda: any(step.action == "download" for step in heard))
    first.cancel()
    await asyncio.wait((first,))
    assert await second < image_bytes(odd, image) - 500_000
    assert await content.read(image.layers[0]) == await odd.content.read(image.layers[0])


async def test_prune_takes_what_pulls_have_left(odd: Odd, address: str, image: Sample, content: LocalContent) -> None:
    odd.twist = slow = Slow(odd, image)
    pulling = asyncio.create_task(take(content, address))
    await slow.sent.wait()
    await until(lambda: uploads(content))
    await content.collect(fetched=True)
    assert f"fetch{image.layers[0].replace(':', '')}" in uploads(content)  # somebody writes it
    pulling.cancel()
    await asyncio.wait((pulling,))
    kept = await content.ingest(lease="")
    await kept.write(b"a push between two requests")
    await kept.close()
    await content.collect(fetched=True)
    assert list(uploads(content)) == [kept.id]


async def test_a_token_that_ends_in_the_middle_is_asked_for_again(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    given: list[str] = []

    def twist(request: Request, response: Response) -> Response:
        if request.path.endswith("/token"):
            given.append(f"t{len(given)}")
            return Response.json({"token": given[-1]})
        good = given and request.headers.get("authorization") == f"Bearer {given[-1]}"
        if good and "/blobs/" in request.path and len(given) == 1:
            good = False
        return response if good else Response(401, {"WWW-Authenticate": f'Bearer realm="{address}/auth/token"'})

    odd.twist = twist
    lease = await content.lease(seconds=600)
    async with Remote(address, credentials=Credentials("me", "secret")) as remote:
        await pull(content, remote, "web", "1", lease=lease)
    assert 2 <= len(given) <= 3  # not one for each layer
    odd.twist = lambda request, response: Response(401, {"WWW-Authenticate": 'Basic realm="x"'})
    async with Remote(address, credentials=Credentials("me", "wrong")) as remote:
        with pytest.raises(Unauthorized, match="credentials were refused") as refused:
            await pull(content, remote, "web", "2", lease=lease)
    assert "wrong" not in str(refused.value)


async def test_a_length_that_lies_is_found_before_the_bytes(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    def twist(request: Request, response: Response) -> Response:
        if request.path.endswith(image.layers[1]):
            return Response(200, {}, bytes(100_000))
        return response

    odd.twist = twist
    with pytest.raises(Damaged, match="more bytes"):
        await take(content, address)
    assert await content.stat(image.layers[1]) is None


async def test_a_push_goes_on_where_the_registry_says(odd: Odd, address: str, content: LocalContent) -> None:
    made = await sample(content, tar([("a", FILE, os.urandom(4_000_000))]))
    odd.cut_after = 2_000_000
    async with Remote(address) as remote:
        sent = await push(content, remote, "web", "new", made.digest)
    assert odd.seen["POST uploads"] == 2  # the layer, and the configuration
    assert max(odd.starts) >= 2_000_000
    assert sent < 7_000_000
    assert await odd.content.read(made.layers[0]) == await content.read(made.layers[0])


async def test_a_push_takes_blobs_from_a_sister_repository(odd: Odd, address: str, content: LocalContent) -> None:
    made = await sample(content, tar([("a", FILE, os.urandom(2_000_000))]))
    asked: list[tuple[str | None, str | None]] = []

    def twist(request: Request, response: Response) -> Response:
        if request.method == "POST":
            asked.append((request.first("mount"), request.first("from")))
            return Response(201) if request.first("from") == "second" else response
        return response

    odd.twist = twist
    steps: list[Step] = []

    def sisters(digest: Digest) -> Collection[str]:
        return ["web", "first", "second", "third"] if digest == made.layers[0] else []

    async with Remote(address) as remote:
        sent = await push(content, remote, "web", "new", made.digest, mount_from=sisters, progress=steps.append)
    assert sent < 10_000
    assert (made.layers[0], "first") in asked
    assert [(step.action, step.source) for step in steps if step.digest == made.layers[0]][-1] == ("mounted", "second")
    assert not [name for _, name in asked if name == "web"]


class Hands:
    """An unpacker that only listens; its layers are `refused` where that says so."""

    def __init__(self) -> None:
        self.grown: list[tuple[int, bool]] = []
        self.done: list[str] = []
        self.dropped = 0

    def keeping(self, diff_ids: Collection[str]) -> "nullcontext[None]":
        del diff_ids
        return nullcontext()

    def has(self, diff_id: str) -> bool:
        return diff_id in self.done

    async def begin(self, file: Path, blob: Digest, diff_id: str, what: str) -> "Hand | None":
        assert file.stat().st_size > 0
        return Hand(self, diff_id)

    async def ensure(self, layers: Collection[tuple[Digest, str]], what: str, progress: Progress | None = None) -> None:
        del what, progress
        self.done += [diff_id for _, diff_id in layers if diff_id not in self.done]


class Hand:
    def __init__(self, hands: Hands, diff_id: str) -> None:
        self.hands, self.diff_id = hands, diff_id

    def grown(self, size_bytes: int, *, whole: bool = False) -> None:
        self.hands.grown.append((size_bytes, whole))

    async def finish(self) -> None:
        self.hands.done.append(self.diff_id)

    async def drop(self) -> None:
        self.hands.dropped += 1


async def test_unpacking_begins_before_the_last_byte(odd: Odd, address: str, content: LocalContent) -> None:
    image = await sample(odd.content, tar([("a", FILE, os.urandom(6_000_000))]), tar([("b", FILE, b"2")]))
    odd.tags["1"] = (image.digest, "application/vnd.oci.image.manifest.v1+json")
    hands = Hands()
    steps: list[Step] = []
    await take(content, address, unpacker=hands, progress=steps.append)
    assert sorted(hands.done) == sorted(image.layers)
    sizes = [size for size, _ in hands.grown]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert [whole for _, whole in hands.grown].count(True) == 1
    actions = [step.action for step in steps if step.digest == image.layers[0] and step.action != "download"]
    assert actions == ["queued", "verify", "done", "extract", "unpacked"]


async def test_a_layer_that_comes_wrong_is_dropped_with_what_was_unpacked(
    odd: Odd, address: str, content: LocalContent
) -> None:
    image = await sample(odd.content, tar([("a", FILE, os.urandom(4_000_000))]))
    odd.tags["1"] = (image.digest, "application/vnd.oci.image.manifest.v1+json")

    def twist(request: Request, response: Response) -> Response:
        if request.path.endswith(image.layers[0]):
            return Response(200, {}, odd.content.path(image.layers[0]).read_bytes()[:-1] + b"!")
        return response

    odd.twist = twist
    hands = Hands()
    with pytest.raises(Damaged, match="other bytes"):
        await take(content, address, unpacker=hands)
    assert (hands.done, hands.dropped) == ([], 1)
    assert uploads(content) == {}


async def test_a_registry_that_never_sends_all_is_given_up(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    def twist(request: Request, response: Response) -> Response:
        return Response(503) if request.path.endswith(image.layers[0]) else response

    odd.twist = twist
    with pytest.raises(Unavailable, match="503"):
        await take(content, address)
