"""Pruning: unknown fields by path, wrong types in Go's words, canonical forms, quickly."""

import copy
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.samples import SAMPLED, put, sample
from wherry.model import admit, kinds
from wherry.model.kinds import Kind
from wherry.model.pruning import duplicates
from wherry.model.quantities import WRONG_FORM


@pytest.mark.parametrize("kind", SAMPLED, ids=lambda kind: kind.plural)
def test_right_objects_are_left_as_they_are(kind: Kind) -> None:
    obj = sample(kind)
    found = admit.prune(kind, obj)
    assert not found.unknown
    assert not found.wrong
    assert obj.keys() == sample(kind).keys()
    assert found.refusal(kind.kind, kind.version) == ""


def test_unknown_fields_are_dropped_and_told_by_path() -> None:
    obj = sample(kinds.DEPLOYMENTS)
    put(obj, "spec.foo", 1)
    put(obj, "spec.template.spec.containers.0.foo", {})
    put(obj, "metadata.foo", None)
    put(obj, "bar", [])
    found = admit.prune(kinds.DEPLOYMENTS, obj)
    assert sorted(found.strict) == [
        'unknown field "bar"',
        'unknown field "metadata.foo"',
        'unknown field "spec.foo"',
        'unknown field "spec.template.spec.containers[0].foo"',
    ]
    assert obj == sample(kinds.DEPLOYMENTS)
    assert found.refusal("Deployment", "v1").startswith(
        'Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "'
    )


_D, _C = kinds.DEPLOYMENTS, "spec.template.spec.containers.0."
_LAYOUT = "2006-01-02T15:04:05Z07:00"
WRONG: list[tuple[Kind, str, Any, str]] = [
    (_D, "spec.replicas", "3", "string into Go struct field DeploymentSpec.spec.replicas of type int32"),
    (_D, "spec.replicas", 1.5, "number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"),
    (_D, "spec.replicas", 2**31, "number 2147483648 into Go struct field DeploymentSpec.spec.replicas of type int32"),
    (_D, "spec.paused", "yes", "string into Go struct field DeploymentSpec.spec.paused of type bool"),
    (_D, "spec", [], "array into Go struct field Deployment.spec of type v1.DeploymentSpec"),
    (_D, "metadata.labels.app", 1, "number into Go struct field ObjectMeta.metadata.labels.app of type string"),
    (
        _D,
        "spec.template.spec.containers",
        {},
        "object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
    ),
    (
        _D,
        _C + "image",
        True,
        "bool into Go struct field Container.spec.template.spec.containers.image of type string",
    ),
    (_D, _C + "resources.limits", {"cpu": "1x"}, WRONG_FORM),
    (_D, _C + "resources.limits", {"cpu": "1K"}, "unable to parse quantity's suffix"),
    (kinds.SERVICES, "spec.ports.0.targetPort", [], "array into Go value of type string"),
    (kinds.SECRETS, "data.a", "###", "illegal base64 data at input byte 0"),
    (kinds.LEASES, "spec.renewTime", "now", f'parsing time "now" as "{_LAYOUT}": cannot parse "now" as "{_LAYOUT}"'),
]


@pytest.mark.parametrize(("kind", "path", "value", "sentence"), WRONG)
def test_wrong_types_are_told_in_the_decoders_words(kind: Kind, path: str, value: Any, sentence: str) -> None:
    obj = put(sample(kind), path, value)
    found = admit.prune(kind, obj)
    assert found.wrong == [f"json: cannot unmarshal {sentence}" if " into Go " in sentence else sentence]
    assert found.refusal("X", "v1").startswith('X in version "v1" cannot be handled as a X: ')


def test_times_and_quantities_get_their_canonical_form() -> None:
    lease = put(sample(kinds.LEASES), "spec.renewTime", "2026-01-31T12:00:00.5+02:00")
    put(lease, "metadata.creationTimestamp", "2026-01-31T12:00:00+02:00")
    admit.prune(kinds.LEASES, lease)
    assert lease["spec"]["renewTime"] == "2026-01-31T10:00:00.500000Z"
    assert lease["metadata"]["creationTimestamp"] == "2026-01-31T10:00:00Z"
    pod = put(sample(kinds.PODS), "spec.containers.0.resources.limits", {"cpu": 0.5, "memory": "1024Mi"})
    admit.prune(kinds.PODS, pod)
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "500m", "memory": "1Gi"}


def test_nulls_are_dropped_or_become_zero() -> None:
    pod = sample(kinds.PODS)
    put(pod, "metadata.creationTimestamp", None)
    put(pod, "metadata.labels", {"a": None})
    put(pod, "spec.nodeName", None)
    put(pod, "spec.containers.0.args", [None, "x"])
    assert not admit.prune(kinds.PODS, pod).strict
    assert pod["metadata"] == {"name": "web", "namespace": "shop", "labels": {"a": ""}}
    assert "nodeName" not in pod["spec"]
    assert pod["spec"]["containers"][0]["args"] == ["", "x"]


def test_what_may_hold_anything_is_left_alone() -> None:
    revision = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "x"}, "revision": 1}
    revision["data"] = {"spec": {"anything": [None, {"goes": True}]}}
    before = copy.deepcopy(revision)
    assert not admit.prune(kinds.CONTROLLERREVISIONS, revision).strict
    assert revision == before
    pod = sample(kinds.PODS)
    put(pod, "metadata.managedFields", [{"manager": "m", "fieldsV1": {"f:spec": {"f:x": {}}}}])
    assert not admit.prune(kinds.PODS, pod).strict


def test_schemas_of_custom_resources() -> None:
    crd = sample(kinds.CUSTOMRESOURCEDEFINITIONS)
    props: dict[str, Any] = {
        "type": "object",
        "properties": {
            "list": {"type": "array", "items": {"type": "string", "oops": 1}},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
            "free": {"x-kubernetes-preserve-unknown-fields": True, "default": {"a": None}},
            "either": {"x-kubernetes-int-or-string": True, "additionalProperties": False},
        },
    }
    put(crd, "spec.versions.0.schema.openAPIV3Schema", props)
    found = admit.prune(kinds.CUSTOMRESOURCEDEFINITIONS, crd)
    assert not found.wrong
    assert [path.rpartition("properties.")[2] for path in found.unknown] == ["list.items.oops"]


def test_only_metadata_of_custom_resources_is_read() -> None:
    boat = Kind("example.com", "v1", "Boat", "boats")
    obj = {"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "x", "foo": 1}, "spec": {"a": None}}
    assert admit.prune(boat, obj).strict == ['unknown field "metadata.foo"']
    assert obj["spec"] == {"a": None}


def test_duplicates_are_found_in_the_text() -> None:
    text = b'{"a": 1, "b": {"c": [{"x": 1, "x": 2}], "c": 2}, "a": 1}'
    assert sorted(duplicates(text)) == ["a", "b.c", "b.c[0].x"]
    assert duplicates(b'{"a": {"a": [1, {"a": 1}]}}') == []


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["metadata", "spec", "name", "containers", "labels", "x"]), inner, max_size=3
            )
        ),
        max_leaves=12,
    )
)
def test_no_value_is_too_odd(value: Any) -> None:
    obj = {"apiVersion": "v1", "kind": "Pod", "spec": value, "metadata": copy.deepcopy(value)}
    found = admit.prune(kinds.PODS, obj)
    if not found.wrong:
        admit.default(kinds.PODS, obj)
        admit.check(kinds.PODS, obj)
        assert not admit.prune(kinds.PODS, obj).strict


def test_a_pod_takes_microseconds() -> None:
    pod = sample(kinds.PODS)
    admit.prune(kinds.PODS, pod)
    best_s = 1.0
    for _ in range(30):
        start = time.perf_counter()
        admit.prune(kinds.PODS, pod)
        best_s = min(best_s, time.perf_counter() - start)
    assert best_s < 0.0005
