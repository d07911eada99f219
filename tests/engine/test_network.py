"""Containers on a pod network: each its address, and each other's neighbours."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.boxes import Place, put_image, spec, text_of
from tests.netns import moved_into_one

from wherry.clock import RealClock
from wherry.engine.local import LocalEngine
from wherry.engine.types import SandboxSpec
from wherry.host.nftables import Nft
from wherry.network.guard import Guard
from wherry.network.pods import LocalPodNetwork
from wherry.network.ranges import Ranges

pytestmark = pytest.mark.root
RANGES = Ranges(pods="10.64.0.0/16", services="10.112.0.0/20", node="10.64.1.0/24")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """Stand a network namespace in for the machine's: this thread moves into it."""
    with moved_into_one(tmp_path) as path:
        yield path


async def test_two_containers_reach_each_other(host: str, place: Place, tmp_path: Path) -> None:
    instance = secrets.token_hex(4)
    nft = Nft()
    content = place.content()
    async with (
        LocalPodNetwork(instance, 0, RANGES, str(tmp_path / "pods"), nft, Guard(nft)) as network,
        LocalEngine(
            place.root,
            place.run,
            instance=place.instance,
            node="t",
            content=content,
            network=network,
            clock=RealClock(),
        ) as engine,
    ):
        await put_image(content, engine, place.base / "source")
        pod = SandboxSpec(id="", hostname="server")
        server = await engine.create(
            spec("/bin/sh", "-c", "while :; do echo hello | nc -l -p 80; done", sandbox_spec=pod)
        )
        await engine.start(server.id)
        assert server.address.startswith("10.64.1.")
        ask = f"until test -s /tmp/x; do nc {server.address} 80 > /tmp/x; done; cat /tmp/x /etc/resolv.conf"
        client = await engine.create(spec("/bin/sh", "-c", ask, sandbox_spec=SandboxSpec(id="", hostname="client")))
        await engine.start(client.id)
        assert (await engine.wait(client.id)).code == 0
        said = [line for line in (await text_of(engine, client.id)).splitlines() if not line.startswith("nc:")]
        assert said[0] == "hello"
        assert said[1].startswith("nameserver 10.64.1.")
        assert client.address != server.address
        for container in (server, client):
            await engine.remove(container.id, force=True)
        await engine.settled()
        assert await network.attachments() == []
        await network.close(remove=True)
    nft.close()
    await content.close()
