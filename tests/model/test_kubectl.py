"""The real kubectl 1.37 against nothing but our tables: what it sends decodes, and what we describe it understands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.model.recorder import Recorder, recording

KUBECTL = Path(sys.executable).with_name("kubectl")
Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def server() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture(scope="module")
def kubectl(server: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    home = tmp_path_factory.mktemp("home")

    def run(*words: str, stdin: str = "") -> str:
        done = subprocess.run(
            [KUBECTL, f"--server={server.url}", "--kubeconfig=/dev/null", f"--cache-dir={home}/cache", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "HOME": str(home)},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


CREATED: list[tuple[str, str, dict[str, Any]]] = [
    (
        "deployment web --image=nginx:1 --replicas=2 --port=80",
        "/apis/apps/v1/namespaces/default/deployments",
        {"spec.replicas": 2, "spec.template.spec.containers.0.image": "nginx:1"},
    ),
    ("configmap conf --from-literal=a=b", "/api/v1/namespaces/default/configmaps", {"data": {"a": "b"}}),
    ("secret generic sec --from-literal=a=b", "/api/v1/namespaces/default/secrets", {"data": {"a": "Yg=="}}),
    (
        "service clusterip svc --tcp=80:8080",
        "/api/v1/namespaces/default/services",
        {"spec.ports.0.targetPort": 8080, "spec.type": "ClusterIP"},
    ),
    (
        "job once --image=busybox -- sleep 1",
        "/apis/batch/v1/namespaces/default/jobs",
        {"spec.template.spec.containers.0.command": ["sleep", "1"], "spec.template.spec.restartPolicy": "Never"},
    ),
    (
        "cronjob often --image=busybox --schedule=*/5 * * * *",
        "/apis/batch/v1/namespaces/default/cronjobs",
        {"spec.schedule": "*/5 * * * *"},
    ),
    (
        "role reader --verb=get,list --resource=pods,deployments.apps",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
        {"rules.0.verbs": ["get", "list"], "rules.1.apiGroups": ["apps"]},
    ),
    (
        "clusterrolebinding all --clusterrole=cluster-admin --user=ann",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        {"subjects.0.name": "ann", "roleRef.name": "cluster-admin"},
    ),
    ("namespace shop", "/api/v1/namespaces", {"metadata.name": "shop"}),
    ("serviceaccount robot", "/api/v1/namespaces/default/serviceaccounts", {"metadata.name": "robot"}),
    (
        "ingress front --rule=web.example.com/x*=web:80",
        "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
        {"spec.rules.0.host": "web.example.com", "spec.rules.0.http.paths.0.pathType": "Prefix"},
    ),
    (
        "quota few --hard=pods=3,requests.cpu=1500m",
        "/api/v1/namespaces/default/resourcequotas",
        {"spec.hard": {"pods": "3", "requests.cpu": "1500m"}},
    ),
    (
        "poddisruptionbudget keep --selector=app=web --min-available=50%",
        "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
        {"spec.minAvailable": "50%"},
    ),
    (
        "priorityclass high --value=1000 --description=x",
        "/apis/scheduling.k8s.io/v1/priorityclasses",
        {"value": 1000, "description": "x"},
    ),
]


@pytest.mark.parametrize(("words", "path", "expected"), CREATED, ids=[case[0].split()[0] for case in CREATED])
def test_what_kubectl_creates_decodes_whole(
    server: Recorder, kubectl: Kubectl, words: str, path: str, expected: dict[str, Any]
) -> None:
    head, _, schedule = words.partition("--schedule=")
    if schedule:
        kubectl("create", *head.split(), f"--schedule={schedule}")
    else:
        kubectl("create", *words.split())
    assert server.unknown == []
    method, asked, media = server.requests[-1]
    assert (method, asked, media) == ("POST", path, "application/vnd.kubernetes.protobuf")
    assert server.queries[-1]["fieldValidation"] == ["Strict"]  # so it found the parameter in our OpenAPI
    made = server.objects[server.made[-1]]
    for place, value in expected.items():
        assert reach(made, place) == value


def reach(obj: Any, path: str) -> Any:
    for step in path.split("."):
        obj = obj[int(step)] if isinstance(obj, list) else obj.get(step)
    return obj


def test_a_token_is_made(server: Recorder, kubectl: Kubectl) -> None:
    assert kubectl("create", "token", "robot", "--duration=10m").strip() == "made-up"
    assert server.requests[-1][2] == "application/vnd.kubernetes.protobuf"
    assert server.unknown == []


EXPLAINED = [
    ("deployment.spec.strategy", ["FIELD: strategy <DeploymentStrategy>", "rollingUpdate", "type\t<string>"]),
    ("pods", ["KIND:       Pod", "VERSION:    v1", "spec\t<PodSpec>"]),
    ("pod.spec.containers.livenessProbe.httpGet.port", ["FIELD: port <IntOrString>"]),
    ("pod.spec.containers.resources.limits", ["FIELD: limits <map[string]Quantity>"]),
    ("services.spec.ports", ["FIELD: ports <[]ServicePort>", "port\t<integer> -required-"]),
    ("hpa.spec.metrics", ["FIELD: metrics <[]MetricSpec>", "VERSION:    v2"]),
    ("crd.spec.versions.schema", ["FIELD: schema <CustomResourceValidation>"]),
    ("events.involvedObject", ["FIELD: involvedObject <ObjectReference>"]),
]


@pytest.mark.parametrize(("what", "lines"), EXPLAINED, ids=[case[0] for case in EXPLAINED])
def test_kubectl_explains_our_documents(kubectl: Kubectl, what: str, lines: list[str]) -> None:
    told = kubectl("explain", what)
    for line in lines:
        assert line in told, told


def test_kubectl_explains_all_of_a_kind(kubectl: Kubectl) -> None:
    told = kubectl("explain", "deployments", "--recursive")
    assert "terminationGracePeriodSeconds\t<integer>" in told


def test_apply_patches_by_our_merge_keys(server: Recorder, kubectl: Kubectl) -> None:
    def manifest(image: str, env: list[dict[str, str]]) -> str:
        web = {"name": "web", "image": image, "env": env}
        template = {"metadata": {"labels": {"app": "applied"}}, "spec": {"containers": [web]}}
        spec = {"selector": {"matchLabels": {"app": "applied"}}, "template": template}
        return json.dumps(
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "applied"}, "spec": spec}
        )

    kubectl("apply", "-f", "-", stdin=manifest("nginx:1", [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]))
    path = "/apis/apps/v1/namespaces/default/deployments/applied"
    server.objects[path]["spec"]["template"]["spec"]["containers"].append(
        {**server.objects[path]["spec"]["template"]["spec"]["containers"][0], "name": "injected"}
    )
    kubectl("apply", "-f", "-", stdin=manifest("nginx:2", [{"name": "B", "value": "3"}]))
    assert ("PATCH", path, "application/strategic-merge-patch+json") in server.requests
    containers = server.objects[path]["spec"]["template"]["spec"]["containers"]
    assert [one["name"] for one in containers] == ["web", "injected"]
    assert (containers[0]["image"], containers[0]["env"]) == ("nginx:2", [{"name": "B", "value": "3"}])
    assert containers[1]["image"] == "nginx:1"
    kubectl("label", "deployment", "applied", "tier=front")
    kubectl("set", "image", "deployment/applied", "web=nginx:3")
    assert server.objects[path]["metadata"]["labels"] == {"tier": "front"}
    assert server.objects[path]["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx:3"
