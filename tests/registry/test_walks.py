"""Stock skopeo and our own transfer against the registry, with an image made of the static busybox."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from tests.content.images import FILE, sample, tar
from tests.registry.conftest import TOKEN, Served

from wherry.clock import VirtualClock, machine
from wherry.content.credentials import Credentials
from wherry.content.digests import digest_of
from wherry.content.local import LocalContent
from wherry.content.oci import OCI_CONFIG, OCI_LAYER_GZIP, Descriptor, manifest_of, parse_document, this_platform
from wherry.content.pack import pack_directory
from wherry.content.protocol import Digest
from wherry.content.push import push
from wherry.content.remote import Remote
from wherry.content.steps import Step
from wherry.content.transfer import pull
from wherry.errors import Forbidden, NotFound, Unauthorized

BUSYBOX = Path("/usr/bin/busybox")


async def busybox(content: LocalContent, root: Path) -> Digest:
    """Make a small image in a store and hold it."""
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(BUSYBOX.read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    (root / "bin" / "sh").symlink_to("busybox")
    lease = await content.lease(seconds=60)
    layer = await pack_directory(content, root, lease=lease, mtime=0)
    config = msgspec.json.encode(
        {
            "architecture": this_platform().architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
            "history": [{"created_by": "test"}],
        }
    )
    blob = await content.put(config, lease=lease)
    manifest = manifest_of(
        Descriptor(OCI_CONFIG, blob.digest, len(config)), [Descriptor(OCI_LAYER_GZIP, layer.digest, layer.size_bytes)]
    )
    image = await content.put(manifest, lease=lease)
    await content.hold("image/docker.io/library/box:1", image.digest)
    return image.digest


async def skopeo(*argv: str, code: int = 0) -> str:
    process = await asyncio.create_subprocess_exec(
        "skopeo",
        *argv,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "HOME": "/tmp"},
    )
    async with machine.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode == code, said.decode()
    return said.decode()


@pytest.fixture
async def other(tmp_path: Path, clock: VirtualClock) -> LocalContent:
    """Another machine's store."""
    return LocalContent.open(tmp_path / "other", clock=clock)


async def test_skopeo_pushes_pulls_lists_and_deletes(served: Served, tmp_path: Path) -> None:
    digest = await busybox(served.content, tmp_path / "root")
    async with Remote(f"unix:{served.socket}") as remote:
        await push(served.content, remote, "box", "1", digest)
    plain = ["--insecure-policy"]
    creds = ["--dest-creds", f"me:{TOKEN}", "--dest-tls-verify=false"]
    there = f"docker://{served.address}"
    layout, folder = f"oci:{tmp_path}/layout:1", f"dir:{tmp_path}/dir"
    await skopeo(*plain, "copy", "--src-tls-verify=false", f"{there}/box:1", layout)
    await skopeo(*plain, "copy", "--src-tls-verify=false", f"{there}/box@{digest}", folder)
    await skopeo(*plain, "copy", *creds, layout, f"{there}/a/b/again:oci")
    await skopeo(*plain, "copy", *creds, "--format", "v2s2", folder, f"{there}/a/b/again:docker")
    refused = await skopeo(*plain, "copy", "--dest-tls-verify=false", layout, f"{there}/x:1", code=1)
    assert "denied" in refused.lower() or "unauthorized" in refused.lower()
    seen = msgspec.json.decode(await skopeo("inspect", "--tls-verify=false", f"{there}/a/b/again:docker"))
    assert (seen["Name"], seen["Os"], seen["RepoTags"]) == (f"{served.address}/a/b/again", "linux", ["docker", "oci"])
    tags = msgspec.json.decode(await skopeo("list-tags", "--tls-verify=false", f"{there}/a/b/again"))
    assert tags["Tags"] == ["docker", "oci"]
    await skopeo("delete", "--tls-verify=false", "--creds", f"me:{TOKEN}", f"{there}/a/b/again:oci")
    tags = msgspec.json.decode(await skopeo("list-tags", "--tls-verify=false", f"{there}/a/b/again"))
    assert tags["Tags"] == ["docker"]


async def test_an_image_goes_to_another_machine_and_back_by_digest(
    served: Served, tmp_path: Path, other: LocalContent
) -> None:
    digest = await busybox(other, tmp_path / "root")
    steps: list[Step] = []
    async with Remote(f"http://{served.address}", credentials=Credentials("me", TOKEN)) as remote:
        sent = await push(other, remote, "box", "1", digest, progress=steps.append)
        assert sent > 300_000
        assert {step.action for step in steps} - {"queued"} == {"upload", "done"}
        steps.clear()
        again = await push(other, remote, "box", "2", digest, progress=steps.append)
        assert {step.action for step in steps} - {"queued"} == {"exists"}
        assert again == len(await other.read(digest))  # only the manifest itself
        assert (
            await push(other, remote, "copy", "1", digest, mount_from=lambda _: ["box"], progress=steps.append) == again
        )
    third = LocalContent.open(tmp_path / "third", clock=served.clock)
    lease = await third.lease(seconds=60)
    async with Remote(f"http://{served.address}") as remote:
        pulled = await pull(third, remote, "box", "1", lease=lease)
        assert pulled.root == pulled.manifest == digest
        assert (
            await pull(third, remote, "box", "2", lease=lease)
        ).bytes_moved == again  # asked by tag, the manifest comes
        assert (await pull(third, remote, "box", digest, lease=lease)).bytes_moved == 0
        with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
            await pull(third, remote, "box", "absent", lease=lease)
        with pytest.raises(Forbidden, match="log in") as refused:
            await push(third, remote, "box", "3", digest)
        assert TOKEN not in str(refused.value)
    for child in parse_document(await third.read(digest)).children:
        assert digest_of(await third.read(child.digest)) == child.digest
    await third.hold("image/x", digest)
    await third.end_lease(lease)
    assert await third.collect() == []
    await third.close()


async def test_pushing_what_the_machine_has_moves_no_layer(served: Served, tmp_path: Path) -> None:
    digest = await busybox(served.content, tmp_path / "root")
    steps: list[Step] = []
    async with Remote(f"unix:{served.socket}") as remote:
        sent = await push(served.content, remote, "docker.io/library/box", "1", digest, progress=steps.append)
        assert {step.action for step in steps} - {"queued"} == {"mounted"}
        assert sent == len(await served.content.read(digest))
        assert await remote.exists("docker.io/library/box", "manifests", "1")
    await served.content.release("image/docker.io/library/box:1")
    await served.clock.advance(7200)
    assert await served.content.collect() == []  # the repository holds it now


async def test_an_anonymous_token_may_not_write(served: Served, tmp_path: Path, other: LocalContent) -> None:
    digest = await busybox(other, tmp_path / "root")
    async with Remote(f"http://{served.address}") as remote:
        with pytest.raises((Forbidden, Unauthorized)):
            await push(other, remote, "box", "1", digest)
    async with Remote(f"http://{served.address}", credentials=Credentials("me", "wrong")) as remote:
        with pytest.raises(Unauthorized):
            await push(other, remote, "box", "1", digest)


async def test_a_collector_that_never_rests_loses_nothing_of_running_pushes(
    served: Served, tmp_path: Path, other: LocalContent
) -> None:
    images = [
        await sample(other, tar([("n", FILE, b"%d" % number)]), tar([("same", FILE, b"")])) for number in range(8)
    ]
    done = asyncio.Event()

    async def collect() -> None:
        while not done.is_set():
            await served.content.collect()

    async def push_and_pull(number: int) -> None:
        async with Remote(f"http://{served.address}", credentials=Credentials("me", TOKEN)) as remote:
            for turn in range(3):
                await push(other, remote, f"r{number % 3}", f"{number}-{turn}", images[number].digest)
                back = LocalContent.open(tmp_path / f"back-{number}-{turn}", clock=served.clock)
                lease = await back.lease(seconds=60)
                assert (await pull(back, remote, f"r{number % 3}", f"{number}-{turn}", lease=lease)).root == images[
                    number
                ].digest
                await back.close()

    collecting = asyncio.create_task(collect(), name="collect")
    try:
        async with machine.timeout(60):
            await asyncio.gather(*(push_and_pull(number) for number in range(8)))
    finally:
        done.set()
        await collecting
    await served.clock.advance(7200)
    assert await served.content.collect() == []
