"""The pytest plugin: fixtures `cluster` (one for the session) and `namespace` (a fresh one for each test).

`--wherry-simulated` makes the session's cluster a simulated one, also with root.
"""

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from wherry.testing.cluster import Cluster


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our option."""
    parser.addoption("--wherry-simulated", action="store_true", help="use simulated pods for the `cluster` fixture")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> "Iterator[Cluster]":
    """A cluster for the whole session: real where there is root, else simulated."""
    from wherry.testing.cluster import Cluster

    simulated = 2 if request.config.getoption("--wherry-simulated") else None
    with Cluster(simulated=simulated) as made:
        yield made


@pytest.fixture
def namespace(cluster: "Cluster") -> "Iterator[str]":
    """A namespace of this test's own; it is deleted afterwards."""
    import secrets

    name = f"test-{secrets.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.request("POST", "/api/v1/namespaces", body)
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")
