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
from wherry.errors import Invalid, Unsupported
from wherry.wire.server import Server

__all__ = ["world"]
ORIGIN = "https://registry-1.docker.io"


def test_what_hosts_toml_says(tmp_path: Path) -> None:
    assert hosts_for(tmp_path, "docker.io", ORIGIN) == [Host(ORIGIN, origin=True)]
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default/hosts.toml").write_text('[host."http://m:5000"]\ncapabilities = ["pull"]\n')
    assert hosts_for(tmp_path, "docker.io", ORIGIN) == [
        Host("http://m:5000", resolves=False),
        Host(ORIGIN, origin=True),
    ]
    text = 'server = "https://other"\nskip_verify = true\n[host."m"]\nca = "x.pem"\n'
    found = parse(text, tmp_path / "hosts.toml", ORIGIN)
    assert found == [Host("https://m", ca=(str(tmp_path / "x.pem"),)), Host("https://other", origin=True, verify=False)]
    with pytest.raises(Invalid, match=r"x\.pem"):
        found[0].tls()
    for wrong, error in (
        ("[host", Invalid),
        ('[host."https://m/v2"]', Unsupported),
        ('[host."m"]\nclient = "c"', Unsupported),
    ):
        with pytest.raises(error):
            parse(wrong, tmp_path / "hosts.toml", ORIGIN)


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
