"""Defaults: every `Defaults to` of the descriptions is filled in, or excepted here by name with the reason."""

import copy
import re
from typing import Any

import pytest

from tests.model.described import EXCEPTED, HANDLED
from tests.model.samples import SAMPLED, admitted, put, sample
from wherry.model import admit, kinds, schema
from wherry.model.kinds import Kind


def described() -> list[str]:
    """Every field whose description says what it defaults to: `core.v1.PodSpec.dnsPolicy`."""
    opened = schema.load()
    found: list[str] = []
    for name in opened.names:
        short = ".".join(name.split(".")[-3:])
        for field, text in opened.descriptions(name).items():
            if re.search("defaults to", text, re.IGNORECASE):
                found.append(f"{short}.{field}".rstrip("."))
    return found


def test_every_default_that_is_described_is_handled_or_excepted() -> None:
    handled = {name for name, *_ in HANDLED}
    assert sorted(described()) == sorted(handled | set(EXCEPTED))
    assert not handled & set(EXCEPTED)


def reach(obj: Any, path: str) -> Any:
    for step in path.split("."):
        obj = obj[int(step)] if isinstance(obj, list) else obj.get(step)
    return obj


@pytest.mark.parametrize(
    ("kind", "obj", "path", "expected"), [case[1:] for case in HANDLED], ids=[case[0] for case in HANDLED]
)
def test_a_default_is_filled_in(kind: Kind, obj: dict[str, Any], path: str, expected: Any) -> None:
    obj = copy.deepcopy(obj)
    assert not admit.prune(kind, obj).wrong
    admit.default(kind, obj)
    assert reach(obj, path) == expected


@pytest.mark.parametrize("kind", SAMPLED, ids=lambda kind: kind.plural)
def test_defaults_are_right_and_twice_is_once(kind: Kind) -> None:
    obj = admitted(kind)
    before = copy.deepcopy(obj)
    assert admit.check(kind, obj) == []
    admit.default(kind, obj)
    assert obj == before
    found = admit.prune(kind, obj)
    assert not found.unknown
    assert not found.wrong
    assert admit.check(kind, obj, before) == []


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("localhost:5000/nginx", "Always"),
        ("localhost:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:" + "0" * 64, "IfNotPresent"),
    ],
)
def test_the_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    pod = put(sample(kinds.PODS), "spec.containers.0.image", image)
    admit.default(kinds.PODS, pod)
    assert pod["spec"]["containers"][0]["imagePullPolicy"] == policy


def test_what_is_said_is_kept() -> None:
    deployment = put(sample(kinds.DEPLOYMENTS), "spec.replicas", 0)
    put(deployment, "spec.strategy", {"type": "Recreate"})
    admit.default(kinds.DEPLOYMENTS, deployment)
    assert deployment["spec"]["replicas"] == 0
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_a_service_gets_ports_and_policies() -> None:
    service = admitted(kinds.SERVICES)
    assert service["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert service["spec"]["internalTrafficPolicy"] == "Cluster"
    assert "externalTrafficPolicy" not in service["spec"]
    balanced = put(sample(kinds.SERVICES), "spec.type", "LoadBalancer")
    put(balanced, "spec.sessionAffinity", "ClientIP")
    admit.default(kinds.SERVICES, balanced)
    assert balanced["spec"]["externalTrafficPolicy"] == "Cluster"
    assert balanced["spec"]["allocateLoadBalancerNodePorts"] is True
    assert balanced["spec"]["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}


def test_a_secrets_plain_strings_become_data() -> None:
    secret = put(sample(kinds.SECRETS), "stringData", {"b": "grün"})
    admit.default(kinds.SECRETS, secret)
    assert secret["data"] == {"a": "Yg==", "b": "Z3LDvG4="}
    assert "stringData" not in secret
    assert secret["type"] == "Opaque"


def test_others() -> None:
    assert admitted(kinds.NAMESPACES)["metadata"]["labels"] == {"kubernetes.io/metadata.name": "web"}
    controller = admitted(kinds.REPLICATIONCONTROLLERS)
    assert controller["spec"]["selector"] == controller["metadata"]["labels"] == {"app": "web"}
    limits = admitted(kinds.LIMITRANGES)["spec"]["limits"][0]
    assert (limits["default"], limits["defaultRequest"]) == ({"cpu": "2"}, {"cpu": "2"})
    claims = admitted(kinds.STATEFULSETS)["spec"]["volumeClaimTemplates"]
    assert (claims[0]["kind"], claims[0]["status"]["phase"]) == ("PersistentVolumeClaim", "Pending")
    pod = put(sample(kinds.PODS), "spec.hostNetwork", True)
    put(pod, "spec.containers.0.ports", [{"containerPort": 80}])
    put(pod, "spec.volumes", [{"name": "v"}])
    put(pod, "spec.serviceAccountName", "web")
    admit.default(kinds.PODS, pod)
    assert pod["spec"]["containers"][0]["ports"][0]["hostPort"] == 80
    assert pod["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert pod["spec"]["serviceAccount"] == "web"
    indexed = put(sample(kinds.JOBS), "spec.backoffLimitPerIndex", 1)
    admit.default(kinds.JOBS, indexed)
    assert indexed["spec"]["backoffLimit"] == 2**31 - 1
    autoscaler = put(sample(kinds.HORIZONTALPODAUTOSCALERS), "spec.behavior", {})
    admit.default(kinds.HORIZONTALPODAUTOSCALERS, autoscaler)
    assert autoscaler["spec"]["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
