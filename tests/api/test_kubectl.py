"""What people do with the stock kubectl, against the API alone: no controller runs, so statuses are set by hand."""

import asyncio
import json
from typing import Any

from wherry.clock import machine

from .conftest import Running

Json = dict[str, Any]

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
        ports: [{containerPort: 8080}]
        env: [{name: A, value: "1"}]
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"""


async def test_apply_change_and_delete(api: Running) -> None:
    run = api.kubectl
    assert "deployment.apps/web created" in (out := await run("apply", "-f", "-", stdin=WEB))
    assert "service/web created" in out
    out = await run("apply", "-f", "-", stdin=WEB)
    assert "deployment.apps/web unchanged" in out
    assert "service/web unchanged" in out
    assert "+  replicas: 3" in await run("diff", "-f", "-", stdin=WEB.replace("replicas: 2", "replicas: 3"), fails=True)
    assert "configured" in await run("apply", "-f", "-", stdin=WEB.replace("web:1", "web:2"))
    assert await run("get", "deploy", "web", "-o", "jsonpath={..image} {.spec.replicas}") == "web:2 2"
    assert "0/2" in await run("get", "deploy", "web", "-o", "wide")
    service = json.loads(await run("get", "svc", "web", "-o", "json"))
    assert 30000 <= service["spec"]["ports"][0]["nodePort"] <= 32767
    assert "generation: 2" in await run("get", "deploy", "web", "-o", "yaml")
    await run("label", "deploy", "web", "tier=front")
    await run("annotate", "deploy", "web", "note=hello")
    await run("scale", "deploy", "web", "--replicas=5", "--current-replicas=2")
    patch = '{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"B","value":"2"}]}]}}}}'
    await run("patch", "deploy", "web", "-p", patch)
    await run("patch", "deploy", "web", "--type=json", "-p", '[{"op":"add","path":"/spec/paused","value":true}]')
    wrong = '[{"op":"replace","path":"/spec/none","value":1}]'
    assert "none" in await run("patch", "deploy", "web", "--type=json", "-p", wrong, fails=True)
    await run("set", "image", "deploy/web", "web=web:3")
    found = json.loads(await run("get", "deploy", "-l", "tier=front", "-o", "json"))["items"][0]
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert found["metadata"]["annotations"]["note"] == "hello"
    assert (found["spec"]["replicas"], found["spec"]["paused"]) == (5, True)
    assert {one["name"] for one in container["env"]} == {"A", "B"}
    assert container["image"] == "web:3"
    found["spec"]["replicas"] = 7
    del found["spec"]["paused"]
    await run("replace", "-f", "-", stdin=json.dumps(found))
    stale = await run("replace", "-f", "-", stdin=json.dumps(found), fails=True)
    assert "the object has been modified" in stale
    assert "7 desired" in await run("describe", "deploy", "web")
    assert "deleted" in await run("delete", "deploy,svc", "web")
    assert "NotFound" in await run("get", "deploy", "web", fails=True)


async def test_typed_creations_arrive_as_protobuf(api: Running) -> None:
    run = api.kubectl
    await run("create", "namespace", "shop")
    create = ("create", "-n", "shop")
    await run(*create, "deployment", "web", "--image=web:1", "--replicas=2", "--port=80")
    await run(*create, "configmap", "a", "--from-literal=x=1")
    await run(*create, "secret", "generic", "s", "--from-literal=password=x")
    await run(*create, "service", "nodeport", "web", "--tcp=80:8080")
    await run(*create, "job", "once", "--image=web:1", "--", "true")
    await run(*create, "cronjob", "often", "--image=web:1", "--schedule=*/5 * * * *", "--", "true")
    await run(*create, "ingress", "web", "--rule=example.com/*=web:80")
    await run(*create, "quota", "q", "--hard=pods=10")
    await run(*create, "role", "reader", "--verb=get,list", "--resource=pods")
    await run(*create, "rolebinding", "reader", "--role=reader", "--serviceaccount=shop:robot")
    await run(*create, "serviceaccount", "robot")
    token = await run(*create, "token", "robot", "--duration=20m")
    assert token.count(".") == 2
    listed = await run(
        "get", "-n", "shop", "deploy,cm,secret,svc,job,cronjob,ingress,quota,role,rolebinding,sa", "-o", "name"
    )
    assert len(listed.split()) == 11
    secret = json.loads(await run("get", "-n", "shop", "secret", "s", "-o", "json"))
    assert secret["data"] == {"password": "eA=="}
    deployment = json.loads(await run("get", "-n", "shop", "deploy", "web", "-o", "json"))
    assert deployment["spec"]["replicas"] == 2
    yes = await run("auth", "can-i", "list", "pods", "-n", "shop", "--as=system:serviceaccount:shop:robot")
    assert yes == "yes\n"
    await run("auth", "can-i", "delete", "pods", "-n", "shop", "--as=system:serviceaccount:shop:robot", fails=True)
    rules = await run("auth", "can-i", "--list", "-n", "shop", "--as=system:serviceaccount:shop:robot")
    assert "pods" in rules
    assert "Username    admin" in await run("auth", "whoami")


async def test_looking_around(api: Running) -> None:
    run = api.kubectl
    assert "v1.37" in await run("version")
    resources = await run("api-resources")
    assert "deployments" in resources
    assert "apps/v1" in await run("api-versions")
    assert "replicas" in await run("explain", "deployment.spec")
    assert "ok" in await run("get", "--raw", "/readyz")
    assert "[+]poststarthook/bootstrap ok" in await run("get", "--raw", "/readyz?verbose")
    assert "kube-system" in await run("get", "ns")
    assert "10.96.0.1" in await run("get", "svc", "kubernetes", "-o", "wide")
    assert "cluster-admin" in await run("get", "clusterroles", "--sort-by=.metadata.name")
    assert "kubernetes" in await run("get", "endpointslices")
    assert "running at" in await run("cluster-info")
    assert "service/kubernetes" in await run("get", "all", "-A", "--chunk-size=1")
    event = {"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}}
    await api.make("/api/v1/namespaces/default/events", {**event, "reason": "Pulled", "message": "m", "type": "Normal"})
    assert "Pulled" in await run("get", "events")
    assert "Pulled" in await run("get", "events.v1.events.k8s.io")
    told = await run("apply", "--server-side", "-f", "-", stdin=WEB, fails=True)
    assert "server-side apply" in told


NODE: Json = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "a", "labels": {"kubernetes.io/hostname": "a"}},
    "status": {
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}],
        "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
        "capacity": {"cpu": "2", "memory": "4Gi", "pods": "110"},
        "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"},
        "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian"},
    },
}


async def test_a_pod_from_run_to_gone(api: Running) -> None:
    run = api.kubectl
    await api.make("/api/v1/nodes", NODE)
    await run("run", "web", "--image=web:1", "--labels=app=web")
    pod = "/api/v1/namespaces/default/pods/web"
    target = {"kind": "Node", "name": "a"}
    bound = await api.ask("POST", f"{pod}/binding", {"metadata": {"name": "web"}, "target": target})
    assert bound.status == 201
    again = await api.ask("POST", f"{pod}/binding", {"metadata": {"name": "web"}, "target": target})
    assert (again.status, again.json["reason"]) == (409, "Conflict")

    watching = asyncio.create_task(run("get", "pod", "web", "-w", "-o", "wide", "--request-timeout=3s"))
    waiting = asyncio.create_task(run("wait", "pod/web", "--for=condition=Ready", "--timeout=20s"))
    await _watched(api, "web")
    status = {
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.2",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {
                    "name": "web",
                    "ready": True,
                    "restartCount": 0,
                    "image": "web:1",
                    "imageID": "x",
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                }
            ],
        }
    }
    headers = {"Content-Type": "application/merge-patch+json"}
    assert (await api.ask("PATCH", f"{pod}/status", status, headers=headers)).status == 200
    assert "condition met" in await waiting
    seen = await watching
    assert "Pending" in seen
    assert "Running" in seen
    assert "10.0.0.2" in seen
    assert "1/1" in await run("get", "pod", "web")
    assert "web:1" in await run("describe", "pod", "web")
    assert "Non-terminated Pods" in await run("describe", "node", "a")
    await run("cordon", "a")
    assert "SchedulingDisabled" in await run("get", "nodes", "-o", "wide")
    await run("taint", "node", "a", "key=value:NoSchedule")

    gone = asyncio.create_task(run("delete", "pod", "web", "--grace-period=20"))
    await _until_deleting(api, pod)
    assert "Terminating" in await run("get", "pod", "web")
    ended = await api.ask("DELETE", pod, {"gracePeriodSeconds": 0})  # the node has stopped it
    assert ended.status == 200
    assert "deleted" in await gone


async def test_rollouts_are_read_from_replica_sets(api: Running) -> None:
    run = api.kubectl
    await run("apply", "-f", "-", stdin=WEB)
    deployment = json.loads(await run("get", "deploy", "web", "-o", "json"))
    for revision, image in ((1, "web:0"), (2, "web:1")):
        template = json.loads(json.dumps(deployment["spec"]["template"]))
        template["metadata"]["labels"]["pod-template-hash"] = f"h{revision}"
        template["spec"]["containers"][0]["image"] = image
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "controller": True}
        await api.make(
            "/apis/apps/v1/namespaces/default/replicasets",
            {
                "metadata": {
                    "name": f"web-{revision}",
                    "labels": {"app": "web", "pod-template-hash": f"h{revision}"},
                    "annotations": {"deployment.kubernetes.io/revision": str(revision)},
                    "ownerReferences": [{**owner, "uid": deployment["metadata"]["uid"]}],
                },
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": {"app": "web", "pod-template-hash": f"h{revision}"}},
                    "template": template,
                },
            },
        )
    history = await run("rollout", "history", "deploy/web")
    assert [line.split()[0] for line in history.splitlines()[2:] if line] == ["1", "2"]
    assert "web:0" in await run("rollout", "history", "deploy/web", "--revision=1")
    assert "rolled back" in await run("rollout", "undo", "deploy/web", "--to-revision=1")
    assert "web:0" in await run("get", "deploy", "web", "-o", "wide")
    await run("rollout", "restart", "deploy/web")
    status = {
        "status": {
            "observedGeneration": 99,
            "replicas": 2,
            "updatedReplicas": 2,
            "readyReplicas": 2,
            "availableReplicas": 2,
        }
    }
    headers = {"Content-Type": "application/merge-patch+json"}
    path = "/apis/apps/v1/namespaces/default/deployments/web/status"
    assert (await api.ask("PATCH", path, status, headers=headers)).status == 200
    assert "successfully rolled out" in await run("rollout", "status", "deploy/web", "--timeout=10s")


async def _watched(api: Running, name: str) -> None:
    """Wait until two watches of the pod are under way."""
    async with machine.timeout(10):
        while sum(1 for one in api.seen if one.verb == "watch" and one.resource == "pods") < 2:
            await machine.sleep(0.01)


async def _until_deleting(api: Running, path: str) -> None:
    async with machine.timeout(10):
        while not (await api.ask("GET", path)).json["metadata"].get("deletionTimestamp"):
            await machine.sleep(0.01)
