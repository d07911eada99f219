"""What the cluster adds to objects, and what it refuses."""

import asyncio
from typing import Any

from wherry.api.admission.services import first_address
from wherry.api.settings import Settings
from wherry.api.strategy import qos_class

from .conftest import Running, Start

Json = dict[str, Any]
NS = "/api/v1/namespaces/default"
MERGE = {"Content-Type": "application/merge-patch+json"}


def _pod(name: str = "p", **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


def _service(name: str, **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


async def test_a_pod_gets_its_account_and_its_token(api: Running) -> None:
    pod = await api.make(f"{NS}/pods", _pod())
    assert pod["spec"]["serviceAccountName"] == "default"
    volume = pod["spec"]["volumes"][0]
    sources = volume["projected"]["sources"]
    assert [next(iter(source)) for source in sources] == ["serviceAccountToken", "configMap", "downwardAPI"]
    assert sources[1]["configMap"]["name"] == "kube-root-ca.crt"
    mount = pod["spec"]["containers"][0]["volumeMounts"][0]
    assert (mount["name"], mount["readOnly"]) == (volume["name"], True)
    assert mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    bare = await api.make(f"{NS}/pods", _pod("bare", automountServiceAccountToken=False))
    assert "volumes" not in bare["spec"]
    account = {
        "metadata": {"name": "quiet"},
        "automountServiceAccountToken": False,
        "imagePullSecrets": [{"name": "s"}],
    }
    await api.make(f"{NS}/serviceaccounts", account)
    quiet = await api.make(f"{NS}/pods", _pod("quiet", serviceAccountName="quiet"))
    assert "volumes" not in quiet["spec"]
    assert quiet["spec"]["imagePullSecrets"] == [{"name": "s"}]


async def test_a_pod_outlives_a_lost_node_for_as_long_as_the_profile_says(start: Start) -> None:
    api = await start(settings=Settings(toleration_s=2))
    pod = await api.make(
        f"{NS}/pods", _pod(tolerations=[{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}])
    )
    assert [(one["key"], one.get("tolerationSeconds")) for one in pod["spec"]["tolerations"]] == [
        ("node.kubernetes.io/not-ready", None),
        ("node.kubernetes.io/unreachable", 2),
    ]


async def test_priorities_are_numbers_by_name(api: Running) -> None:
    pod = await api.make(f"{NS}/pods", _pod("a", priorityClassName="system-cluster-critical"))
    assert pod["spec"]["priority"] == 2_000_000_000
    assert (await api.make(f"{NS}/pods", _pod("b")))["spec"]["priority"] == 0
    body = {"metadata": {"name": "mine"}, "value": 7, "globalDefault": True}
    await api.make("/apis/scheduling.k8s.io/v1/priorityclasses", body)
    mine = await api.make(f"{NS}/pods", _pod("c"))
    assert (mine["spec"]["priority"], mine["spec"]["priorityClassName"]) == (7, "mine")
    answer = await api.ask("POST", f"{NS}/pods", _pod("d", priority=9))
    assert answer.status == 403


async def test_nothing_new_in_a_namespace_on_its_way_out(api: Running) -> None:
    await api.make("/api/v1/namespaces", {"metadata": {"name": "old"}})
    gone = await api.ask("DELETE", "/api/v1/namespaces/old")
    assert gone.json["status"]["phase"] == "Terminating"
    answer = await api.ask("POST", "/api/v1/namespaces/old/pods", _pod())
    assert (answer.status, answer.json["reason"]) == (403, "Forbidden")
    assert answer.json["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    status = {"status": {"conditions": [{"type": "NamespaceContentRemaining", "status": "True"}]}}
    told = await api.ask("PATCH", "/api/v1/namespaces/old/status", status, headers=MERGE)
    assert (told.status, told.json["spec"]["finalizers"]) == (200, ["kubernetes"])
    namespace = (await api.ask("GET", "/api/v1/namespaces/old")).json
    namespace["spec"]["finalizers"] = []
    assert (await api.ask("PUT", "/api/v1/namespaces/old/finalize", namespace)).status == 200
    assert (await api.ask("GET", "/api/v1/namespaces/old")).status == 404


async def test_no_two_services_have_one_address(start: Start) -> None:
    api = await start(settings=Settings(service_cidr="10.1.0.0/27", node_ports=(31000, 31010)))
    assert first_address("10.1.0.0/27") == "10.1.0.1"
    made = await asyncio.gather(
        *(api.make(f"{NS}/services", _service(f"s{number}", type="NodePort")) for number in range(11))
    )
    addresses = {one["spec"]["clusterIP"] for one in made}
    ports = {one["spec"]["ports"][0]["nodePort"] for one in made}
    assert len(addresses) == len(ports) == 11
    assert "10.1.0.1" not in addresses
    answer = await api.ask("POST", f"{NS}/services", _service("more", type="NodePort"))
    assert (answer.status, answer.json["details"]["causes"][0]["field"]) == (422, "spec.ports[0].nodePort")
    for number in range(18):
        await api.make(f"{NS}/services", _service(f"t{number}"))
    answer = await api.ask("POST", f"{NS}/services", _service("more"))
    assert answer.json["details"]["causes"][0]["field"] == "spec.clusterIPs"
    await api.ask("DELETE", f"{NS}/services/t3")
    assert (await api.make(f"{NS}/services", _service("more")))["spec"]["clusterIP"]


async def test_addresses_stay_with_their_service(api: Running) -> None:
    made = await api.make(f"{NS}/services", _service("web", type="NodePort"))
    address, port = made["spec"]["clusterIP"], made["spec"]["ports"][0]["nodePort"]
    replaced = await api.ask("PUT", f"{NS}/services/web", _service("web", type="NodePort", selector={"a": "b"}))
    assert replaced.json["spec"]["clusterIP"] == address
    assert replaced.json["spec"]["ports"][0]["nodePort"] == port
    plain = await api.ask("PATCH", f"{NS}/services/web", {"spec": {"type": "ClusterIP"}}, headers=MERGE)
    assert plain.json["spec"]["clusterIP"] == address
    assert "nodePort" not in plain.json["spec"]["ports"][0]
    moved = await api.ask("PATCH", f"{NS}/services/web", {"spec": {"clusterIP": "10.96.7.7"}}, headers=MERGE)
    assert moved.status == 422
    headless = await api.make(f"{NS}/services", _service("none", clusterIP="None"))
    assert headless["spec"]["clusterIPs"] == ["None"]
    outside = {"metadata": {"name": "x"}, "spec": {"type": "ExternalName", "externalName": "example.com"}}
    external = await api.make(f"{NS}/services", outside)
    assert "clusterIP" not in external["spec"]
    both = _service("dns", type="NodePort")
    both["spec"]["ports"] = [
        {"name": "udp", "port": 53, "protocol": "UDP"},
        {"name": "tcp", "port": 53, "protocol": "TCP"},
    ]
    ports = (await api.make(f"{NS}/services", both))["spec"]["ports"]
    assert ports[0]["nodePort"] == ports[1]["nodePort"]


async def test_a_restart_forgets_no_address(start: Start) -> None:
    api = await start()
    taken = (await api.make(f"{NS}/services", _service("web")))["spec"]["clusterIP"]
    await api.api.close()
    await api.api.start()
    answer = await api.ask("POST", f"{NS}/services", _service("thief", clusterIP=taken))
    assert answer.status == 422
    assert "already allocated" in answer.json["message"]


async def test_limit_ranges_fill_in_and_bound(api: Running) -> None:
    limits = [
        {
            "type": "Container",
            "default": {"cpu": "500m"},
            "defaultRequest": {"cpu": "100m"},
            "max": {"cpu": "1"},
        }
    ]
    await api.make(f"{NS}/limitranges", {"metadata": {"name": "l"}, "spec": {"limits": limits}})
    pod = await api.make(f"{NS}/pods", _pod())
    assert pod["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}
    assert pod["status"]["qosClass"] == "Burstable"
    big = _pod("big")
    big["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}
    answer = await api.ask("POST", f"{NS}/pods", big)
    assert answer.status == 403
    assert "maximum cpu usage per Container is 1, but limit is 2" in answer.json["message"]


async def test_a_quota_holds_also_for_many_at_once(api: Running) -> None:
    hard = {"pods": "3", "requests.cpu": "1", "count/configmaps": "2"}
    await api.make(f"{NS}/resourcequotas", {"metadata": {"name": "q"}, "spec": {"hard": hard}})

    def pod(name: str, cpu: str) -> Json:
        body = _pod(name)
        body["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu}}
        return body

    answers = await asyncio.gather(*(api.ask("POST", f"{NS}/pods", pod(f"p{n}", "100m")) for n in range(6)))
    assert sorted(answer.status for answer in answers) == [201] * 3 + [403] * 3
    refused = next(answer for answer in answers if answer.status == 403)
    assert "exceeded quota: q, requested: pods=1, used: pods=3, limited: pods=3" in refused.json["message"]
    silent = await api.ask("POST", f"{NS}/pods", _pod("silent"))
    assert "must specify requests.cpu for: c" in silent.json["message"]
    await api.ask("DELETE", f"{NS}/pods/{next(a.json['metadata']['name'] for a in answers if a.status == 201)}")
    much = await api.ask("POST", f"{NS}/pods", pod("much", "900m"))
    assert "requests.cpu" in much.json["message"]


async def test_texts_of_a_secret_become_data(api: Running) -> None:
    made = await api.make(f"{NS}/secrets", {"metadata": {"name": "s"}, "stringData": {"a": "b"}})
    assert made["data"] == {"a": "Yg=="}
    assert "stringData" not in made


def test_quality_of_service() -> None:
    def spec(*resources: Json) -> Json:
        return {"containers": [{"resources": one} for one in resources]}

    full = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}
    assert qos_class(spec(full)) == "Guaranteed"
    assert qos_class(spec({"limits": {"cpu": "1", "memory": "1Gi"}})) == "Guaranteed"
    assert qos_class(spec(full, {})) == "Burstable"
    assert qos_class(spec({"requests": {"cpu": "1"}})) == "Burstable"
    assert qos_class(spec({})) == "BestEffort"
