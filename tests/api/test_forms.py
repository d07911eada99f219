"""The forms in which the API tells of itself and of objects: discovery, OpenAPI, Tables, health; logs and exec pass by."""

# ruff: noqa: E501  # the tables read best with a case on a line

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from wherry.api.columns import duration
from wherry.api.columns_core import pod_status
from wherry.api.tables import COLUMNS
from wherry.model.kinds import KINDS
from wherry.wire.http import Request, Response

from .conftest import Running, Start

Json = dict[str, Any]
NS = "/api/v1/namespaces/default"
TABLE = (
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
)
V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
V2BETA1 = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"


# --- discovery ----------------------------------------------------------------------------------------------------------


async def test_discovery_speaks_three_ways(api: Running) -> None:
    for path in ("/api", "/apis"):
        new = await api.ask("GET", path, headers={"Accept": f"{V2},{V2BETA1},application/json"})
        assert new.headers["content-type"] == V2
        assert new.json["kind"] == "APIGroupDiscoveryList"
        old = await api.ask("GET", path, headers={"Accept": f"{V2BETA1},application/json"})
        assert old.headers["content-type"] == "application/json"
        assert old.json["kind"] == {"/api": "APIVersions", "/apis": "APIGroupList"}[path]
        same = await api.ask("GET", path, headers={"Accept": V2, "If-None-Match": new.headers["etag"]})
        assert (same.status, same.data) == (304, b"")
    named = (await api.ask("GET", "/apis", headers={"Accept": V2})).json["items"]
    assert {item["metadata"]["name"] for item in named} == {kind.group for kind in KINDS if kind.group}
    core = (await api.ask("GET", "/api", headers={"Accept": V2})).json["items"][0]["versions"][0]
    pods = next(one for one in core["resources"] if one["resource"] == "pods")
    assert (pods["shortNames"], pods["categories"], pods["scope"]) == (["po"], ["all"], "Namespaced")
    eviction = next(one for one in pods["subresources"] if one["subresource"] == "eviction")
    assert eviction["responseKind"] == {"group": "policy", "version": "v1", "kind": "Eviction"}


async def test_drain_finds_the_eviction_in_the_plain_list(api: Running) -> None:
    resources = (await api.ask("GET", "/api/v1")).json["resources"]
    eviction = next(one for one in resources if one["name"] == "pods/eviction")
    assert (eviction["group"], eviction["version"], eviction["kind"]) == ("policy", "v1", "Eviction")
    assert (await api.ask("GET", "/apis/apps")).json["preferredVersion"]["groupVersion"] == "apps/v1"
    assert (await api.ask("GET", "/apis/none")).status == 404
    assert (await api.ask("GET", "/apis/apps/v9")).status == 404
    version = (await api.ask("GET", "/version?timeout=32s")).json
    assert (version["major"], version["minor"]) == ("1", "37")


async def test_openapi(api: Running) -> None:
    paths = (await api.ask("GET", "/openapi/v3")).json["paths"]
    url = paths["apis/apps/v1"]["serverRelativeURL"]
    document = await api.ask("GET", url)
    assert "immutable" in document.headers["cache-control"]
    patch = document.json["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert "application/strategic-merge-patch+json" in patch["requestBody"]["content"]
    accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
    stub = await api.ask("GET", "/openapi/v2", headers={"Accept": accept})
    assert "@" not in stub.headers["content-type"]
    assert stub.data.startswith(b"\n\x032.0")


async def test_health(start: Start) -> None:
    problem = ""
    api = await start(ready={"nodes": lambda: problem})
    assert (await api.ask("GET", "/readyz")).data == b"ok"
    assert b"[+]nodes ok" in (await api.ask("GET", "/readyz?verbose")).data
    problem = "none is ready"
    answer = await api.ask("GET", "/readyz")
    assert (answer.status, b"[-]nodes failed: none is ready" in answer.data) == (503, True)
    assert (await api.ask("GET", "/readyz?exclude=nodes")).status == 200
    assert (await api.ask("GET", "/readyz/nodes")).status == 503
    assert (await api.ask("GET", "/livez")).status == 200
    await api.api.core.cache.close()
    assert (await api.ask("GET", "/livez")).status == 503


# --- tables -------------------------------------------------------------------------------------------------------------


async def test_every_kind_has_a_table(api: Running) -> None:
    for kind in KINDS:
        if kind.stored and "list" in kind.verbs and not kind.stored_as:
            answer = await api.ask("GET", kind.path(), headers={"Accept": TABLE})
            assert answer.json["kind"] == "Table", kind
            names = [column["name"] for column in answer.json["columnDefinitions"]]
            assert "Name" in names
    assert len(COLUMNS) >= 30


async def test_tables_carry_what_was_asked_for(api: Running) -> None:
    await api.make(f"{NS}/configmaps", {"metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}})
    for include, kind in (("Metadata", "PartialObjectMetadata"), ("Object", "ConfigMap"), ("None", None)):
        table = await api.ask("GET", f"{NS}/configmaps?includeObject={include}", headers={"Accept": TABLE})
        row = table.json["rows"][0]
        assert row["cells"][:2] == ["a", 2]
        assert (row.get("object") or {}).get("kind") == kind
    partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    found = (await api.ask("GET", f"{NS}/configmaps", headers={"Accept": partial})).json
    assert found["kind"] == "PartialObjectMetadataList"
    assert "data" not in found["items"][0]
    one = await api.ask("GET", f"{NS}/configmaps/a", headers={"Accept": TABLE})
    assert len(one.json["rows"]) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (303, "5m3s"), (3600, "60m"), (10800, "3h"), (12000, "3h20m"),
     (86400, "24h"), (3 * 86400, "3d"), (3 * 86400 + 7200, "3d2h"), (30 * 86400, "30d"), (800 * 86400, "2y70d")],
)  # fmt: skip
def test_durations_read_as_kubectls(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        ({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}, "ImagePullBackOff"),
        ({"phase": "Running", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}, "ExitCode:3"),
        ({"phase": "Running", "containerStatuses": [{"ready": True, "state": {"running": {}}}]}, "Running"),
        ({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}, "Init:0/1"),
        ({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}, "Init:Error"),
    ],
)  # fmt: skip
def test_the_word_for_a_pod(status: Json, word: str) -> None:
    pod = {"metadata": {}, "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}, "status": status}
    assert pod_status(pod) == word


# --- what nodes answer --------------------------------------------------------------------------------------------------


async def _node(name: str, request: Request) -> Response:
    """A node's agent: logs as lines, exec as an echo."""
    assert name == "a"
    assert request.headers.get("authorization") is None
    if request.path.startswith("/containerLogs/"):

        async def lines() -> AsyncIterator[bytes]:
            for number in range(3):
                yield f"{request.path} {number}\n".encode()

        return Response.stream(lines(), {"Content-Type": "text/plain"})
    from wherry.wire import websocket

    async def run(socket: Any) -> None:
        await socket.send(b"\x01" + " ".join(request.all("command")).encode() + b"\n")
        await socket.send(b"\x03" + json.dumps({"status": "Success", "metadata": {}}).encode())
        await socket.close(1000)

    return websocket.accept(request, ("v5.channel.k8s.io", "v4.channel.k8s.io"), run)


async def test_logs_and_exec_reach_the_node(start: Start) -> None:
    api = await start(nodes=_node)
    containers = [{"name": "one", "image": "i"}, {"name": "two", "image": "i"}]
    await api.make(f"{NS}/pods", {"metadata": {"name": "p"}, "spec": {"containers": containers, "nodeName": "a"}})
    status = {"status": {"phase": "Running"}}
    await api.ask("PATCH", f"{NS}/pods/p/status", status, headers={"Content-Type": "application/merge-patch+json"})
    logs, out = await asyncio.gather(
        api.kubectl("logs", "p", "-c", "two", "-f"), api.kubectl("exec", "p", "-c", "one", "--", "echo", "hello")
    )
    assert logs.splitlines()[2] == "/containerLogs/default/p/two 2"
    assert out == "echo hello\n"
    unclear = await api.ask("GET", f"{NS}/pods/p/log")
    assert (unclear.status, "choose one of: [one two]" in unclear.json["message"]) == (400, True)
    wrong = await api.ask("GET", f"{NS}/pods/p/log?container=three")
    assert wrong.status == 400
    spdy = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
    refused = await api.ask("POST", f"{NS}/pods/p/exec?container=one&command=x", headers=spdy)
    assert (refused.status, "SPDY/3.1 is not supported" in refused.json["message"]) == (400, True)
    forward = await api.ask("POST", f"{NS}/pods/p/portforward", headers=spdy)
    assert (forward.status, forward.json["reason"]) == (501, "NotImplemented")
    await api.make(f"{NS}/pods", {"metadata": {"name": "q"}, "spec": {"containers": containers[:1]}})
    unscheduled = await api.ask("GET", f"{NS}/pods/q/log")
    assert "does not have a host assigned" in unscheduled.json["message"]
