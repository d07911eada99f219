"""A rollout, a roll-back and a pod that fits nowhere, on a cluster whose pods only seem to run."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from wherry.testing import Cluster


@pytest.fixture(scope="module")
def simulated() -> Iterator[Cluster]:
    with Cluster(simulated=2) as cluster:
        yield cluster


def web(image: str, *, cpu: str = "100m", script: dict[str, Any] | None = None) -> dict[str, Any]:
    """A Deployment of four. `script` says how each of its pods behaves."""
    metadata = {"labels": {"app": "web"}, "annotations": {"wherry.dev/simulate": json.dumps(script or {})}}
    container = {"name": "web", "image": image, "resources": {"requests": {"cpu": cpu}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 4,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": metadata, "spec": {"containers": [container]}},
        },
    }


def images(cluster: Cluster) -> set[str]:
    pods = cluster.request("GET", "/api/v1/namespaces/default/pods")["items"]
    return {pod["spec"]["containers"][0]["image"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def test_a_rollout_and_back(simulated: Cluster) -> None:
    simulated.apply(web("web:1"))
    simulated.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    simulated.apply(web("web:2", script={"start_s": 0.2}))
    simulated.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    simulated.until(lambda: images(simulated) == {"web:2"}, "all pods run web:2")
    simulated.kubectl("rollout", "undo", "deployment/web")
    simulated.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    simulated.until(lambda: images(simulated) == {"web:1"}, "all pods run web:1 again")


def test_the_scheduler_says_why_not(simulated: Cluster) -> None:
    pod = web("web:1", cpu="64")["spec"]["template"]
    simulated.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "large"}, "spec": pod["spec"]})
    simulated.wait("pod/large", "condition=PodScheduled=false")
    conditions = simulated.request("GET", "/api/v1/namespaces/default/pods/large")["status"]["conditions"]
    message = next(each["message"] for each in conditions if each["type"] == "PodScheduled")
    assert "2 Insufficient cpu" in message
