"""Whatever comes, the answer is a Status that says what is wrong: no fault of ours, no traceback."""

import asyncio
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.api.pki import Authority
from wherry.api.server import Api
from wherry.clock import RealClock
from wherry.model.kinds import KINDS
from wherry.store.sqlite import SqliteStore
from wherry.wire.http import Request

from .conftest import ADMIN

Json = dict[str, Any]

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["", "a", "1", "x/y", "\u00e9", "100m", "None", "10.96.0.9", "2026-01-01T00:00:00Z"])
)
_TEXT = """
name namespace labels annotations finalizers template selector matchLabels ports replicas type rules resources limits
requests cpu nodeName kind items port minAvailable metrics uid verbs apiGroups resourceNames containers image env
valueFrom volumes secret metadata spec status conditions operator values key effect
"""
_WORDS = st.sampled_from(_TEXT.split())
_JUNK = st.recursive(
    _LEAVES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(_WORDS, below, max_size=4),
    max_leaves=8,
)
_POD_SPEC: Json = {
    "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}, "env": [{"name": "A"}]}],
    "initContainers": [{"name": "d", "image": "i"}],
    "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
    "tolerations": [{"key": "x", "operator": "Exists"}],
}
_WORKLOAD: Json = {
    "replicas": 1,
    "selector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]},
    "template": {"metadata": {"labels": {"a": "b", "c": "d"}}, "spec": _POD_SPEC},
}
_SPECS: dict[str, Json] = {
    "pods": {"spec": _POD_SPEC},
    "deployments": {"spec": _WORKLOAD},
    "replicasets": {"spec": _WORKLOAD},
    "statefulsets": {"spec": {**_WORKLOAD, "serviceName": "s"}},
    "jobs": {"spec": {"template": {"spec": {**_POD_SPEC, "restartPolicy": "Never"}}}},
    "cronjobs": {"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": _POD_SPEC}}}}},
    "services": {"spec": {"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}}},
    "roles": {"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]},
    "clusterroles": {"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]},
    "rolebindings": {"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "x"}]},
    "resourcequotas": {"spec": {"hard": {"pods": "1", "requests.cpu": "2"}}},
    "limitranges": {"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "default": {"cpu": "1"}}]}},
    "poddisruptionbudgets": {"spec": {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}}},
    "horizontalpodautoscalers": {"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "a"}}},
    "priorityclasses": {"value": 3},
    "nodes": {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}, "status": {"capacity": {"cpu": "1"}}},
    "configmaps": {"data": {"x": "y"}},
    "secrets": {"stringData": {"x": "y"}},
    "events": {"involvedObject": {"kind": "Pod", "name": "a"}, "reason": "x"},
    "endpointslices": {"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": [{"port": 80}]},
    "ingresses": {
        "spec": {"rules": [{"host": "example.com", "http": {"paths": [{"path": "/", "pathType": "Prefix"}]}}]}
    },
    "tokenreviews": {"spec": {"token": "x"}},
    "subjectaccessreviews": {"spec": {"user": "x", "resourceAttributes": {"verb": "get", "resource": "pods"}}},
    "selfsubjectrulesreviews": {"spec": {"namespace": "default"}},
    "eviction": {"deleteOptions": {"gracePeriodSeconds": 1}},
    "binding": {"target": {"kind": "Node", "name": "a"}},
    "token": {"spec": {"audiences": ["x"], "expirationSeconds": 700, "boundObjectRef": {"kind": "Pod", "name": "a"}}},
    "scale": {"spec": {"replicas": 2}},
}
_OPTIONS = """
labelSelector fieldSelector limit continue resourceVersion resourceVersionMatch dryRun fieldValidation container
gracePeriodSeconds propagationPolicy sendInitialEvents includeObject orphanDependents
"""
_QUERY = st.tuples(
    st.sampled_from(_OPTIONS.split()),
    st.sampled_from(
        ["", "a", "1", "0", "a=b", "metadata.name=a", "true", "-1", "All", "Strict", "Exact", "x,,", "!", "Background"]
    ),
)
_MEDIA = ["application/json"] * 6 + ["application/yaml", "application/vnd.kubernetes.protobuf", "text/x", ""]
_PATCH_MEDIA = [f"application/{how}+json" for how in ("merge-patch", "strategic-merge-patch", "json-patch")]


@st.composite
def _bodies(draw: st.DrawFn, plural: str) -> bytes:
    """A valid body with one or two places in it made junk, or junk alone."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=30) | _JUNK.map(lambda value: json.dumps(value).encode()))
    body: Any = json.loads(json.dumps({"metadata": {"name": "a"}, **_SPECS.get(plural, {})}))
    for _ in range(draw(st.integers(0, 2))):
        place = body
        while True:
            keys = list(range(len(place))) if isinstance(place, list) else sorted(place)
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
                place = place[key]
                continue
            place[key] = draw(_JUNK)
            break
    return json.dumps(body).encode()


@st.composite
def _requests(draw: st.DrawFn) -> tuple[str, str, list[tuple[str, str]], str, bytes]:
    kind = draw(st.sampled_from([kind for kind in KINDS if kind.plural in _SPECS]) | st.sampled_from(KINDS))
    part = draw(st.none() | st.sampled_from(kind.subresources)) if kind.subresources else None
    method = draw(st.sampled_from(["POST", "POST", "PATCH", "PUT", "GET", "DELETE"]))
    name = "" if method == "POST" and part is None else draw(st.sampled_from(["a", "a", "a", ""]))
    subresource = part.name if part is not None and name else ""
    path = kind.path("default" if kind.namespaced else "", name, subresource)
    media = draw(st.sampled_from(_PATCH_MEDIA if method == "PATCH" else _MEDIA))
    body = b"" if method == "GET" else draw(_bodies(subresource if subresource in _SPECS else kind.plural))
    if method == "DELETE":
        body = draw(st.sampled_from([b"", b"{}", b'{"gracePeriodSeconds":1}', b'{"propagationPolicy":"Orphan"}']))
    return method, path, draw(st.lists(_QUERY, max_size=1)), media, body


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests=st.lists(_requests(), min_size=10, max_size=25))
def test_junk_is_answered(tmp_path_factory: Any, requests: list[Any]) -> None:
    asyncio.run(_ask_all(tmp_path_factory.mktemp("junk"), requests))


async def _ask_all(root: Path, requests: list[Any]) -> None:
    clock = RealClock()
    store = await SqliteStore.open(root / "store", clock=clock, durability="test")
    api = Api(store, clock=clock, authority=Authority.load_or_create(root / "pki", clock))
    await api.start()
    try:
        for kind in KINDS:
            if kind.plural in _SPECS and kind.stored and not kind.stored_as:
                body = json.dumps({"metadata": {"name": "a"}, **_SPECS[kind.plural]}).encode()
                await api.serve(Request.local("POST", kind.path("default"), (), None, body), ADMIN)
        for method, path, query, media, body in requests:
            request = Request.local(method, path, query, {"Content-Type": media}, body)
            response = await api.serve(request, ADMIN)
            assert isinstance(response.body, bytes)
            # 503 says that a part is away: here none is, but for the nodes.
            assert response.status != 503 or b"no way to its agent" in response.body, (method, path, query, media, body)
            if response.status >= 400:
                status = json.loads(response.body)
                assert (status["kind"], status["code"]) == ("Status", response.status)
                assert status["message"]
    finally:
        await api.close()
        await store.close()
