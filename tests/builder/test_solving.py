"""Stages beside each other, one maker of a step, caches that are carried, mounts, secrets, and what comes out."""

import asyncio
import io
import tarfile
from pathlib import Path

import pytest
from tests.builder.yard import Yard

from wherry.builder.exchange import CachePlace
from wherry.builder.service import Wanted
from wherry.builder.squeezing import Compression, parse_compression
from wherry.content.inflate import compression_of
from wherry.content.protocol import Digest
from wherry.errors import Invalid

SECRET = b"pssst-0123456789-never-kept"


async def test_independent_stages_run_together(yard: Yard) -> None:
    yard.engine.gate = asyncio.Barrier(2)  # neither RUN ends before both have begun
    image = await yard.build(
        "FROM scratch AS a\nRUN one\nFROM scratch AS b\nRUN two\nFROM scratch\nCOPY --from=a / /a\nCOPY --from=b / /b\n"
    )
    assert len(image.layers) == 2
    assert {event.stage for event in yard.events if event.kind == "output"} == {"a", "b"}


async def test_steps_on_the_same_layers_do_not_take_each_others_image_away(yard: Yard) -> None:
    stages = "".join(f"FROM base AS s{number}\nRUN {number}\n" for number in range(6))
    copies = "".join(f"COPY --from=s{number} / /{number}\n" for number in range(6))
    await yard.build(f"FROM scratch AS base\nRUN base\n{stages}FROM scratch\n{copies}")
    assert len({spec.image for spec in yard.engine.ran}) == 7
    assert not yard.engine.unnamed


async def test_of_two_builds_of_one_step_one_makes_it(yard: Yard) -> None:
    yard.file("Dockerfile", "FROM scratch\nRUN slow\nRUN slower\n")
    first, second = await asyncio.gather(
        yard.builder.build(yard.context, tags=["a:1"]), yard.builder.build(yard.context, tags=["b:1"])
    )
    assert first.layers == second.layers
    assert len(yard.engine.ran) == 2


async def test_a_stage_that_fails_ends_the_others(yard: Yard) -> None:
    yard.engine.fails = {"bad": 1}
    with pytest.raises(Invalid, match=r"Dockerfile:2: The command .* returned a non-zero code: 1"):
        await yard.build("FROM scratch AS a\nRUN bad\nFROM scratch AS b\nRUN good\nFROM a\nCOPY --from=b / /\n")
    assert not yard.engine.specs
    assert not yard.engine.unnamed


async def test_only_the_named_stages_are_made_anew(yard: Yard) -> None:
    text = "FROM scratch AS a\nRUN one\nFROM scratch AS b\nRUN two\nFROM a\nCOPY --from=b / /b\n"
    await yard.build(text)
    await yard.want(text, fresh_stages=["B"])
    assert yard.cached == ["RUN one"]


async def test_a_cache_is_carried_to_another_machine(yard: Yard, tmp_path: Path) -> None:
    text = "FROM scratch\nRUN one\nCOPY Dockerfile /\nWORKDIR /\n"
    image = await yard.want(text, cache_to=[CachePlace("local", str(tmp_path / "cache"))])
    (tmp_path / "elsewhere").mkdir()
    other = Yard(tmp_path / "elsewhere")
    carried = CachePlace("local", str(tmp_path / "cache"))
    again = await other.want(text, cache_from=[CachePlace("local", str(tmp_path / "absent")), carried])
    assert other.cached == ["RUN one", "COPY Dockerfile /", "WORKDIR /"]
    assert again.id == image.id
    assert not other.engine.ran
    await other.builder.prune()
    for blob in (tmp_path / "cache/blobs/sha256").iterdir():
        blob.write_bytes(b"damaged")
    await yard.clock.advance(1)
    other.engine.named.clear()
    for holder, _ in await other.content.holders("image/"):
        await other.content.release(holder)
    await other.clock.advance(10 * 86400)
    await other.content.collect()
    await other.want(text, cache_from=[carried])
    assert len(other.engine.ran) == 1  # what does not match its digest is made anew
    (tmp_path / "cache/cache.json").write_text("{}")
    with pytest.raises(Invalid, match=r"cache-from .*cache\.json cannot be read"):
        await other.want(text, cache_from=[carried])
    await other.builder.close()
    await other.content.close()


async def test_a_run_sees_its_mounts(yard: Yard) -> None:
    yard.file("src/a", "from the context")
    yard.file("src/ignored")
    yard.file(".dockerignore", "src/ignored\n")
    text = (
        "FROM scratch AS tools\nCOPY src/a /bin/tool\nFROM scratch\n"
        "RUN --mount=target=/ctx,source=src --mount=from=tools,source=bin/tool,target=/t --mount=type=cache,target=/c"
        " --mount=type=tmpfs,target=/tmp,size=1m --mount=type=secret,id=none all\n"
    )
    await yard.build(text)
    assert yard.engine.saw[-1] == {"/c": b"", "/ctx": b"a", "/t": b"from the context"}
    kinds = {mount.target: (mount.kind, mount.read_only) for mount in yard.engine.ran[-1].mounts}
    assert kinds == {"/c": ("bind", False), "/ctx": ("bind", True), "/t": ("bind", True), "/tmp": ("tmpfs", False)}
    await yard.build(text)
    assert len(yard.cached) == 2
    yard.file("src/ignored", "other")
    await yard.build(text)
    assert len(yard.cached) == 2
    yard.file("src/a", "another")
    await yard.build(text)
    assert yard.cached == []
    await yard.build("FROM scratch\nRUN --network=none a\n")
    assert yard.engine.ran[-1].sandbox_spec.network == "none"  # type: ignore[union-attr]


async def test_a_heredoc_script_is_a_file_of_its_own(yard: Yard) -> None:
    await yard.build("FROM scratch\nRUN <<EOF\n#!/bin/tool\nx\nEOF\n")
    assert yard.engine.saw[-1] == {"/dev/pipes/EOF": b"#!/bin/tool\nx\n"}
    assert yard.engine.ran[-1].entrypoint == ["/dev/pipes/EOF"]
    await yard.build("FROM scratch\nRUN <<EOF\n#!/bin/tool\ny\nEOF\n")
    assert not yard.cached


async def test_cache_mounts_stay_apart_by_id_and_begin_with_their_source(yard: Yard) -> None:
    mounts = yard.root / "builder/mounts"
    run = "FROM scratch\nCOPY Dockerfile /f\nRUN --mount=type=cache,target=/c,id={} {}\n"
    await yard.build(run.format("one", "1"))
    (only,) = mounts.iterdir()
    (only / "kept").write_text("kept")
    await yard.build(run.format("one", "2"))
    assert yard.engine.saw[-1] == {"/c": b"kept"}
    await yard.build(run.format("two", "3"))
    assert yard.engine.saw[-1] == {"/c": b""}
    await yard.build(
        "FROM scratch AS s\nCOPY Dockerfile /d/f\nFROM scratch\n"
        "RUN --mount=type=cache,target=/c,id=three,from=s,source=d 4\n"
    )
    assert yard.engine.saw[-1] == {"/c": b"f"}
    await yard.builder.prune()
    assert not list(mounts.iterdir())


@pytest.mark.parametrize(("sharing", "places"), [("shared", 1), ("private", 2)])
async def test_two_steps_may_use_a_cache_mount_at_once(yard: Yard, sharing: str, places: int) -> None:
    yard.engine.gate = asyncio.Barrier(2)
    mount = f"--mount=type=cache,target=/c,sharing={sharing}"
    await yard.build(
        f"FROM scratch AS a\nRUN {mount} 1\nFROM scratch AS b\nRUN {mount} 2\n"
        "FROM scratch\nCOPY --from=a / /a\nCOPY --from=b / /b\n"
    )
    assert len({spec.mounts[0].source for spec in yard.engine.ran}) == places


async def test_a_locked_cache_mount_is_used_by_one_step_at_a_time(yard: Yard) -> None:
    mount = "--mount=type=cache,target=/c,sharing=locked"
    yard.engine.gate = asyncio.Barrier(1)
    await yard.build(
        f"FROM scratch AS a\nRUN {mount} 1\nFROM scratch AS b\nRUN {mount} 2\n"
        "FROM scratch\nCOPY --from=a / /a\nCOPY --from=b / /b\n"
    )
    assert yard.engine.most == 1


async def test_a_secret_is_seen_by_its_step_and_kept_nowhere(yard: Yard, tmp_path: Path) -> None:
    text = (
        "FROM scratch\nRUN --mount=type=secret,id=token,required=true,uid=3 a\n"
        "RUN --mount=type=secret,id=token,target=/etc/t,env=TOKEN b\n"
    )
    with pytest.raises(Invalid, match="Dockerfile:2: RUN --mount: the secret 'token' is required"):
        await yard.want(text)
    image = await yard.want(
        text, secrets={"token": SECRET}, cache_to=[CachePlace("local", str(tmp_path / "cache"), whole=True)]
    )
    assert yard.engine.saw == [{"/run/secrets/token": SECRET}, {"/etc/t": SECRET, "$TOKEN": SECRET}]
    again = await yard.want(text, secrets={"token": b"another value"})
    assert again.id == image.id  # a secret is in no key
    found = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET in path.read_bytes()]
    assert found == []
    assert not [event for event in yard.events if SECRET.decode() in event.text]
    assert not [path for path in Path("/dev/shm").glob("wherry-secrets-*") if list(path.iterdir())]
    with pytest.raises(Invalid, match="secret big"):
        await yard.want(text, secrets={"big": bytes(1_000_000)})


async def test_a_given_time_is_the_latest_that_anything_has(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = Yard(tmp_path / "elsewhere")
    other.engine.says_time = yard.engine.says_time = False
    await other.clock.advance(98765)
    digests: list[str] = []
    for each in (yard, other):
        each.file("d/a")
        wanted = {"args": {"SOURCE_DATE_EPOCH": "1000"}, "labels": {"a": "b"}}
        image = await each.want("FROM scratch\nRUN one\nCOPY d /d\nWORKDIR /w\nADD <<E /e\n1\nE\n", **wanted)
        digests.append(image.digest)
        assert {row.mtime for layer in image.layers for row in each.rows(layer).values()} <= {0, 1000}
    assert digests[0] == digests[1]
    await yard.want("FROM scratch\nRUN one\n")
    assert not yard.cached  # a layer with other times is another layer
    await other.builder.close()
    await other.content.close()


async def test_layers_are_compressed_as_is_wanted(yard: Yard) -> None:
    yard.file("a", "text " * 1000)
    text = "FROM scratch\nCOPY a /\n"
    plain = await yard.build(text)
    for kind, level in (("zstd", ""), ("zstd", "19"), ("gzip", "9"), ("uncompressed", "")):
        image = await yard.want(text, compression=parse_compression(kind, level))
        head = yard.content.path(Digest(image.layers[0])).read_bytes()[:4]
        assert compression_of(head) == ("" if kind == "uncompressed" else kind)
        assert image.config["rootfs"] == plain.config["rootfs"]
        assert yard.read(image, "a") == b"text " * 1000
        again = await yard.want(text, compression=parse_compression(kind, level))
        assert again.digest == image.digest
    with pytest.raises(Invalid, match="gzip, zstd"):
        parse_compression("lzma")
    with pytest.raises(Invalid, match="from 1 to 9"):
        parse_compression("gzip", "12")
    assert parse_compression("zstd") == Compression("zstd", 3)


async def test_an_image_has_several_names_labels_and_annotations(yard: Yard) -> None:
    image = await yard.want(
        "FROM scratch\nLABEL a=1 b=1\n", tags=["x:1", "y:2"], labels={"b": "2"}, annotations={"org.example": "note"}
    )
    assert image.names == ["docker.io/library/x:1", "docker.io/library/y:2"]
    assert image.config["config"]["Labels"] == {"a": "1", "b": "2"}
    assert b'"annotations":{"org.example":"note"}' in yard.content.path(Digest(image.digest)).read_bytes()


async def test_the_files_come_out_as_a_tar_and_as_a_directory(yard: Yard, tmp_path: Path) -> None:
    yard.file("d/a", "1", mode=0o640)
    (yard.context / "d/link").symlink_to("a")
    await yard.build("FROM scratch\nCOPY d /d\nCOPY <<EOF /d/a\n2\nEOF\n")
    async with yard.builder.export("web:1") as parts:
        data = b"".join([part async for part in parts])
    with tarfile.open(fileobj=io.BytesIO(data)) as made:
        assert made.getnames() == ["d", "d/a", "d/link"]
        assert made.extractfile("d/a").read() == b"2\n"  # type: ignore[union-attr]
    await yard.builder.export_to("web:1", tmp_path / "out")
    assert (tmp_path / "out/d/link").read_text() == "2\n"
    assert not list((yard.root / "builder/tmp").iterdir())


async def test_checks_alone_build_nothing(yard: Yard) -> None:
    yard.file("Dockerfile", "FROM scratch AS A\nRUN x\nCMD y\n")
    found = await yard.builder.check(yard.context, wanted=Wanted())
    assert [text.rpartition("(")[2] for text in found] == ["StageNameCasing)", "JSONArgsRecommended)"]
    assert not yard.engine.ran


async def test_files_that_did_not_change_are_not_read_again(yard: Yard) -> None:
    place = yard.file("big", "1")
    await yard.build("FROM scratch\nCOPY big /\n")
    place.write_text("2")
    image = await yard.build("FROM scratch\nCOPY big /\n")
    assert yard.cached == []
    assert yard.read(image, "big") == b"2"
