"""Protobuf bodies: every kind reads back as it was written, and odd bytes are refused with a reason."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model import encoder
from tests.model.samples import SAMPLED, admitted, put
from wherry.errors import BadRequest, UnsupportedMediaType
from wherry.model import admit, kinds, protobuf, schema
from wherry.model.kinds import Kind

NEWER = {
    "io.k8s.api.core.v1.NodeSystemInfo": {"runningInUserNamespace"},
    "io.k8s.api.resource.v1.DeviceCounterConsumption": {"compatibilityGroups"},
    "io.k8s.api.resource.v1.DeviceSubRequest": {"derivedAttributes"},
    "io.k8s.api.resource.v1.ExactDeviceRequest": {"derivedAttributes"},
}
"""Fields of the schema that are newer than the numbers."""


def test_the_table_fits_the_schema_with_nothing_left_over() -> None:
    opened = schema.load()
    reached = [kind.definition for kind in (*kinds.KINDS, *kinds.BODIES)]
    seen: set[str] = set()
    while reached:
        name = reached.pop()
        if name in seen or opened.get(name).shape.base != "object":
            continue
        seen.add(name)
        is_whole = bool(opened.get(name).kinds) or name == kinds.DELETEOPTIONS.definition
        fields = {field.name for field in opened.get(name).fields} - ({"apiVersion", "kind"} if is_whole else set())
        newer = NEWER.get(name, set())
        assert newer <= fields
        assert fields - newer == set(protobuf.messages()[name]), name
        if not newer:
            for field in opened.get(name).fields:
                shape: schema.Shape | None = field.shape
                while shape is not None:
                    reached += [shape.ref] if shape.ref else []
                    shape = shape.item
    assert len(seen) > 450


def test_the_table_is_small() -> None:
    assert (schema.PATH.parent / "protobuf_fields.json").stat().st_size < 200_000


@pytest.mark.parametrize("kind", SAMPLED, ids=lambda kind: kind.plural)
def test_a_body_reads_back_as_it_was_written(kind: Kind) -> None:
    obj = admitted(kind)
    obj["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z"
    obj["metadata"]["managedFields"] = [{"manager": "m", "fieldsV1": {"f:metadata": {"f:labels": {}}}}]
    read, unknown = protobuf.decode(encoder.body(obj))
    assert unknown == []
    assert read["metadata"]["managedFields"] == obj["metadata"]["managedFields"]
    admit.default(kind, read)  # what protobuf leaves out of a claim's template
    assert _without_empties(read) == _without_empties(obj)


def _without_empties(obj: Any) -> Any:
    """What protobuf cannot tell from absent: empty maps and lists, strings, and messages that are no pointers."""
    if isinstance(obj, list):
        return [_without_empties(item) for item in obj]
    if not isinstance(obj, dict):
        return obj
    kept = ("emptyDir", "securityContext", "podSelector", "metadata", "spec")
    made = {name: _without_empties(value) for name, value in obj.items()}
    return {name: value for name, value in made.items() if value not in ({}, [], "") or (value == {} and name in kept)}


def test_forms_of_their_own() -> None:
    pod = admitted(kinds.PODS)
    put(pod, "spec.containers.0.resources", {"limits": {"cpu": "500m"}})
    put(pod, "spec.containers.0.livenessProbe", {"httpGet": {"port": "http"}, "periodSeconds": 5})
    put(pod, "spec.terminationGracePeriodSeconds", -1)
    read = protobuf.decode_body(encoder.body(pod))
    container = read["spec"]["containers"][0]
    assert container["resources"] == {"limits": {"cpu": "500m"}}
    assert container["livenessProbe"] == {"httpGet": {"port": "http"}, "periodSeconds": 5}
    assert read["spec"]["terminationGracePeriodSeconds"] == -1
    lease = put(admitted(kinds.LEASES), "spec.renewTime", "2026-01-02T03:04:05.000006Z")
    assert protobuf.decode_body(encoder.body(lease))["spec"]["renewTime"] == "2026-01-02T03:04:05.000006Z"
    secret = protobuf.decode_body(encoder.body(put(admitted(kinds.SECRETS), "data", {"k": "AP8="})))
    assert secret["data"] == {"k": "AP8="}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"extra": {"a": ["b", "c"]}},
    }
    assert protobuf.decode_body(encoder.body(review)) == review
    revision = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "data": {"spec": {"a": [1, None]}},
        "revision": 3,
    }
    assert protobuf.decode_body(encoder.body(revision)) == revision


def test_schemas_of_custom_resources() -> None:
    crd = admitted(kinds.CUSTOMRESOURCEDEFINITIONS)
    props: dict[str, Any] = {
        "type": "object",
        "properties": {
            "list": {"type": "array", "items": {"type": "string"}},
            "many": {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
            "none": {"type": "object", "additionalProperties": False},
            "free": {"default": {"a": [None, 1.5]}, "enum": ["x", 1]},
            "size": {"type": "number", "maximum": 2.5},
        },
    }
    put(crd, "spec.versions.0.schema.openAPIV3Schema", props)
    read = protobuf.decode_body(encoder.body(crd))
    assert read["spec"]["versions"][0]["schema"]["openAPIV3Schema"] == props


def test_what_go_writes_for_nothing_is_dropped() -> None:
    field = encoder.field
    metadata = field(1, b"web") + field(2, b"") + field(3, b"") + field(4, b"") + field(7, 0) + field(8, b"")
    strategy, status = field(4, b""), field(3, b"")
    spec = field(1, 3) + strategy + field(5, 0)
    deployment = field(1, metadata) + field(2, spec) + status
    meta = field(1, b"apps/v1") + field(2, b"Deployment")
    read = protobuf.decode_body(protobuf.MAGIC + field(1, meta) + field(2, deployment))
    assert read["metadata"] == {"name": "web"}
    assert read["spec"] == {"replicas": 3, "minReadySeconds": 0}
    assert read.keys() == {"apiVersion", "kind", "metadata", "spec"}


def test_an_empty_volume_and_an_empty_class_are_kept() -> None:
    pod = put(admitted(kinds.PODS), "spec.volumes", [{"name": "v", "emptyDir": {}}])
    assert protobuf.decode_body(encoder.body(pod))["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    claim = put(admitted(kinds.PERSISTENTVOLUMECLAIMS), "spec.storageClassName", "")
    assert protobuf.decode_body(encoder.body(claim))["spec"]["storageClassName"] == ""


def test_fields_newer_than_the_table_are_passed_over_and_told() -> None:
    data = encoder.body({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})
    envelope = data[4:]
    raw = encoder.message(kinds.PODS.definition, {"metadata": {"name": "x"}}) + encoder.field(99, b"new")
    meta = encoder.field(1, encoder.field(1, b"v1") + encoder.field(2, b"Pod"))
    read, unknown = protobuf.decode(protobuf.MAGIC + meta + encoder.field(2, raw))
    assert read["metadata"] == {"name": "x"}
    assert unknown == ["Pod.99"]
    assert envelope


def test_options_come_with_any_group_version() -> None:
    meta = encoder.field(1, encoder.field(1, b"policy/v1") + encoder.field(2, b"DeleteOptions"))
    raw = encoder.message(kinds.DELETEOPTIONS.definition, {"gracePeriodSeconds": 0, "propagationPolicy": "Foreground"})
    read = protobuf.decode_body(protobuf.MAGIC + meta + encoder.field(2, raw))
    assert (read["gracePeriodSeconds"], read["propagationPolicy"]) == (0, "Foreground")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"{}", "does not start with"),
        (b"k8s\0", 'no kind "" is registered'),
        (b"k8s\0" + encoder.field(1, encoder.field(1, b"a/v1") + encoder.field(2, b"Boat")), 'no kind "Boat"'),
        (b"k8s\0\x12\x05ab", "ends in the middle of field 2"),
        (b"k8s\0\xff", "ends in the middle of a number"),
        (b"k8s\0\x0b", "wire type 3"),
        (b"k8s\0" + encoder.field(1, encoder.field(1, b"\xff")), "not UTF-8"),
    ],
)
def test_bytes_that_are_no_body(data: bytes, complaint: str) -> None:
    with pytest.raises(BadRequest) as told:
        protobuf.decode_body(data)
    assert complaint in told.value.message


def test_an_encoding_of_its_own_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType):
        protobuf.decode_body(protobuf.MAGIC + encoder.field(3, b"gzip"))


def test_a_schema_in_a_schema_without_end_is_refused() -> None:
    raw = b""
    for _ in range(400):
        raw = encoder.field(26, raw)  # allOf in allOf in allOf ...
    versions = encoder.field(7, encoder.field(1, b"v1") + encoder.field(4, encoder.field(1, raw)))
    meta = encoder.field(1, b"apiextensions.k8s.io/v1") + encoder.field(2, b"CustomResourceDefinition")
    data = protobuf.MAGIC + encoder.field(1, meta) + encoder.field(2, encoder.field(2, versions))
    with pytest.raises(BadRequest, match="nested deeper"):
        protobuf.decode_body(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    meta = encoder.field(1, encoder.field(1, b"v1") + encoder.field(2, b"Pod"))
    for whole in (protobuf.MAGIC + data, protobuf.MAGIC + meta + encoder.field(2, data)):
        try:
            assert protobuf.decode_body(whole)["kind"] is not None
        except (BadRequest, UnsupportedMediaType):
            continue
