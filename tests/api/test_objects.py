"""Writes: what is kept, what is the server's own, how two writers meet, and how things go away."""

import asyncio
from typing import Any

import pytest

from wherry.api.settings import Settings
from wherry.clock import VirtualClock, machine, parse_rfc3339

from .conftest import Running, Start

Json = dict[str, Any]
NS = "/api/v1/namespaces/default"
APPS = "/apis/apps/v1/namespaces/default"
MERGE = {"Content-Type": "application/merge-patch+json"}
STRATEGIC = {"Content-Type": "application/strategic-merge-patch+json"}


def _map(name: str = "a", **meta: Any) -> Json:
    return {"metadata": {"name": name, **meta}, "data": {"x": "1"}}


def _deployment(replicas: int = 1) -> Json:
    return {
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]},
            },
        },
    }


def _pod(name: str = "p", **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


# --- what is whose ------------------------------------------------------------------------------------------------------


async def test_the_server_says_what_is_the_servers(start: Start) -> None:
    api = await start(clock=VirtualClock(1_800_000_000.0))
    forged = {"uid": "x", "creationTimestamp": "2000-01-01T00:00:00Z", "generation": 9, "managedFields": []}
    made = await api.make(f"{NS}/pods", {**_pod(), "metadata": {"name": "p", **forged}, "status": {"phase": "Running"}})
    assert len(made["metadata"]["uid"]) == 36
    assert made["metadata"]["creationTimestamp"] == "2027-01-15T08:00:00Z"
    assert made["metadata"]["generation"] == 1
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    body = {**made, "metadata": {**made["metadata"], "uid": made["metadata"]["uid"], "creationTimestamp": None}}
    body["metadata"].pop("resourceVersion")
    again = (await api.ask("PUT", f"{NS}/pods/p", body)).json
    assert again == made  # nothing changed, nothing was written


async def test_spec_and_status_are_written_apart(api: Running) -> None:
    path = f"{APPS}/deployments"
    await api.make(path, _deployment())
    body = {"spec": {"replicas": 5}, "status": {"replicas": 3}}
    changed = (await api.ask("PATCH", f"{path}/web", body, headers=MERGE)).json
    assert (changed["spec"]["replicas"], changed["status"], changed["metadata"]["generation"]) == (5, {}, 2)
    body = {"spec": {"replicas": 9}, "status": {"replicas": 3}, "metadata": {"labels": {"seen": "yes"}}}
    changed = (await api.ask("PATCH", f"{path}/web/status", body, headers=MERGE)).json
    assert (changed["spec"]["replicas"], changed["status"], changed["metadata"]["generation"]) == (
        5,
        {"replicas": 3},
        2,
    )
    labelled = (await api.ask("PATCH", f"{path}/web", {"metadata": {"labels": {"a": "b"}}}, headers=MERGE)).json
    assert labelled["metadata"]["generation"] == 2
    scale = (await api.ask("GET", f"{path}/web/scale")).json
    assert (scale["spec"], scale["status"]) == ({"replicas": 5}, {"replicas": 3, "selector": "app=web"})
    scale["spec"]["replicas"] = 0
    assert (await api.ask("PUT", f"{path}/web/scale", scale)).json["spec"] == {"replicas": 0}
    stale = await api.ask("PUT", f"{path}/web/scale", scale)
    assert stale.status == 409
    wrong = await api.ask("PATCH", f"{path}/web/scale", {"spec": {"replicas": -1}}, headers=MERGE)
    assert (wrong.status, wrong.json["details"]["causes"][0]["field"]) == (422, "spec.replicas")


async def test_a_dry_run_changes_nothing(api: Running) -> None:
    before = await api.store.revision()
    assert (await api.ask("POST", f"{NS}/configmaps?dryRun=All", _map())).status == 201
    assert (await api.ask("GET", f"{NS}/configmaps/a")).status == 404
    assert await api.store.revision() == before
    await api.make(f"{NS}/configmaps", _map())
    patched = await api.ask("PATCH", f"{NS}/configmaps/a?dryRun=All", {"data": {"x": "2"}}, headers=MERGE)
    assert patched.json["data"] == {"x": "2"}
    assert (await api.ask("DELETE", f"{NS}/configmaps/a?dryRun=All")).status == 200
    assert (await api.ask("GET", f"{NS}/configmaps/a")).json["data"] == {"x": "1"}


async def test_of_two_writers_from_one_version_one_wins(api: Running) -> None:
    read = await api.make(f"{NS}/configmaps", _map())
    answers = await asyncio.gather(
        *(api.ask("PUT", f"{NS}/configmaps/a", {**read, "data": {"x": str(n)}}) for n in range(2, 6))
    )
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]


async def test_patches_without_a_version_all_arrive(api: Running) -> None:
    await api.make(f"{NS}/configmaps", _map())
    answers = await asyncio.gather(
        *(api.ask("PATCH", f"{NS}/configmaps/a", {"data": {f"k{n}": "v"}}, headers=MERGE) for n in range(30))
    )
    assert {answer.status for answer in answers} == {200}
    assert len((await api.ask("GET", f"{NS}/configmaps/a")).json["data"]) == 31


async def test_generated_names_differ(api: Running) -> None:
    made = await asyncio.gather(
        *(api.make(f"{NS}/configmaps", {"metadata": {"generateName": "job-"}}) for _ in range(20))
    )
    names = {one["metadata"]["name"] for one in made}
    assert len(names) == 20
    assert all(name.startswith("job-") and len(name) == 9 for name in names)


async def test_every_write_says_who_when_and_what(start: Start) -> None:
    clock = VirtualClock(1_800_000_000.0)
    api = await start(clock=clock)
    start_at = await api.store.revision()
    await api.make(f"{APPS}/deployments", _deployment())
    await clock.advance(60)
    await api.ask("PATCH", f"{APPS}/deployments/web/scale", {"spec": {"replicas": 4}}, headers=MERGE)
    await api.ask("DELETE", f"{APPS}/deployments/web")
    notes: list[tuple[float, str, str]] = []
    async for batch in api.store.watch("/apps/deployments/", after=start_at):
        notes += [(event.note.time, event.note.actor, event.note.operation) for event in batch]
        if len(notes) == 3:
            break
    assert notes == [
        (1_800_000_000.0, "admin", "POST deployments"),
        (1_800_000_060.0, "admin", "PATCH deployments/scale"),
        (1_800_000_060.0, "admin", "DELETE deployments"),
    ]


async def test_yaml_is_taken(api: Running) -> None:
    text = b"metadata:\n  name: y\n  creationTimestamp: null\ndata:\n  date: '2026-01-01'\n"
    answer = await api.ask("POST", f"{NS}/configmaps", text, headers={"Content-Type": "application/yaml"})
    assert (answer.status, answer.json["data"]) == (201, {"date": "2026-01-01"})


async def test_at_rest_there_is_no_version(api: Running) -> None:
    await api.make(f"{NS}/configmaps", _map())
    entry = await api.store.get("/core/configmaps/default/a")
    assert entry is not None
    assert entry.value.startswith(b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{')
    assert b"resourceVersion" not in entry.value


# --- going away ---------------------------------------------------------------------------------------------------------


async def test_deletion_at_once_and_by_precondition(api: Running) -> None:
    made = await api.make(f"{NS}/configmaps", _map())
    wrong = await api.ask("DELETE", f"{NS}/configmaps/a", {"preconditions": {"resourceVersion": "1"}})
    assert (wrong.status, wrong.json["reason"]) == (409, "Conflict")
    right = {"preconditions": {"uid": made["metadata"]["uid"]}, "propagationPolicy": "Background"}
    gone = await api.ask("DELETE", f"{NS}/configmaps/a", right)
    assert gone.json["status"] == "Success"
    assert gone.json["details"] == {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}
    assert (await api.ask("DELETE", f"{NS}/configmaps/a")).status == 404


async def test_finalizers_hold_an_object(api: Running) -> None:
    await api.make(f"{NS}/configmaps", _map(finalizers=["example.com/hold"]))
    marked = await api.ask("DELETE", f"{NS}/configmaps/a")
    assert marked.json["metadata"]["deletionTimestamp"]
    more = {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}
    refused = await api.ask("PATCH", f"{NS}/configmaps/a", more, headers=MERGE)
    assert (refused.status, refused.json["details"]["causes"][0]["field"]) == (422, "metadata.finalizers")
    assert (await api.ask("DELETE", f"{NS}/configmaps/a")).status == 200
    released = await api.ask("PATCH", f"{NS}/configmaps/a", {"metadata": {"finalizers": None}}, headers=MERGE)
    assert released.status == 200
    assert (await api.ask("GET", f"{NS}/configmaps/a")).status == 404


async def test_propagation_is_left_to_the_garbage_collector(api: Running) -> None:
    path = f"{APPS}/deployments"
    for policy, finalizer in (("Foreground", "foregroundDeletion"), ("Orphan", "orphan")):
        await api.make(path, _deployment())
        marked = await api.ask("DELETE", f"{path}/web?propagationPolicy={policy}")
        assert marked.json["metadata"]["finalizers"] == [finalizer]
        assert marked.json["metadata"]["deletionTimestamp"]
        assert (await api.ask("DELETE", f"{path}/web", {"propagationPolicy": "Background"})).status == 200
        assert (await api.ask("GET", f"{path}/web")).status == 404


async def test_a_pod_on_a_node_gets_its_grace(start: Start) -> None:
    clock = VirtualClock()
    api = await start(clock=clock)
    await api.make(f"{NS}/pods", _pod("free"))
    assert (await api.ask("DELETE", f"{NS}/pods/free")).status == 200
    assert (await api.ask("GET", f"{NS}/pods/free")).status == 404
    await api.make(f"{NS}/pods", _pod(nodeName="n", terminationGracePeriodSeconds=40))
    meta = (await api.ask("DELETE", f"{NS}/pods/p")).json["metadata"]
    assert parse_rfc3339(meta["deletionTimestamp"]) == clock.now() + 40
    assert meta["deletionGracePeriodSeconds"] == 40
    later = (await api.ask("DELETE", f"{NS}/pods/p?gracePeriodSeconds=100")).json["metadata"]
    assert later["deletionGracePeriodSeconds"] == 40  # a deletion is never put off
    sooner = (await api.ask("DELETE", f"{NS}/pods/p?gracePeriodSeconds=5")).json["metadata"]
    assert parse_rfc3339(sooner["deletionTimestamp"]) == clock.now() + 5
    for wrong in ("%C2%B2", "--5", "-", "1.5"):
        assert (await api.ask("DELETE", f"{NS}/pods/p?gracePeriodSeconds={wrong}")).status == 400, wrong
    assert (await api.ask("DELETE", f"{NS}/pods/p?gracePeriodSeconds=0")).status == 200
    assert (await api.ask("GET", f"{NS}/pods/p")).status == 404


async def test_a_collection_goes_by_selector(api: Running) -> None:
    for name in "abc":
        await api.make(f"{NS}/configmaps", _map(name, labels={"go": "no" if name == "b" else "yes"}))
    answer = await api.ask("DELETE", f"{NS}/configmaps?labelSelector=go=yes")
    assert [one["metadata"]["name"] for one in answer.json["items"]] == ["a", "c"]
    left = (await api.ask("GET", f"{NS}/configmaps")).json
    assert [one["metadata"]["name"] for one in left["items"]] == ["b"]


async def test_a_budget_holds_an_eviction_back(api: Running) -> None:
    body = {"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}}
    await api.make("/apis/policy/v1/namespaces/default/poddisruptionbudgets", body)
    for name in ("p", "q"):
        pod = _pod(name, nodeName="n")
        pod["metadata"]["labels"] = {"app": "web"}
        await api.make(f"{NS}/pods", pod)
        status = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
        await api.ask("PATCH", f"{NS}/pods/{name}/status", status, headers=MERGE)
    answers = await asyncio.gather(
        *(
            api.ask(
                "POST",
                f"{NS}/pods/{name}/eviction",
                {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}},
            )
            for name in ("p", "q")
        )
    )
    assert sorted(answer.status for answer in answers) == [201, 429]
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.headers["retry-after"] == "10"
    assert refused.json["details"]["causes"][0]["reason"] == "DisruptionBudget"


# --- from the first moment ----------------------------------------------------------------------------------------------


async def test_a_cluster_has_what_every_cluster_has_and_a_restart_adds_nothing(start: Start) -> None:
    api = await start(settings=Settings(advertise=(("192.0.2.7", 6443),)))
    names = [one["metadata"]["name"] for one in (await api.ask("GET", "/api/v1/namespaces")).json["items"]]
    assert names == ["default", "kube-node-lease", "kube-public", "kube-system"]
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
    assert (await api.ask("GET", slices)).json["endpoints"][0]["addresses"] == ["127.0.0.1"]  # the fixture's listener
    await api.api.advertise([("192.0.2.7", 6443)])
    assert (await api.ask("GET", slices)).json["endpoints"][0]["addresses"] == ["192.0.2.7"]
    revision = await api.store.revision()
    await api.api.close()
    await api.api.start()
    assert await api.store.revision() == revision
    view = "/apis/rbac.authorization.k8s.io/v1/clusterroles/view"
    await api.ask("PATCH", view, {"rules": []}, headers=MERGE)
    await api.api.close()
    await api.api.start()
    assert (await api.ask("GET", view)).json["rules"]


async def test_events_end(start: Start) -> None:
    clock = VirtualClock()
    api = await start(clock=clock, settings=Settings(event_life_s=3600))
    for name in ("old", "young"):
        body = {"metadata": {"name": name}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}}
        await api.make(f"{NS}/events", body)
    await clock.advance(1800)
    await api.ask("PATCH", f"{NS}/events/young", {"count": 2}, headers=MERGE)
    await clock.advance(2400)
    async with machine.timeout(5):
        while len(left := (await api.ask("GET", f"{NS}/events")).json["items"]) > 1:
            await machine.sleep(0.01)
    assert [one["metadata"]["name"] for one in left] == ["young"]


async def test_a_store_that_hangs_is_told_of(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    api = await start(settings=Settings(request_s=0.05))

    async def hang(*_: Any, **__: Any) -> int:
        await machine.sleep(30)
        return 0

    monkeypatch.setattr(api.store, "put", hang)
    answer = await api.ask("POST", f"{NS}/configmaps", _map())
    assert (answer.status, answer.json["reason"]) == (504, "Timeout")
