"""Networks of people's own, in the engine: joined and left live, found again by the next engine, gone without a trace."""

import asyncio
import secrets

import pytest
from tests.engine.boxes import spec, text_of
from tests.engine.towns import Town, host, town

from wherry.engine.local import LocalEngine
from wherry.engine.networks import Networks
from wherry.engine.types import Container, Join, NetworkSpec, SandboxSpec
from wherry.errors import AlreadyExists, Forbidden, Invalid, NotFound
from wherry.host import namespaces
from wherry.network import dns_wire
from wherry.network.bridges import Bridges

pytestmark = pytest.mark.root
__all__ = ["host", "town"]


async def start(engine: LocalEngine, name: str, *joins: Join, network: str = "user") -> Container:
    """Start a container that does nothing, on networks."""
    sandbox = SandboxSpec(id="", hostname=name, network=network, networks=joins)
    made = await engine.create(spec("/bin/sleep", "1000", name=name, sandbox_spec=sandbox))
    await engine.start(made.id)
    return await engine.container(made.id)


async def resolve(
    engine: LocalEngine, container: Container, name: str, kind: int = dns_wire.A
) -> list[str] | list[bytes]:
    """Ask the server that the container's resolv.conf names, from inside it. What is no address comes as bytes."""
    sandbox = await engine.sandbox(container.sandbox)
    conf = open(f"{sandbox.netns.removesuffix('/ns/net')}/resolv.conf").read()  # noqa: SIM115 (a few bytes)
    server = next(line.split()[1] for line in conf.splitlines() if line.startswith("nameserver"))
    question = secrets.token_bytes(2) + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    question += dns_wire.encode_name(name) + kind.to_bytes(2, "big") + b"\x00\x01"
    client = namespaces.socket_inside(sandbox.netns, 2, 2)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5):
        await loop.sock_sendto(client, question, (server, 53))
        answer = await loop.sock_recv(client, 512)
    client.close()
    if kind == dns_wire.PTR:  # one answer: its name is a pointer to the question's
        return [answer[len(question) + 12 :]]
    if kind == dns_wire.AAAA:
        return [record.data for record in dns_wire.answers(answer, kind)]
    return [".".join(str(byte) for byte in record.data) for record in dns_wire.answers(answer, dns_wire.A)]


async def test_names_are_known_while_their_container_runs(town: Town) -> None:
    async with town.engine() as engine:
        await engine.networks.create(NetworkSpec("inner", internal=True))
        a = await start(engine, "a", Join("inner"))
        b = await start(engine, "b", Join("inner", aliases=["db", "Store"]))
        for name in ("b", "db", "store", "b.inner", b.id[:12]):
            assert await resolve(engine, a, name) == [b.address]
        assert await resolve(engine, a, "nobody") == []
        await engine.stop(b.id, grace_s=0)
        assert await resolve(engine, a, "b") == []
        await engine.start(b.id)
        assert await resolve(engine, a, "b") == [b.address]


async def test_an_alias_of_several_answers_with_all(town: Town) -> None:
    async with town.engine() as engine:
        await engine.networks.create(NetworkSpec("inner", internal=True))
        asker = await start(engine, "asker", Join("inner"))
        one, two = [await start(engine, name, Join("inner", aliases=["pool"])) for name in ("one", "two")]
        assert sorted(await resolve(engine, asker, "pool")) == sorted([one.address, two.address])


async def test_the_next_engine_finds_networks_and_places(town: Town) -> None:
    async with town.engine() as engine:
        made = await engine.networks.create(NetworkSpec("inner", internal=True, labels={"a": "b"}))
        await engine.networks.create(NetworkSpec("second", internal=True))
        a, b = [await start(engine, name, Join("inner")) for name in "ab"]
        await engine.connect(b.id, Join("second"))
    async with town.engine() as engine:
        found = engine.networks.find("inner")
        assert (found.id, found.spec.labels) == (made.id, {"a": "b"})
        assert await resolve(engine, a, "b") == [b.address]
        assert [each.name for each in engine.networks.endpoints_of(b.sandbox)] == ["inner", "second"]
        await engine.disconnect(b.id, "second")
        await engine.stop(b.id, grace_s=0)
    async with town.engine() as engine:
        assert [each.name for each in engine.networks.endpoints_of(b.sandbox)] == ["inner"]
        await engine.connect(b.id, Join("second"))  # while it does not run
        await engine.start(b.id)
        c = await start(engine, "c", Join("second"))
        assert await resolve(engine, c, "b") == [engine.networks.endpoints_of(b.sandbox)[1].address]


class Killed(BaseException):
    """Stands in for a kill: nobody handles it."""


async def test_what_a_kill_left_half_made_is_seen_by_nobody(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    async with town.engine() as engine:
        await engine.networks.create(NetworkSpec("whole", internal=True))
        a = await start(engine, "a", Join("whole"))
        await engine.networks.create(NetworkSpec("later", internal=True))
        with monkeypatch.context() as patch:
            for name in ("add", "attach"):
                patch.setattr(Bridges, name, _die)
            patch.setattr(Networks, "_unmake", _die)  # nor is there anybody to clean up
            patch.setattr(Networks, "_drop_endpoint", _die)
            with pytest.raises(Killed):
                await engine.networks.create(NetworkSpec("half", "172.30.11.0/24"))
            with pytest.raises(Killed):
                await engine.connect(a.id, Join("later"))
    async with town.engine() as engine:
        assert {each.spec.name for each in engine.networks.all()} == {"bridge", "host", "none", "whole", "later"}
        assert [each.name for each in engine.networks.endpoints_of(a.sandbox)] == ["whole"]
        await engine.networks.create(NetworkSpec("half", "172.30.11.0/24"))
        await engine.connect(a.id, Join("later"))


def _die(*_: object, **__: object) -> None:
    raise Killed


async def test_addresses_are_chosen_given_and_given_back(town: Town) -> None:
    async with town.engine() as engine:
        plan = NetworkSpec("plan", "172.30.9.0/29", gateway="172.30.9.6", reserved={"printer": "172.30.9.1"})
        await engine.networks.create(plan)
        fixed = await start(engine, "fixed", Join("plan", address="172.30.9.4"))
        others = [await start(engine, f"n{number}", Join("plan")) for number in range(3)]
        assert [each.address for each in (fixed, *others)] == [f"172.30.9.{n}" for n in (4, 2, 3, 5)]
        with pytest.raises(Forbidden, match="no available IPv4 addresses"):
            await start(engine, "late", Join("plan"))
        with pytest.raises(Forbidden, match="Address already in use"):
            await start(engine, "late", Join("plan", address="172.30.9.4"))
        await engine.remove(fixed.id, force=True)
        await engine.settled()
        assert (await start(engine, "late", Join("plan"))).address == "172.30.9.4"


async def test_a_network_goes_when_nobody_runs_on_it(town: Town) -> None:
    async with town.engine() as engine:
        await engine.networks.create(NetworkSpec("brief", internal=True))
        a = await start(engine, "a", Join("brief"))
        with pytest.raises(Forbidden, match="has active endpoints"):
            await engine.networks.remove("brief")
        with pytest.raises(AlreadyExists, match="network with name brief already exists"):
            await engine.networks.create(NetworkSpec("brief"))
        await engine.stop(a.id, grace_s=0)
        await engine.networks.remove("brief")
        with pytest.raises(NotFound, match="network brief not found"):
            await engine.start(a.id)
        assert (await engine.container(a.id)).exit is not None
        with pytest.raises(Invalid, match="needs a subnet"):
            await engine.networks.create(NetworkSpec("odd", gateway="10.0.0.1"))


async def test_hosts_and_events_tell_of_a_change(town: Town) -> None:
    async with town.engine() as engine:
        happened = engine.events()
        made = await engine.networks.create(NetworkSpec("inner", internal=True))
        loud = spec(
            "/bin/sh", "-c", "until grep -q $(hostname) /etc/hosts && test $(grep -c loud /etc/hosts) = 2; do "
            "usleep 20000; done; cat /etc/hosts",
            name="loud", sandbox_spec=SandboxSpec(id="", hostname="loud"),
        )  # fmt: skip
        a = await engine.create(loud)
        await engine.start(a.id)
        await engine.connect(a.id, Join(made.id))
        assert (await engine.wait(a.id)).code == 0
        address = engine.networks.endpoints_of(a.sandbox)[0].address
        assert f"{address}\tloud" in await text_of(engine, a.id)
        seen = [(event.kind, event.action) async for event in _until_connected(happened)]
        assert ("network", "create") in seen
        assert seen[-1] == ("network", "connect")


async def _until_connected(happened):  # type: ignore[no-untyped-def]  # an iterator of events
    async for event in happened:
        yield event
        if event.action == "connect":
            return
