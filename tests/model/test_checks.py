"""Checks: one wrong thing at a time, told at its field with upstream's reason and sentence."""

import copy
from typing import Any

import pytest

from tests.model import wrong_others, wrong_pods
from tests.model.samples import admitted, put
from wherry.model import admit, kinds, schema
from wherry.model.checks import volumes
from wherry.model.kinds import Kind

D, P, S = kinds.DEPLOYMENTS, kinds.PODS, kinds.SERVICES
C = "spec.containers.0."


@pytest.mark.parametrize(("kind", "path", "value", "field", "reason", "message"), wrong_pods.WRONG + wrong_others.WRONG)
def test_a_wrong_thing_is_told(kind: Kind, path: str, value: Any, field: str, reason: str, message: str) -> None:
    obj = put(admitted(kind), path, value)
    causes = admit.check(kind, obj)
    told = [cause for cause in causes if cause.field == field and message in cause.message]
    assert told, causes
    assert told[0].reason == f"FieldValue{reason}"


# kind, what an update puts where, and the cause; the last says what it was before where the sample is not enough
UPDATES: list[tuple[Kind, str, Any, str, str, str, dict[str, Any]]] = [
    (D, "metadata.name", "other", "metadata.name", "Invalid", "field is immutable", {}),
    (
        D,
        "metadata.finalizers",
        ["a/b"],
        "metadata.finalizers",
        "Forbidden",
        'found new finalizers []string{"a/b"}',
        {"metadata.deletionTimestamp": "2026-01-01T00:00:00Z"},
    ),
    (
        D,
        "spec.selector.matchLabels",
        {"app": "x"},
        "spec.selector",
        "Invalid",
        'Invalid value: {"matchLabels":{"app":"x"}}: field is immutable',
        {},
    ),
    (
        kinds.STATEFULSETS,
        "spec.serviceName",
        "x",
        "spec",
        "Forbidden",
        "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template'",
        {},
    ),
    (kinds.JOBS, "spec.template.spec.containers.0.image", "y", "spec.template", "Invalid", "field is immutable", {}),
    (kinds.JOBS, "spec.completions", 7, "spec.completions", "Invalid", "Invalid value: 7: field is immutable", {}),
    (
        P,
        C + "command",
        ["x"],
        "spec",
        "Forbidden",
        "pod updates may not change fields other than `spec.containers[*].image`",
        {},
    ),
    (
        P,
        "spec.containers.1",
        {"name": "b", "image": "x", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"},
        "spec.containers",
        "Forbidden",
        "pod updates may not add or remove containers",
        {},
    ),
    (
        P,
        "spec.tolerations",
        [],
        "spec.tolerations",
        "Forbidden",
        "existing toleration can not be modified",
        {"spec.tolerations": [{"key": "k", "operator": "Exists"}]},
    ),
    (
        S,
        "spec.clusterIP",
        "10.0.0.9",
        "spec.clusterIPs[0]",
        "Invalid",
        'Invalid value: ["10.0.0.9"]: may not change once set',
        {"spec.clusterIP": "10.0.0.1"},
    ),
    (
        kinds.CONFIGMAPS,
        "data",
        {"a": "x"},
        "data",
        "Forbidden",
        "field is immutable when `immutable` is set",
        {"immutable": True},
    ),
    (
        kinds.SECRETS,
        "immutable",
        False,
        "immutable",
        "Forbidden",
        "field is immutable when `immutable` is set",
        {"immutable": True},
    ),
    (kinds.SECRETS, "type", "x/y", "type", "Invalid", 'Invalid value: "x/y": field is immutable', {}),
    (kinds.ROLEBINDINGS, "roleRef.name", "x", "roleRef", "Invalid", "cannot change roleRef", {}),
    (kinds.ENDPOINTSLICES, "addressType", "FQDN", "addressType", "Invalid", "field is immutable", {}),
    (
        kinds.PERSISTENTVOLUMECLAIMS,
        "spec.accessModes",
        ["ReadOnlyMany"],
        "spec",
        "Forbidden",
        "spec is immutable after creation except resources.requests",
        {},
    ),
    (
        kinds.PERSISTENTVOLUMECLAIMS,
        "spec.resources.requests.storage",
        "1Mi",
        "spec.resources.requests.storage",
        "Forbidden",
        "field can not be less than",
        {},
    ),
    (
        kinds.STORAGECLASSES,
        "provisioner",
        "x/y",
        "provisioner",
        "Forbidden",
        "updates to provisioner are forbidden.",
        {},
    ),
    (kinds.PRIORITYCLASSES, "value", 7, "value", "Forbidden", "may not be changed in an update.", {}),
    (kinds.INGRESSCLASSES, "spec.controller", "a/b", "spec.controller", "Invalid", "field is immutable", {}),
    (kinds.CUSTOMRESOURCEDEFINITIONS, "spec.scope", "Cluster", "spec.scope", "Invalid", "field is immutable", {}),
]


@pytest.mark.parametrize(("kind", "path", "value", "field", "reason", "message", "before"), UPDATES)
def test_an_update_that_may_not_be(
    kind: Kind, path: str, value: Any, field: str, reason: str, message: str, before: dict[str, Any]
) -> None:
    old = admitted(kind)
    for place, was in before.items():
        put(old, place, was)
    assert admit.check(kind, copy.deepcopy(old), old) == []
    causes = admit.check(kind, put(copy.deepcopy(old), path, value), old)
    told = [cause for cause in causes if cause.field == field and message in cause.message]
    assert told, causes
    assert told[0].reason == f"FieldValue{reason}"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        (P, C + "image", "nginx:2"),
        (P, "spec.activeDeadlineSeconds", 10),
        (P, "spec.tolerations", [{"key": "k", "operator": "Exists"}]),
        (P, "metadata.labels", {"a": "b"}),
        (D, "spec.replicas", 0),
        (D, "spec.template.spec.containers.0.image", "nginx:2"),
        (kinds.STATEFULSETS, "spec.replicas", 5),
        (kinds.JOBS, "spec.suspend", True),
        (kinds.PERSISTENTVOLUMECLAIMS, "spec.resources.requests.storage", "2Gi"),
        (kinds.CONFIGMAPS, "data", {"b": "c"}),
        (S, "spec.selector", {"x": "y"}),
    ],
)
def test_an_update_that_may_be(kind: Kind, path: str, value: Any) -> None:
    old = admitted(kind)
    assert admit.check(kind, put(copy.deepcopy(old), path, value), old) == []


def test_parts_of_an_object_have_rules_of_their_own() -> None:
    old = admitted(P)
    bound = put(copy.deepcopy(old), "spec.nodeName", "a")
    assert admit.check(P, bound, old) != []
    assert admit.check(P, bound, old, "binding") == []
    debugged = put(copy.deepcopy(old), "spec.ephemeralContainers", [{"name": "d", "image": "x"}])
    admit.default(P, debugged)
    assert admit.check(P, debugged, old, "ephemeralcontainers") == []
    again = put(copy.deepcopy(debugged), "spec.ephemeralContainers.0.image", "y")
    assert "may not be changed" in admit.check(P, again, debugged, "ephemeralcontainers")[0].message
    assert "may not be removed" in admit.check(P, old, debugged, "ephemeralcontainers")[0].message
    scale = {"spec": {"replicas": -1}, "metadata": {"name": "web"}}
    assert admit.check(kinds.SCALES, scale)[0].field == "spec.replicas"
    token = {"spec": {"expirationSeconds": 5}}
    assert "10 minutes" in admit.check(kinds.TOKENREQUESTS, token)[0].message
    assert admit.check(kinds.BINDINGS, {"metadata": {"name": "x"}, "target": {}})[0].field == "target.name"


def test_a_headless_service_and_an_external_name_need_no_ports() -> None:
    headless = put(put(admitted(S), "spec.clusterIP", "None"), "spec.ports", [])
    assert admit.check(S, headless) == []
    external = put(put(admitted(S), "spec.type", "ExternalName"), "spec.externalName", "example.com")
    put(external, "spec.ports", [])
    assert admit.check(S, external) == []


@pytest.mark.parametrize("text", ["* * * * *", "*/15 0-6,22 1,15 jan-mar mon", "@hourly", "@every 1h30m", "0 0 1 1 ?"])
def test_schedules_that_can_be_read(text: str) -> None:
    assert admit.check(kinds.CRONJOBS, put(admitted(kinds.CRONJOBS), "spec.schedule", text)) == []


@pytest.mark.parametrize(
    "text", ["* * * *", "*/0 * * * *", "5-1 * * * *", "x * * * *", "@now", "* * 0 * *", "1-2-3 * * * *"]
)
def test_schedules_that_cannot(text: str) -> None:
    causes = admit.check(kinds.CRONJOBS, put(admitted(kinds.CRONJOBS), "spec.schedule", text))
    assert [cause.field for cause in causes] == ["spec.schedule"]


def test_every_kind_of_volume_of_the_schema_is_known() -> None:
    fields = {field.name for field in schema.load().get("io.k8s.api.core.v1.Volume").fields}
    assert fields <= {"name", *volumes.SOURCES}
    fields = {field.name for field in schema.load().get("io.k8s.api.core.v1.PersistentVolumeSpec").fields}
    assert {name for name in volumes.SOURCES if name in fields}


def test_only_metadata_of_custom_resources_is_checked() -> None:
    boat = Kind("example.com", "v1", "Boat", "boats")
    assert admit.check(boat, {"metadata": {"name": "Bad_Name"}, "spec": 1})[0].field == "metadata.name"
