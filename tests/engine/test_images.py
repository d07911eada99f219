"""Images: names, ids, removal, load and save, commit of what a container changed."""

from dataclasses import replace

import pytest
from tests.engine.boxes import NAME, Place, run, spec

from wherry.content.local import LocalContent
from wherry.content.pack import pack_directory
from wherry.engine.local import LocalEngine
from wherry.errors import Conflict, Invalid, NotFound

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_found_by_name_id_prefix_and_digest(engine: LocalEngine) -> None:
    image = await engine.image("box:1")
    assert image.names == (NAME,)
    for ref in (NAME, image.id, image.id[7:], image.id[7:19], image.digest, "docker.io/box:1"):
        assert (await engine.image(ref)).id == image.id
    for ref in ("box:2", "ffffffffffff", "sha256:" + "0" * 64):
        with pytest.raises(NotFound):
            await engine.image(ref)
    with pytest.raises(Invalid):
        await engine.image("UPPER:1")


async def test_names_come_and_go(engine: LocalEngine) -> None:
    await engine.tag("box:1", "other/name:2")
    assert set((await engine.image("box:1")).names) == {NAME, "docker.io/other/name:2"}
    assert await engine.remove_image("other/name:2") == ["Untagged: other/name:2"]
    assert (await engine.image("box:1")).names == (NAME,)


async def test_an_image_in_use_stays(engine: LocalEngine) -> None:
    made = await engine.create(spec())
    with pytest.raises(Conflict, match=made.id[:12]):
        await engine.remove_image("box:1")
    await engine.remove(made.id)


async def test_an_image_goes_right_after_its_container(engine: LocalEngine) -> None:
    """As builds do: what is left of the container behind does not keep the image."""
    box = await engine.image("box:1")
    nameless = await engine.commit_image({**box.config, "author": "a build"}, box.layers, [])
    made = await engine.create(replace(spec("/bin/true"), image=nameless.id))
    await engine.start(made.id)
    await engine.wait(made.id)
    await engine.remove(made.id)
    assert await engine.remove_image(nameless.id, force=True) == [f"Deleted: {nameless.id}"]
    assert nameless.id not in [image.id for image in await engine.images()]


async def test_what_a_container_changed_becomes_a_layer(engine: LocalEngine, place: Place) -> None:
    made = await engine.create(spec("/bin/sh", "-c", "echo new > /tmp/new; rm /etc/not-a-program; mkdir -p /a/b"))
    await engine.start(made.id)
    await engine.wait(made.id)
    box = await engine.image("box:1")
    digest, diff_id, size = await engine.diff_layer(made.id)
    assert size > 0
    diff_ids = [*box.config["rootfs"]["diff_ids"], diff_id]
    document = {**box.config, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    image = await engine.commit_image(document, [*box.layers, digest], ["changed:1", "changed:2"])
    assert len(image.layers) == 2
    await engine.remove(made.id)
    script = "cat /tmp/new; test -e /etc/not-a-program || echo gone; ls -d /a/b"
    code, text = await run(engine, replace(spec("/bin/sh", "-c", script), image="changed:2"))
    assert (code, text) == (0, "new\ngone\n/a/b\n")
    with pytest.raises(Conflict, match="referenced in multiple repositories"):
        await engine.remove_image(image.id)
    await engine.settled()
    lines = await engine.remove_image(image.id, force=True)
    assert lines[-1] == f"Deleted: {image.id}"
    snapshots = {path.name for path in (place.root / "snapshots").iterdir()}
    assert diff_id.removeprefix("sha256:") not in snapshots
    assert diff_ids[0].removeprefix("sha256:") in snapshots


async def test_the_layer_of_a_container_has_no_mount_points(engine: LocalEngine, place: Place) -> None:
    """Not /proc or /etc/hosts of the runtime, nor the targets of its own mounts."""
    from wherry.engine.types import Mount

    made = await engine.create(spec("/bin/touch", "/only", mounts=[Mount("/cache/deep", kind="tmpfs")]))
    await engine.start(made.id)
    await engine.wait(made.id)
    upper = place.root / "containers" / made.id / "upper"
    assert {path.name for path in upper.iterdir()} <= {"only", "cache"}
    record = engine._containers.lives.find(made.id).record  # pyright: ignore[reportPrivateUsage]
    assert record.mount_points == ["/cache/deep"]
    await engine.remove(made.id)


async def test_save_and_load(engine: LocalEngine, place: Place) -> None:
    archive = b"".join([piece async for piece in engine.save(["box:1"])])
    content = LocalContent.open(place.base / "content-2", clock=engine._clock)  # pyright: ignore[reportPrivateUsage]
    other = Place(place.base / "second")
    other.base.mkdir()
    async with other.engine(content) as second:
        with pytest.raises(NotFound):
            await second.image("box:1")

        async def pieces():
            yield archive

        loaded = await second.load(pieces())
        assert [image.names for image in loaded] == [(NAME,)]
        code, text = await run(second, spec("/bin/echo", "moved"))
        assert (code, text) == (0, "moved\n")
        await second.remove_image("box:1", force=True)
    await content.close()
    assert other.leftovers() == []


async def test_a_wrong_config_is_refused(engine: LocalEngine) -> None:
    box = await engine.image("box:1")
    with pytest.raises(Invalid, match="diff_ids"):
        await engine.commit_image({"rootfs": {"diff_ids": []}}, box.layers, ["wrong:1"])
    with pytest.raises(NotFound, match="layer"):
        await engine.commit_image(box.config, ["sha256:" + "1" * 64], ["wrong:1"])


async def test_a_name_that_moves_leaves_the_old_image_nameless(engine: LocalEngine, place: Place) -> None:
    content: LocalContent = engine._content  # type: ignore[assignment]  # pyright: ignore
    (place.base / "small").mkdir()
    (place.base / "small" / "file").write_text("x")
    layer = await pack_directory(content, place.base / "small", lease=await content.lease(seconds=60))
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}}
    nameless = await engine.commit_image(document, [layer.digest], [])
    assert nameless.names == ()
    assert nameless.id in [image.id for image in await engine.images()]
    await engine.tag(nameless.id, "small:1")
    await engine.tag("box:1", "small:1")
    assert (await engine.image("small:1")).names != ()
    left = {image.id: image for image in await engine.images()}[nameless.id]
    assert (left.names, left.digests) == ((), ())
    lines, freed = await engine.prune_images([nameless.id])
    assert lines == [f"Deleted: {nameless.id}"]
    assert freed > 0
    await engine.remove_image("small:1")
