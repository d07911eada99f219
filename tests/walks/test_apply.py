"""The walk of somebody with the stock kubectl and the Python client, on simulated nodes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wherry.testing import Cluster, ClusterError

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web:1
        ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
"""


def test_apply_look_change_and_delete(simulated: Cluster, space: str) -> None:
    def run(*words: str, **more: Any) -> str:
        return simulated.kubectl("-n", space, *words, **more)

    assert run("apply", "-f", "-", input=WEB).splitlines() == ["deployment.apps/web created", "service/web created"]
    assert "successfully rolled out" in run("rollout", "status", "deployment/web", "--timeout=30s")
    assert "unchanged" in run("apply", "-f", "-", input=WEB)
    wide = run("get", "pods", "-o", "wide").splitlines()
    assert " ".join(wide[0].split()) == "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES"
    assert all("1/1" in line and "Running" in line and " sim-" in line for line in wide[1:])
    assert len(wide) == 3
    assert {line.split()[6] for line in wide[1:]} == {"sim-1", "sim-2"}
    assert run("get", "deploy", "web").splitlines()[1].split()[:4] == ["web", "2/2", "2", "2"]
    assert "clusterIP: 10." in run("get", "svc", "web", "-o", "yaml")
    assert run("get", "deploy", "web", "-o", "jsonpath={.status.readyReplicas} {..containers[0].image}") == "2 web:1"
    assert run("get", "pods", "-l", "app=web", "-o", "name").count("pod/web-") == 2
    slices = json.loads(run("get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", "json"))
    assert sum(len(each["endpoints"]) for each in slices["items"]) == 2
    described = run("describe", "deployment", "web")
    assert "2 desired | 2 updated | 2 total | 2 available | 0 unavailable" in described
    assert "Scaled up replica set" in described
    pod = run("get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
    text = run("describe", "pod", pod)
    assert "Node:" in text
    assert "Started" in text
    assert "labeled" in run("label", "deployment", "web", "tier=front")
    assert run("get", "deploy", "-l", "tier=front", "-o", "name") == "deployment.apps/web\n"
    assert "scaled" in run("scale", "deployment/web", "--replicas=5")
    run("wait", "deployment/web", "--for=jsonpath={.status.readyReplicas}=5", "--timeout=30s")
    run("set", "image", "deployment/web", "web=web:2")
    run("rollout", "status", "deployment/web", "--timeout=30s")
    images = "jsonpath={.items[*].spec.containers[0].image}"
    assert set(run("get", "pods", "--field-selector=status.phase=Running", "-o", images).split()) >= {"web:2"}
    assert "REVISION" in run("rollout", "history", "deployment/web")
    assert "rolled back" in run("rollout", "undo", "deployment/web")
    run("rollout", "status", "deployment/web", "--timeout=30s")
    assert run("get", "deploy", "web", "-o", "jsonpath={..image}") == "web:1"
    assert "restarted" in run("rollout", "restart", "deployment/web")
    run("rollout", "status", "deployment/web", "--timeout=30s")
    assert "deleted" in run("delete", "deployment,service", "web")
    run("wait", "pods", "-l", "app=web", "--for=delete", "--timeout=30s")
    assert "No resources found" in run("get", "pods,deployments,services,replicasets", check=False)


def test_create_explain_and_ask(simulated: Cluster, space: str) -> None:
    """`kubectl create` sends protobuf."""

    def run(*words: str) -> str:
        return simulated.kubectl("-n", space, *words)

    assert "created" in run("create", "configmap", "c", "--from-literal=a=1", "--from-literal=b=two")
    assert run("get", "configmap", "c", "-o", "jsonpath={.data.b}") == "two"
    run("create", "secret", "generic", "s", "--from-literal=password=hush")
    assert run("get", "secret", "s", "-o", "jsonpath={.data.password}") == "aHVzaA=="
    assert "hush" not in run("describe", "secret", "s")
    run("create", "serviceaccount", "robot")
    token = run("create", "token", "robot", "--duration=10m").strip()
    assert token.count(".") == 2
    own = ["--kubeconfig=/dev/null", f"--server={server(simulated)}", "--insecure-skip-tls-verify", f"--token={token}"]
    assert f"system:serviceaccount:{space}:robot" in simulated.kubectl(*own, "auth", "whoami")
    with pytest.raises(ClusterError, match=r"cannot list resource .*configmaps"):
        simulated.kubectl(*own, "-n", space, "get", "configmaps")
    run("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
    run("create", "rolebinding", "robot", "--role=reader", f"--serviceaccount={space}:robot")
    assert "c " in simulated.kubectl(*own, "-n", space, "get", "configmaps")
    assert run("auth", "can-i", "create", "deployments") == "yes\n"
    robot = f"--as=system:serviceaccount:{space}:robot"
    assert run("auth", "can-i", "list", "configmaps", robot) == "yes\n"
    assert simulated.kubectl("-n", space, "auth", "can-i", "delete", "pods", robot, check=False).strip() == "no"
    assert "template" in run("explain", "deployment.spec")
    assert "Compute Resources" in run("explain", "pod.spec.containers.resources")
    assert "deployments" in run("api-resources")
    run("create", "deployment", "web", "--image=web:1", "--replicas=2")
    run("wait", "deployment/web", "--for=condition=Available", "--timeout=30s")
    run("run", "one", "--image=web:1", "--restart=Never")
    run("wait", "pod/one", "--for=condition=Ready", "--timeout=30s")
    run("delete", "pod", "one")


def server(cluster: Cluster) -> str:
    return cluster.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")


def test_watching_shows_each_change(simulated: Cluster, space: str) -> None:
    kubectl = Path(sys.executable).with_name("kubectl")
    words = [
        kubectl,
        "--kubeconfig",
        simulated.kubeconfig,
        "-n",
        space,
        "get",
        "configmaps",
        "-w",
        "--output-watch-events",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            simulated.kubectl("-n", space, "create", "configmap", "seen")
            simulated.kubectl("-n", space, "label", "configmap", "seen", "a=b")
            simulated.kubectl("-n", space, "delete", "configmap", "seen")
            events: list[str] = []
            for line in watching.stdout:
                events += [line.split()[0]] if " seen " in line else []
                if events[-1:] == ["DELETED"]:
                    break
        finally:
            watching.kill()
    assert events in (["ADDED", "MODIFIED", "DELETED"], ["ADDED", "DELETED"])


def test_the_python_client(simulated: Cluster, space: str) -> None:
    from kubernetes import client, config, watch
    from kubernetes.client.exceptions import ApiException

    with config.new_client_from_config(simulated.kubeconfig) as connection:
        core, apps = client.CoreV1Api(connection), client.AppsV1Api(connection)
        container = client.V1Container(name="web", image="web:1")
        template = client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(labels={"app": "py"}), spec=client.V1PodSpec(containers=[container])
        )
        spec = client.V1DeploymentSpec(
            replicas=2, selector=client.V1LabelSelector(match_labels={"app": "py"}), template=template
        )
        apps.create_namespaced_deployment(
            space, client.V1Deployment(metadata=client.V1ObjectMeta(name="py"), spec=spec)
        )
        ready = 0
        for event in watch.Watch().stream(apps.list_namespaced_deployment, space, timeout_seconds=30):
            ready = event["object"].status.ready_replicas or 0
            if ready == 2:
                break
        assert ready == 2
        apps.patch_namespaced_deployment("py", space, {"spec": {"replicas": 3}})
        simulated.until(lambda: len(core.list_namespaced_pod(space, label_selector="app=py").items) == 3, "three pods")
        pods = core.list_namespaced_pod(space, label_selector="app=py", limit=2)
        assert len(pods.items) == 2
        assert pods.metadata._continue
        rest = core.list_namespaced_pod(space, label_selector="app=py", limit=2, _continue=pods.metadata._continue)
        assert len(rest.items) == 1
        apps.delete_namespaced_deployment("py", space, propagation_policy="Foreground")
        simulated.until(lambda: not core.list_namespaced_pod(space, label_selector="app=py").items, "all are gone")
        with pytest.raises(ApiException) as caught:
            apps.read_namespaced_deployment("py", space)
        assert (caught.value.status, json.loads(caught.value.body)["reason"]) == (404, "NotFound")
