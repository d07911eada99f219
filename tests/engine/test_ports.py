"""Published ports follow the life of their container, and outlive the engine."""

import asyncio

import pytest
from tests.engine.boxes import spec
from tests.engine.towns import Town, host, town

from wherry.engine.local import LocalEngine
from wherry.engine.types import Container, Join, NetworkSpec, SandboxSpec
from wherry.errors import Conflict
from wherry.network.types import PortBinding

pytestmark = pytest.mark.root
__all__ = ["host", "town"]
SERVE = ("/bin/sh", "-c", "while :; do echo hello | nc -l -p 80; done")


async def read(port: int, address: str = "127.0.0.1") -> str:
    """Read what a port says, once its server is up; "" when nobody answers."""
    for _ in range(100):
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection(address, port)
                said = await reader.read(100)
                writer.close()
        except (OSError, TimeoutError):
            said = b""
        if said:
            return said.decode().strip()
        await asyncio.sleep(0.02)
    return ""


async def serve(engine: LocalEngine, *ports: PortBinding, **further: object) -> Container:
    """Start a container that answers on port 80."""
    sandbox = SandboxSpec(id="", hostname="web", ports=ports, **further)  # type: ignore[arg-type]  # fields by name
    made = await engine.create(spec(*SERVE, sandbox_spec=sandbox))
    await engine.start(made.id)
    return await engine.container(made.id)


async def test_a_port_is_held_while_its_container_runs(town: Town) -> None:
    async with town.engine() as engine:
        web = await serve(engine, PortBinding(80, host_first=8080))
        assert [each.host_port for each in web.ports] == [8080]
        assert await read(8080) == "hello"
        assert await read(8080, "::1") == "hello"
        other = await engine.create(
            spec(*SERVE, sandbox_spec=SandboxSpec(id="", hostname="o", ports=[PortBinding(80, host_first=8080)]))
        )
        with pytest.raises(Conflict, match=r"driver failed programming external connectivity.*already allocated"):
            await engine.start(other.id)
        await engine.stop(web.id, grace_s=0)
        assert (await engine.container(web.id)).ports == ()
        await engine.start(other.id)  # at once: the port is free when `stop` returns
        assert await read(8080) == "hello"
        await engine.remove(other.id, force=True)
        await engine.start(web.id)
        assert await read(8080) == "hello"


async def test_ports_are_published_when_an_inner_container_gets_a_way_out(town: Town) -> None:
    async with town.engine() as engine:
        await engine.networks.create(NetworkSpec("inner", internal=True))
        await engine.networks.create(NetworkSpec("outer"))
        web = await serve(engine, PortBinding(80, host_first=8080), network="user", networks=[Join("inner")])
        assert web.ports == ()
        other = await serve(engine, PortBinding(80, host_first=8080))
        with pytest.raises(Conflict, match="already allocated"):
            await engine.connect(web.id, Join("outer"))
        assert [each.name for each in (await engine.container(web.id)).endpoints] == ["inner"]
        await engine.remove(other.id, force=True)
        await engine.connect(web.id, Join("outer"))
        assert [each.host_port for each in (await engine.container(web.id)).ports] == [8080]
        assert await read(8080) == "hello"


async def test_ports_outlive_the_engine(town: Town) -> None:
    async with town.engine() as engine:
        web = await serve(engine, PortBinding(80), exposed=["80/tcp", "53/udp"], publish_all=True)
        numbers = {(each.protocol, each.host_port) for each in web.ports}
        assert {protocol for protocol, _ in numbers} == {"tcp", "udp"}
        port = next(number for protocol, number in numbers if protocol == "tcp")
        assert await read(port) == "hello"
        gone = await serve(engine, PortBinding(80, host_first=8081))
    assert await read(port) == "hello"  # no engine is there
    gone_pid = gone.pid
    assert gone_pid
    async with town.engine() as engine:
        same = await engine.container(web.id)
        assert {(each.protocol, each.host_port) for each in same.ports} == numbers
        assert await read(port) == "hello"
        await engine.kill(gone.id)
        await engine.wait(gone.id)
        assert (await engine.container(gone.id)).ports == ()
    async with town.engine() as engine:
        assert (await engine.container(gone.id)).ports == ()
        again = await serve(engine, PortBinding(80, host_first=8081))
        assert [each.host_port for each in again.ports] == [8081]


async def test_a_failed_start_gives_its_ports_back(town: Town) -> None:
    async with town.engine() as engine:
        held = await serve(engine, PortBinding(80, host_first=8082))
        ports = [PortBinding(80, host_first=8083), PortBinding(81, host_first=8082)]
        bad = await engine.create(spec(*SERVE, sandbox_spec=SandboxSpec(id="", hostname="b", ports=ports)))
        with pytest.raises(Conflict):
            await engine.start(bad.id)
        assert engine.networks.ports_of(bad.id) == ()
        await engine.stop(held.id, grace_s=0)
        await engine.start(bad.id)
        assert await read(8083) == "hello"


async def test_ports_of_a_sandbox_that_several_share_outlive_its_containers(town: Town) -> None:
    async with town.engine() as engine:
        ports = [PortBinding(80, host_first=8080)]
        pod = await engine.create_sandbox(SandboxSpec("pod-1", "web", cgroup="pods/1", ports=ports))
        assert [each.host_port for each in engine.networks.ports_of(pod.id)] == [8080]
        for _ in range(2):
            made = await engine.create(spec(*SERVE, sandbox=pod.id))
            await engine.start(made.id)
            assert await read(8080) == "hello"
            await engine.remove(made.id, force=True)
        with pytest.raises(Conflict, match="already allocated"):
            await engine.create_sandbox(SandboxSpec("pod-2", "web", cgroup="pods/2", ports=ports))
        await engine.remove_sandbox("pod-2")
    async with town.engine() as engine:
        assert [each.host_port for each in engine.networks.ports_of(pod.id)] == [8080]
        await engine.create_sandbox(pod.spec)
        made = await engine.create(spec(*SERVE, sandbox=pod.id))
        await engine.start(made.id)
        assert await read(8080) == "hello"
        await engine.remove(made.id, force=True)
        await engine.remove_sandbox(pod.id)
        await engine.create_sandbox(SandboxSpec("pod-2", "web", cgroup="pods/2", ports=ports))
        await engine.remove_sandbox("pod-2")
