"""The clusters that walks share: one of simulated nodes, one of two real nodes with images in its registry."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests import images
from tests.traces import traces
from tests.walks.clients import Engine, rootfs

from wherry.testing import Cluster


@pytest.fixture(scope="package")
def simulated() -> Iterator[Cluster]:
    with Cluster(nodes=0, simulated=2) as cluster:
        yield cluster
    assert traces(cluster.root) == []


@dataclass(frozen=True)
class Real:
    """Two real nodes, and the names of images in their registry: `box` needs a command, `web` in two versions serves."""

    cluster: Cluster
    box: str
    web: str
    web2: str


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    place = tmp_path_factory.mktemp("images")
    with Cluster(nodes=2) as cluster:
        registry = cluster.environment["WHERRY_REGISTRY"]

        def put(name: str, version: str, *entrypoint: str) -> str:
            layout = images.layout(place / name.replace(":", "-"), version, entrypoint=entrypoint)
            return images.publish(cluster.root, registry, layout, name)

        yield Real(
            cluster, put("box:1", "1"), put("web:1", "1", "/bin/sh", "/web"), put("web:2", "2", "/bin/sh", "/web")
        )
    assert traces(cluster.root) == []


@pytest.fixture(scope="package")
def engine(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The first node's Docker socket, with the image `busybox`; its clients have a home of their own."""
    place = tmp_path_factory.mktemp("client")
    (place / "rootfs.tar").write_bytes(rootfs())
    made = Engine(real.cluster, str(place))
    changes = ("--change", "ENV PATH=/bin", "--change", 'CMD ["sh"]')
    made.docker("import", *changes, str(place / "rootfs.tar"), "busybox:latest")
    return made


@pytest.fixture
def space(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test's own in the cluster that it uses."""
    import secrets

    real = request.getfixturevalue("real") if "real" in request.fixturenames else None
    cluster: Cluster = real.cluster if real else request.getfixturevalue("simulated")
    name = f"walk-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
