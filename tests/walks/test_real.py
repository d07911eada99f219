"""Real pods on two real nodes: what people check first when they try a cluster."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests import images
from tests.traces import traces
from tests.walks.conftest import Real

from wherry.testing import Cluster

pytestmark = pytest.mark.root
Json = dict[str, Any]
FOREVER = "while :; do sleep 1; done"


def pod(name: str, containers: Sequence[Json], **spec: Any) -> Json:
    body = {"terminationGracePeriodSeconds": 0, "containers": list(containers), **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": body}


def script(image: str, text: str, name: str = "main", **more: Any) -> Json:
    return {"name": name, "image": image, "command": ["sh", "-c", text], **more}


def web(name: str, image: str, replicas: int, **container: Any) -> list[Json]:
    """A deployment that serves, and its service."""
    labels = {"app": name}
    serving = {"name": "web", "image": image, "ports": [{"name": "http", "containerPort": 8080}], **container}
    template = {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [serving]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        },
    ]


class Here:
    """A cluster and a namespace of it."""

    def __init__(self, real: Real, space: str) -> None:
        self.real, self.cluster, self.space = real, real.cluster, space
        self.box = real.box

    def kubectl(self, *words: str, **more: Any) -> str:
        return self.cluster.kubectl("-n", self.space, *words, **more)

    def apply(self, *what: Json) -> None:
        self.cluster.apply(list(what), self.space)

    def ready(self, *names: str) -> None:
        for name in names:
            self.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=30s")

    def sh(self, name: str, text: str, *more: str) -> str:
        return self.kubectl("exec", name, *more, "--", "sh", "-c", text)

    def pod(self, name: str) -> Json:
        return self.cluster.request("GET", f"/api/v1/namespaces/{self.space}/pods/{name}")


@pytest.fixture
def here(real: Real, space: str) -> Here:
    return Here(real, space)


def test_logs_and_exec(here: Here) -> None:
    here.apply(pod("talk", [script(here.box, "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done")]))
    here.ready("talk")
    kubectl = Path(sys.executable).with_name("kubectl")
    words = [kubectl, "--kubeconfig", here.cluster.kubeconfig, "-n", here.space, "logs", "-f", "talk"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        lines = [following.stdout.readline() for _ in range(8)]
        following.kill()
    assert lines == [f"line {number}\n" for number in range(1, 9)]
    assert here.kubectl("logs", "talk", "--tail=1").startswith("line ")
    assert here.sh("talk", "echo out; echo err >&2") == "out\n"
    assert here.kubectl("exec", "-i", "talk", "--", "cat", input="to and fro\n" * 1000) == "to and fro\n" * 1000
    failed = here.kubectl("exec", "talk", "--", "sh", "-c", "exit 7", check=False)
    assert "exit code 7" in failed
    from kubernetes import client, config
    from kubernetes.stream import stream

    with config.new_client_from_config(here.cluster.kubeconfig) as connection:
        core = client.CoreV1Api(connection)
        said = stream(
            core.connect_get_namespaced_pod_exec, "talk", here.space, command=["sh", "-c", "echo from python; id -u"],
            stderr=True, stdin=False, stdout=True, tty=False,
        )  # fmt: skip
    assert said == "from python\n0\n"


def test_configuration_by_environment_and_files(here: Here) -> None:
    here.kubectl("create", "configmap", "settings", "--from-literal=colour=blue", "--from-literal=size=9")
    here.kubectl("create", "secret", "generic", "keys", "--from-literal=password=hush")
    env = [
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
        {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "BOTH", "value": "$(ME)-$(COLOUR)"},
        {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
    ]
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("settings", "keys", "about", "shared")]
    volumes = [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o400}},
        {"name": "about", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "shared", "emptyDir": {}},
    ]
    first = script(
        here.box, FOREVER, env=env, volumeMounts=mounts, envFrom=[{"configMapRef": {"name": "settings", "optional": True}}],
        resources={"limits": {"memory": "64Mi"}},
    )  # fmt: skip
    second = script(here.box, FOREVER, "second", volumeMounts=[{"name": "shared", "mountPath": "/other"}])
    inits = [
        script(here.box, "echo one > /shared/order", "one", volumeMounts=[mounts[3]]),
        script(here.box, "echo two >> /shared/order", "two", volumeMounts=[mounts[3]]),
    ]
    here.apply(pod("set", [first, second], initContainers=inits, volumes=volumes))
    here.ready("set")
    found = here.pod("set")
    said = here.sh("set", "echo $COLOUR $PASSWORD $ME $IP $NODE $BOTH $LIMIT $size", "-c", "main").split()
    node = found["spec"]["nodeName"]
    assert said == ["blue", "hush", "set", found["status"]["podIP"], node, "set-blue", str(64 << 20), "9"]
    assert here.sh("set", "cat /settings/colour /keys/password /about/labels", "-c", "main") == 'bluehushapp="set"'
    here.sh("set", "echo three >> /shared/order", "-c", "main")
    assert here.sh("set", "cat /other/order", "-c", "second").split() == ["one", "two", "three"]
    assert [each["state"]["terminated"]["exitCode"] for each in found["status"]["initContainerStatuses"]] == [0, 0]


ASK = """
import json, ssl, urllib.request
place = "/var/run/secrets/kubernetes.io/serviceaccount/"
namespace = open(place + "namespace").read()
request = urllib.request.Request("https://kubernetes.default.svc/api/v1/namespaces/" + namespace + "/pods")
request.add_header("Authorization", "Bearer " + open(place + "token").read())
answer = urllib.request.urlopen(request, context=ssl.create_default_context(cafile=place + "ca.crt"), timeout=10)
print(" ".join(item["metadata"]["name"] for item in json.load(answer)["items"]))
"""


def test_a_pod_asks_the_api_with_its_own_token(here: Here) -> None:
    """By name, with our CA: the host's Python, seen through a volume, does what any client library does."""
    here.kubectl("create", "serviceaccount", "reader")
    here.kubectl("create", "role", "reader", "--verb=list", "--resource=pods")
    here.kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={here.space}:reader")
    volumes = [{"name": "usr", "hostPath": {"path": "/usr"}}]
    mounts = [{"name": "usr", "mountPath": "/usr", "readOnly": True}]
    for node in ("node-1", "node-2"):
        asker = script(here.box, FOREVER, volumeMounts=mounts)
        here.apply(pod(f"asks-{node}", [asker], serviceAccountName="reader", volumes=volumes, nodeName=node))
    here.ready("asks-node-1", "asks-node-2")
    for node in ("node-1", "node-2"):
        said = here.kubectl("exec", f"asks-{node}", "--", "/usr/bin/python3", "-c", ASK)
        assert said.split() == ["asks-node-1", "asks-node-2"]
    here.kubectl("delete", "rolebinding", "reader")
    refused = here.kubectl("exec", "asks-node-1", "--", "/usr/bin/python3", "-c", ASK, check=False)
    assert "403" in refused


def test_probes(here: Here) -> None:
    """A failing liveness probe restarts; a failing readiness probe takes the pod out of its service."""
    liveness = {"exec": {"command": ["test", "!", "-e", "/tmp/sick"]}, "periodSeconds": 1, "failureThreshold": 1}
    here.apply(pod("lives", [script(here.box, FOREVER, livenessProbe=liveness)]))
    readiness = {"exec": {"command": ["test", "!", "-e", "/tmp/busy"]}, "periodSeconds": 1, "failureThreshold": 1}
    here.apply(*web("gated", here.real.web, 2, readinessProbe=readiness))
    here.ready("lives")
    here.sh("lives", "touch /tmp/sick")
    status = "jsonpath={.status.containerStatuses[0].restartCount}"
    here.cluster.until(lambda: int(here.kubectl("get", "pod", "lives", "-o", status)) >= 1, "a restart")
    assert "Unhealthy" in here.kubectl("get", "events", "--field-selector=involvedObject.name=lives")
    here.kubectl("rollout", "status", "deployment/gated", "--timeout=30s")
    name = here.kubectl("get", "pods", "-l", "app=gated", "-o", "jsonpath={.items[0].metadata.name}")
    address = here.pod(name)["status"]["podIP"]

    def ready_addresses() -> set[str]:
        path = f"/apis/discovery.k8s.io/v1/namespaces/{here.space}/endpointslices"
        return {
            one["addresses"][0]
            for each in here.cluster.request("GET", path)["items"]
            for one in each["endpoints"] or ()
            if one["conditions"]["ready"]
        }

    assert address in here.cluster.until(lambda: (len(r := ready_addresses()) == 2) and r, "two ready endpoints")
    here.sh(name, "touch /tmp/busy")
    here.cluster.until(lambda: address not in ready_addresses() and len(ready_addresses()) == 1, "one ready endpoint")
    cluster_ip = here.kubectl("get", "service", "gated", "-o", "jsonpath={.spec.clusterIP}")
    here.cluster.until(lambda: name not in {fetch(cluster_ip) for _ in range(8)}, "no request comes to it")
    here.sh(name, "rm /tmp/busy")
    here.cluster.until(lambda: len(ready_addresses()) == 2, "two again")


def is_ready(pod: Json) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


def fetch(address: str, port: int = 80) -> str:
    """Ask a service from the host; return the name of the pod that answered."""
    import urllib.request

    with urllib.request.urlopen(f"http://{address}:{port}/cgi-bin/hello", timeout=5) as answer:
        return answer.read().decode().split()[0]


def test_a_pod_that_takes_too_much_memory_is_shown_as_oomkilled(here: Here) -> None:
    eats = script(here.box, "dd if=/dev/zero of=/dev/null bs=256M count=9", resources={"limits": {"memory": "24Mi"}})
    here.apply(pod("eats", [eats], restartPolicy="Never"))
    done = "jsonpath={.status.phase}=Failed"
    here.kubectl("wait", "pod/eats", f"--for={done}", "--timeout=30s")
    ended = here.pod("eats")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_names_and_services_on_every_node(here: Here) -> None:
    """From the host, from pods of both nodes, and from a pod that is its own service; by address and by name."""
    here.apply(*web("web", here.real.web, 2))
    askers = [pod(f"ask-{node}", [script(here.box, FOREVER)], nodeName=node) for node in ("node-1", "node-2")]
    here.apply(*askers)
    here.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    here.ready("ask-node-1", "ask-node-2")
    pods = json.loads(here.kubectl("get", "pods", "-l", "app=web", "-o", "json"))["items"]
    assert {each["spec"]["nodeName"] for each in pods} == {"node-1", "node-2"}
    names = {each["metadata"]["name"] for each in pods}
    cluster_ip = here.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    here.cluster.until(lambda: {fetch(cluster_ip) for _ in range(12)} == names, "both answer the host")
    for node in ("node-1", "node-2"):
        looked = here.sh(f"ask-{node}", f"nslookup web.{here.space}.svc.cluster.local")
        assert f"Address: {cluster_ip}" in looked
        for each in pods:  # pod to pod, also across nodes
            ask = f"timeout 5 wget -qO- http://{each['status']['podIP']}:8080/cgi-bin/hello"
            assert here.sh(f"ask-{node}", ask).split()[0] == each["metadata"]["name"]
        many = f"for i in 1 2 3 4 5 6 7 8 9 10 11 12; do timeout 5 wget -qO- http://{cluster_ip}/cgi-bin/hello; done"
        assert {line.split()[0] for line in here.sh(f"ask-{node}", many).splitlines()} == names
        absent = here.sh(f"ask-{node}", f"nslookup none.{here.space}.svc.cluster.local 2>&1 || true")
        assert "NXDOMAIN" in absent or "can't find" in absent
    for each in pods:  # a pod of the service reaches it, itself included
        many = f"for i in 1 2 3 4 5 6 7 8 9 10 11 12; do timeout 5 wget -qO- http://{cluster_ip}/cgi-bin/hello; done"
        assert {line.split()[0] for line in here.sh(each["metadata"]["name"], many).splitlines()} == names


def test_after_a_node_dies_its_pods_run_on_the_other(tmp_path: Path) -> None:
    """Profile fast-failover; `wherry node kill` is the power cut."""
    with Cluster(nodes=2, profile="fast-failover") as cluster:
        place = images.layout(tmp_path / "web", "1", entrypoint=("/bin/sh", "/web"))
        image = images.publish(cluster.root, cluster.environment["WHERRY_REGISTRY"], place, "web:1")
        cluster.apply(web("web", image, 3), "default")
        cluster.wait("deployment/web", "Available")
        cluster_ip = cluster.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
        cluster.wherry("node", "kill", "node-2")

        def on_one() -> bool:
            pods = cluster.request("GET", "/api/v1/namespaces/default/pods")["items"]
            return [
                (each["spec"]["nodeName"], is_ready(each))
                for each in pods
                if "deletionTimestamp" not in each["metadata"]
            ] == [("node-1", True)] * 3  # fmt: skip

        cluster.until(on_one, "three ready pods on the node that is left", 40)
        assert len({fetch(cluster_ip) for _ in range(20)}) == 3
        cluster.wherry("node", "remove", "node-2")
        root = cluster.root
    assert traces(root) == []
