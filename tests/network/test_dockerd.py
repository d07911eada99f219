"""Two instances and a real dockerd in one network namespace, through a restart of dockerd, and apart again."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from wherry.errors import Broken
from wherry.host import facts, namespaces, netlink, processes, spawn
from wherry.host.nftables import Nft
from wherry.network.guard import Guard
from wherry.network.machines import leftovers
from wherry.network.pods import LocalPodNetwork
from wherry.network.ranges import Ranges
from wherry.network.services import NftServices
from wherry.network.types import Port, Service

from .conftest import Server, ask

pytestmark = pytest.mark.root
USER_CHAIN = "list chain ip filter DOCKER-USER"


@asynccontextmanager
async def dockerd(directory: Path, nft: Nft) -> AsyncIterator[None]:
    """Run one until its rules are there; its /run is its own, and its files are in `directory`."""
    script = 'mount -t tmpfs tmpfs /run && exec dockerd "$@"'
    places = {"--data-root": "data", "--exec-root": "exec", "-p": "pid"}
    options = [word for option, name in places.items() for word in (option, f"{directory}/{name}")]
    options += ["-H", f"unix://{directory}/socket"]
    with open(directory / "log", "ab") as log:
        process = await asyncio.create_subprocess_exec(
            *["unshare", "--mount", "sh", "-c", script, "sh", "--storage-driver", "vfs", *options],
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(30):
            while "API listen" not in (directory / "log").read_text(errors="replace"):
                assert process.returncode is None, (directory / "log").read_text(errors="replace")[-2000:]
                await asyncio.sleep(0.05)
        assert await ours(nft, "") is not None
        yield
    finally:
        below = processes.descendants(process.pid)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 15)
        except TimeoutError:
            process.kill()
            await process.wait()
            for pid in below:
                if processes.command(pid)[:1] == ["containerd"]:
                    os.kill(pid, signal.SIGKILL)
        (directory / "log").write_text("")


async def ours(nft: Nft, instance: str) -> list[str] | None:
    """List the comments in Docker's chain that name an instance; None without the chain."""
    try:
        rules = [item["rule"].get("comment", "") for item in await nft.read(USER_CHAIN) if "rule" in item]
    except Broken:
        return None
    return [comment for comment in rules if instance and comment == f"wherry-{instance}"]


async def until_there(nft: Nft, instance: str) -> None:
    async with asyncio.timeout(15):
        while len(await ours(nft, instance) or ()) != 2:  # noqa: ASYNC110 (a state of the kernel)
            await asyncio.sleep(0.05)


async def test_two_instances_beside_a_dockerd(host: str, tmp_path: Path) -> None:
    if not facts.find_program("dockerd"):
        return  # there is no dockerd here to live beside; test_services has its rules
    made: list[tuple[str, Nft, LocalPodNetwork, NftServices, str]] = []
    pins: list[str] = []
    directory = Path("/tmp", f"network-dockerd-{os.getpid()}")  # a socket's path has 108 bytes
    directory.mkdir()
    with netlink.Netlink() as net:  # dockerd wants a way to the world
        net.send([netlink.add_bridge("wan")])
        net.send([netlink.add_address(netlink.index_of("wan"), "192.0.2.1/24")])
        net.send([netlink.add_route("0.0.0.0/0", 0, gateway="192.0.2.9")])
    try:
        async with AsyncExitStack() as stack:
            watcher = stack.enter_context(Nft())
            docker = AsyncExitStack()
            await docker.enter_async_context(dockerd(directory, watcher))
            stack.push_async_exit(docker)
            for number in range(2):
                instance = f"d0c0000{number}"
                nft = stack.enter_context(Nft())
                guard = await stack.enter_async_context(Guard(nft, period_s=0.1))
                pod_ranges = f"10.{64 + number}.0.0/16", f"10.112.{16 * number}.0/20", f"10.{64 + number}.1.0/24"
                ranges = Ranges(*pod_ranges)
                pods = LocalPodNetwork(instance, 0, ranges, str(tmp_path / instance), nft, guard)
                await stack.enter_async_context(pods)
                services = NftServices(instance, ranges, nft, guard)
                netns = [namespaces.create(str(tmp_path / f"{instance}{name}"), ("net",))["net"] for name in "ab"]
                pins += [os.path.dirname(path) for path in netns]
                await pods.attach("a", netns[0])
                backend = (await pods.attach("b", netns[1])).address
                address = f"10.112.{16 * number}.10"
                await services.sync(
                    [Service("default/web", [address], [Port("TCP", 80, [(backend, 80)], 30_080 + number)])]
                )
                server = Server(netns[1], instance, 80)
                stack.callback(server.close)
                made.append((instance, nft, pods, services, netns[0]))

            async def all_work() -> None:
                for number, (instance, nft, _, _, client) in enumerate(made):
                    await until_there(nft, instance)
                    assert await ask(client, f"10.112.{16 * number}.10", 80) == instance
                    assert await ask(None, "127.0.0.1", 30_080 + number) == instance

            await all_work()
            await watcher.run("add chain ip filter FORWARD { policy drop; }")  # as where dockerd came first after boot
            await all_work()
            listed = (await spawn.run(["iptables", "-S", "DOCKER-USER"], timeout_s=10)).check().out.decode()
            assert f"-i wh{made[0][0]}+" in listed  # dockerd's own tool understands what we wrote
            await docker.aclose()
            await watcher.run("flush chain ip filter DOCKER-USER")
            async with dockerd(directory, watcher):
                await all_work()
                for instance, nft, pods, services, _ in made:
                    await services.close(remove=True)
                    await pods.close(remove=True)
                    assert await leftovers(instance, nft) == []
                    assert await ours(watcher, instance) == []
            tables = {item["table"]["name"] for item in await watcher.read("list tables") if "table" in item}
            assert tables <= {"filter", "nat"}
    finally:
        for directory_of_pin in pins:
            namespaces.remove(directory_of_pin)
        shutil.rmtree(directory, ignore_errors=True)
