"""Caches in a registry, in an image, and by an image's history; and the keys of the newer inputs."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builder.yard import Yard

from wherry.builder import keys
from wherry.builder.exchange import INLINE, CachePlace, parse_place
from wherry.builder.operations import Copy, Run, RunMount
from wherry.builder.source import Line
from wherry.content.digests import digest_of
from wherry.content.protocol import Digest
from wherry.errors import Invalid
from wherry.wire.http import Request, Response
from wherry.wire.server import Server

TEXT = "FROM scratch AS tools\nRUN compile\nFROM scratch\nRUN one\nCOPY --from=tools / /t\nCOPY f /f\n"


class Shelf:
    """A registry of the smallest kind: what was put there."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.taken: list[str] = []

    async def handle(self, request: Request) -> Response:
        body, last = await request.body(limit=1 << 24), request.path.rpartition("/")[2]
        match request.method, request.path.split("/")[-2]:
            case "POST", "blobs":
                return Response(202, {"Location": f"{request.path}up"}, b"")
            case (("PUT" | "PATCH"), "uploads"):
                digest = request.first("digest") or digest_of(body)
                self.blobs[digest] = body
                return Response(201 if request.method == "PUT" else 202, {"Docker-Content-Digest": digest}, b"")
            case "PUT", "manifests":
                stored = (request.headers.get("content-type") or "", body)
                self.manifests[last] = self.manifests[digest_of(body)] = stored
                return Response(201, {"Docker-Content-Digest": digest_of(body)}, b"")
            case _, "manifests" if last in self.manifests:
                kind, data = self.manifests[last]
                return Response(200, {"Content-Type": kind}, data)
            case _, "blobs" if last in self.blobs:
                if request.method == "GET":
                    self.taken.append(last)
                return Response(200, {}, self.blobs[last])
            case _, "v2":
                return Response(200, {}, b"{}")
            case _:
                return Response(404, {"Content-Type": "application/json"}, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')


@pytest.fixture
async def shelf() -> AsyncIterator[tuple[Shelf, str]]:
    made = Shelf()

    async def handle(request: Request) -> Response:
        if request.method == "POST" and request.path.endswith("/uploads/"):
            return Response(202, {"Location": f"{request.path}one"}, b"")
        return await made.handle(request)

    async def fail(request: Request, error: Exception) -> Response:
        raise AssertionError(request.path) from error

    server = Server(handle, on_error=fail)  # type: ignore[arg-type]
    host, port = await server.start_tcp("127.0.0.1", 0)
    yield made, f"{host}:{port}"
    await server.close(1.0)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Yard]:
    """Another machine."""
    (tmp_path / "elsewhere").mkdir()
    made = Yard(tmp_path / "elsewhere")
    made.file("f", "f")
    yield made
    await made.builder.close()
    await made.content.close()


@pytest.mark.parametrize(("mode", "cached", "ran"), [("max", 4, 0), ("min", 3, 1)])
async def test_a_cache_in_a_registry(
    yard: Yard, other: Yard, shelf: tuple[Shelf, str], mode: str, cached: int, ran: int
) -> None:
    yard.engine.says_time = other.engine.says_time = False
    yard.file("f", "f")
    registry, host = shelf
    image = await yard.want(TEXT, cache_to=[parse_place(f"type=registry,ref={host}/c:1,mode={mode}", "cache-to")])
    place = parse_place(f"type=registry,ref={host}/c:1", "cache-from")
    again = await other.want(TEXT, cache_from=[parse_place(f"{host}/absent:9", "cache-from"), place])
    assert (len(other.cached), len(other.engine.ran)) == (cached, ran)
    assert again.layers == image.layers
    assert any("absent:9" in text for text in other.warnings)
    registry.taken.clear()
    await other.want("FROM scratch\nCOPY f /elsewhere\n", cache_from=[place])
    assert not [digest for digest in registry.taken if digest in image.layers]  # layers come when they are needed
    for digest in image.layers:
        registry.blobs[digest] = b"damaged"
    await other.builder.prune()
    for holder, _ in await other.content.holders("image/"):
        await other.content.release(holder)
    other.engine.named.clear()
    await other.clock.advance(10 * 86400)
    await other.content.collect()
    other.engine.ran.clear()
    await other.want(TEXT, cache_from=[place])
    assert len(other.engine.ran) == ran + 1  # what is not what its digest says is made anew


@pytest.mark.parametrize("by_argument", [True, False])
async def test_a_cache_in_the_image_itself(
    yard: Yard, other: Yard, shelf: tuple[Shelf, str], by_argument: bool
) -> None:
    yard.file("f", "f")
    registry, host = shelf
    text = "FROM scratch\nRUN one\nCOPY f /f\n"
    wanted = {"args": {"BUILDKIT_INLINE_CACHE": "1"}} if by_argument else {"cache_to": [CachePlace("inline")]}
    image = await yard.want(text, **wanted)
    assert [row["digest"] for row in image.config[INLINE]["rows"]] == list(image.layers)
    data = await yard.content.read(Digest(image.digest))
    registry.manifests["1"] = ("application/vnd.oci.image.manifest.v1+json", data)
    for digest in (image.id, *image.layers):
        registry.blobs[digest] = await yard.content.read(Digest(digest))
    again = await other.want(text, cache_from=[CachePlace("registry", f"{host}/web:1")])
    assert (other.cached, other.engine.ran) == (["RUN one", "COPY f /f"], [])
    assert again.layers == image.layers
    registry.blobs[image.id] = b"{}"
    with pytest.raises(Invalid, match="not what its digest says"):
        await other.want(text, cache_from=[CachePlace("registry", f"{host}/web:1")])


async def test_an_images_history_is_a_cache(yard: Yard) -> None:
    yard.file("d/a", "1")
    text = "FROM scratch\nENV A=1\nCOPY d /d\nRUN one\nWORKDIR /d\nRUN two\n"
    image = await yard.want(text, tags=["old:1"])
    await yard.builder.prune()
    (yard.context / "d/a").touch()  # a fresh clone has other times
    yard.engine.ran.clear()
    again = await yard.want(text, alike=["old:1"])
    assert yard.engine.ran == []
    assert again.layers == image.layers
    for changed in (text.replace("A=1", "A=2"), text.replace("RUN one", "RUN other")):
        await yard.builder.prune()
        yard.engine.ran.clear()
        await yard.want(changed, alike=["old:1"])
        assert len(yard.engine.ran) == 2
    await yard.builder.prune()
    yard.engine.ran.clear()
    yard.file("d/a", "2")
    await yard.want(text, alike=["old:1"])  # the same history, other bytes
    assert len(yard.engine.ran) == 2
    config = msgspec.json.decode(msgspec.json.encode(image.config))
    for entry in config["history"]:  # as docker's classic builder writes it
        said = entry["created_by"]
        entry["created_by"] = said.removeprefix("RUN ") if said.startswith("RUN") else f"/bin/sh -c #(nop) {said}"
        if said.startswith("COPY"):
            entry["created_by"] = "/bin/sh -c #(nop) COPY dir:0123 in /d "
    yard.file("d/a", "1")
    await yard.engine.commit_image(config, image.layers, ["docker.io/library/foreign:1"])
    await yard.builder.prune()
    yard.engine.ran.clear()
    await yard.want(text, alike=["foreign:1"])
    assert yard.engine.ran == []


@pytest.mark.parametrize(
    ("text", "option", "words"),
    [
        ("type=gha", "cache-to", "there are local, registry, inline"),
        ("type=inline", "cache-from", "there are local, registry"),
        ("type=registry", "cache-to", "needs ref="),
        ("type=local,src=/a", "cache-to", "needs dest="),
        ("type=registry,ref=a,mode=most", "cache-to", "mode is min or max"),
        ("type=registry,ref=a,mode=max", "cache-from", "has no mode="),
        ("type=registry,ref=UPPER", "cache-from", "lower-case"),
        ("type=inline,mode=max", "cache-to", "has no mode="),
        ("type=local,compression=zstd", "cache-to", "'compression=zstd' is none of"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(text: str, option: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        parse_place(text, option)


LINE = Line("", 1, 1)
COPY = Copy(LINE, "", ["https://a.example/b.git"], "/src", is_add=True)
RUN = Run(LINE, "", ["a"], [], "/", "", mounts=[RunMount("ssh", "/agent", id="default")])


@given(st.text("0123456789abcdef", min_size=40, max_size=40), st.text("0123456789abcdef", min_size=40, max_size=40))
@settings(max_examples=30)
def test_the_commit_is_in_the_keys_from_its_step_on(one: str, two: str) -> None:
    steps = [replace(RUN, argv=["first"]), COPY, RUN]
    first, second = (keys.keys("base", steps, lambda _, commit=commit: commit) for commit in (one, two))
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, one == two, one == two]


@given(st.sampled_from(["amd64", "arm64"]), st.sampled_from(["amd64", "arm64"]))
def test_the_platform_is_in_the_keys_of_commands_only(one: str, two: str) -> None:
    steps = [COPY, RUN, COPY]
    first, second = (keys.keys("base", steps, lambda _: "same", platform=each) for each in (one, two))
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, one == two, one == two]


@given(st.sampled_from(["id", "target", "required", "mode", "uid"]))
def test_how_an_agent_is_mounted_is_in_the_key(name: str) -> None:
    other = {"id": "other", "target": "/x", "required": True, "mode": 0o666, "uid": 7}[name]
    changed = replace(RUN, mounts=[replace(RUN.mounts[0], **{name: other})])
    assert keys.step_key("base", RUN) != keys.step_key("base", changed)
    assert keys.step_key("base", RUN) != keys.step_key("base", replace(RUN, insecure=True))
