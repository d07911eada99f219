"""An engine with a network of its own machine: a network namespace stands in for the host."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.engine.boxes import Place, put_image
from tests.netns import moved_into_one

from wherry.clock import RealClock
from wherry.engine.local import LocalEngine
from wherry.engine.networks import Networking
from wherry.host.nftables import Nft
from wherry.network.bridges import Bridges
from wherry.network.claims import Claims
from wherry.network.guard import Guard
from wherry.network.machines import leftovers
from wherry.network.pods import LocalPodNetwork
from wherry.network.ports import Ports
from wherry.network.ranges import Ranges

RANGES = Ranges(pods="10.64.0.0/16", services="10.112.0.0/20", node="10.64.1.0/24")


class Town:
    """A machine on which engines come and go; `engine()` opens one."""

    def __init__(self, place: Place, base: Path) -> None:
        self.place, self.base = place, base
        self.instance = secrets.token_hex(4)
        self.nft = Nft()
        self.guard = Guard(self.nft, period_s=0.05)
        self.claims = Claims(str(base / "claims"), busy=[])
        self.claims.claim(self.instance, str(base))
        self.pods = LocalPodNetwork(self.instance, 0, RANGES, str(base / "pods"), self.nft, self.guard)

    @asynccontextmanager
    async def engine(self) -> AsyncGenerator[LocalEngine]:
        """Open an engine; it leaves its containers running."""
        bridges = Bridges(self.instance, self.nft, self.guard, subnets=self.claims)
        networking = Networking(self.instance, bridges, Ports(self.instance, self.nft, self.guard), RANGES.node)
        content = self.place.content()
        async with LocalEngine(
            self.place.root, self.place.run, instance=self.place.instance, node="t", content=content, network=self.pods,
            clock=RealClock(), networking=networking,
        ) as engine:  # fmt: skip
            await put_image(content, engine, self.place.base / "source")
            yield engine
        await content.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """Stand a network namespace in for the machine's: this thread moves into it."""
    with moved_into_one(tmp_path) as path:
        yield path


@pytest.fixture
async def town(host: str, place: Place, tmp_path: Path) -> AsyncIterator[Town]:
    """A town; at its end all containers and networks go, and nothing may be left on its machine."""
    made = Town(place, tmp_path)
    async with made.pods:
        yield made
        async with made.engine() as engine:
            for container in await engine.containers():
                await engine.remove(container.id, force=True)
            await engine.settled()
            assert await made.pods.attachments() == []
            for network in engine.networks.all():
                if not network.predefined:
                    await engine.networks.remove(network.id)
        await made.pods.close(remove=True)
    await made.nft.run(f"add table ip wherry-{made.instance}-ports\ndelete table ip wherry-{made.instance}-ports")
    left = await leftovers(made.instance, made.nft)
    made.nft.close()
    assert left == []
    assert made.claims.all()[0].networks == ()
