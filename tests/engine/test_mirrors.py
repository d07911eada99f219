"""Mirrors by hosts.toml: asked in their order, without credentials, and the registry itself last."""

from pathlib import Path

import pytest
from tests.engine.test_registries import Registry, World, world

from wherry.clock import RealClock
from wherry.content.hosts import Host, hosts_for, parse
from wherry.content.local import LocalContent
from wherry.engine.events import Events
from wherry.engine.images import Images
from wherry.engine.settings import EngineSettings
from wherry.errors import Forbidden, Invalid, Unsupported
from wherry.wire.http import Request, Response
from wherry.wire.server import Server

__all__ = ["world"]
ORIGIN = "https://registry-1.docker.io"


def test_what_hosts_toml_says(tmp_path: Path) -> None:
    assert hosts_for(tmp_path, "docker.io", ORIGIN) == [Host(ORIGIN, origin=True)]
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default/hosts.toml").write_text('[host."http://m:5000"]\ncapabilities = ["pull"]\n')
    assert hosts_for(tmp_path, "docker.io", ORIGIN) == [
        Host("http://m:5000", resolves=False, pushes=False),
        Host(ORIGIN, origin=True),
    ]
    text = 'server = "https://other"\nskip_verify = true\n[host."m"]\nca = "x.pem"\n'
    found = parse(text, tmp_path / "hosts.toml", ORIGIN)
    assert found == [Host("https://m", ca=(str(tmp_path / "x.pem"),)), Host("https://other", origin=True, verify=False)]
    with pytest.raises(Invalid, match=r"x\.pem"):
        found[0].tls()
    for wrong, error in (
        ("[host", Invalid),
        ('[host."https://m"]\ndial_timeout = "1s"', Unsupported),
        ('[host."ftp://m"]', Invalid),
        ('[host."m"]\ncapabilities = ["fly"]', Invalid),
        ('[host."m"]\nclient = [["a", "b", "c"]]', Invalid),
        ('[host."m"]\nskip_verify = "yes"', Invalid),
        ('[host."m".header]\nx = 1', Invalid),
        ('host = "m"', Invalid),
    ):
        with pytest.raises(error):
            parse(wrong, tmp_path / "hosts.toml", ORIGIN)


async def test_what_a_mirror_is_asked_and_by_whom(world: World, tmp_path: Path) -> None:
    """Below a path of its own, with headers, without credentials, and for which registry; the origin with them."""
    images = Images(world.content, EngineSettings(), Events(), lambda _: [])
    mirror = Registry(world.content)
    digest = await world.make(images, world.content, "far.example/a:1")
    seen: list[tuple[str, str | None, str | None, str | None]] = []

    async def handle(request: Request) -> Response:
        headers = request.headers
        seen.append((request.path, headers.get("x-team"), headers.get("authorization"), request.first("ns")))
        if not request.path.startswith("/store/v2/"):
            return Response(404)
        return await mirror.handle(Request.local(request.method, request.path.removeprefix("/store")))

    mirror.tags["a:1"] = digest  # type: ignore[assignment]
    (tmp_path / "far.example").mkdir()
    async with Server(handle) as server:
        host, port = await server.start_tcp("127.0.0.1", 0)
        there = f"http://{host}:{port}"
        text = f'server = "{there}"\n[host."{there}/closed"]\noverride_path = true\n'
        text += f'[host."{there}/store"]\n[host."{there}/store".header]\nx-team = ["boats", "trains"]\n'
        (tmp_path / "far.example/hosts.toml").write_text(text)
        other = LocalContent.open(tmp_path / "content", clock=RealClock())
        pulling = Images(other, EngineSettings(hosts_dir=str(tmp_path)), Events(), lambda _: [])
        await pulling.pull("far.example/a:1", {"username": "me", "password": "secret"}, None)
        await other.close()
    assert seen[0] == ("/closed/a/manifests/1", None, None, "far.example")
    assert seen[1] == ("/store/v2/a/manifests/1", "boats, trains", None, "far.example")
    assert {row[2] for row in seen} == {None}


async def test_a_client_certificate_is_shown(tmp_path: Path) -> None:
    found = parse('[host."m"]\nclient = [["c.pem", "k.pem"], "both.pem"]\n', tmp_path / "hosts.toml", ORIGIN)
    assert found[0].client == ((str(tmp_path / "c.pem"), str(tmp_path / "k.pem")), (str(tmp_path / "both.pem"), ""))
    with pytest.raises(Invalid, match=r"client .*c\.pem"):
        found[0].tls()
    (tmp_path / "far.example").mkdir()
    (tmp_path / "far.example/hosts.toml").write_text('capabilities = ["pull", "resolve"]\n')
    world = World(tmp_path)
    images = Images(world.content, EngineSettings(hosts_dir=str(tmp_path)), Events(), lambda _: [])
    await world.make(images, world.content, "far.example/a:1")
    with pytest.raises(Forbidden, match=r"hosts\.toml"):
        await images.push("far.example/a:1", None, None)
    await world.content.close()
    await world.cluster.content.close()


async def test_a_mirror_that_may_be_pulled_from_is_asked_first(world: World, tmp_path: Path) -> None:
    mirror = Registry(world.content)
    digest = await world.make(
        Images(world.content, EngineSettings(), Events(), lambda _: []), world.content, "far.example/a:1"
    )
    mirror.tags["a:1"] = digest  # type: ignore[assignment]
    (tmp_path / "far.example").mkdir()
    async with Server(mirror.handle) as server:
        host, port = await server.start_tcp("127.0.0.1", 0)
        hosts = f'[host."http://127.0.0.1:1"]\ncapabilities = ["push"]\n[host."http://{host}:{port}"]\n'
        (tmp_path / "far.example/hosts.toml").write_text(hosts)
        other = LocalContent.open(tmp_path / "content", clock=RealClock())
        there = Images(other, EngineSettings(hosts_dir=str(tmp_path)), Events(), lambda _: [])
        assert (await there.pull("far.example/a:1", None, None)).digest == digest
        await other.close()
