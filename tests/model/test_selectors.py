"""Label and field selectors: the whole syntax, upstream's complaints, and who matches."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import BadRequest, Invalid
from wherry.model import fields, kinds
from wherry.model.selectors import EVERYTHING, NOTHING, FieldSelector, LabelSelector

WEB = {"app": "web", "tier": "front", "rank": "7"}

MATCHES = [
    ("", True), ("app=web", True), ("app==web", True), ("app=db", False), ("app!=db", True), ("none!=x", True),
    ("app in (web, db)", True), ("app notin (web)", False), ("none notin (web)", True), ("app", True), ("!app", False),
    ("!none", True), ("none", False), ("app=web,tier=front", True), ("app=web,tier=back", False), ("rank>5", True),
    ("rank<5", False), ("rank>7", False), ("app>5", False), ("app=", False), ("none=", False), ("app in (web,)", True),
    (" app = web , tier in ( front ) ", True), ("x/app=web", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MATCHES)
def test_matching(text: str, expected: bool) -> None:
    selector = LabelSelector.parse(text)
    assert selector.matches(WEB) is expected
    assert LabelSelector.parse(str(selector)).matches(WEB) is expected


WRONG = [
    ("app=(", "found '(', expected: identifier"),
    ("a in", "found '', expected: '('"),
    ("a,", "found '', expected: identifier after ','"),
    ("env IN (a)", "found 'IN', expected: in, notin, =, ==, !=, gt, lt"),
    ("a====b", "found '==', expected: identifier"),
    ("=x", "found '=', expected: !, identifier, or 'end of string'"),
    ("a in (x", "found '', expected: ',' or ')'"),
    ("label0 in (=)", "found '=', expected: ',', ')' or identifier"),
    ("a>b", "the value must be an integer"),
    ("a=@", "a valid label must be an empty string or consist of"),
    ("@=a", "name part must consist of alphanumeric characters"),
    ("a=b c", "found 'c', expected: ',' or 'end of string'"),
]


@pytest.mark.parametrize(("text", "complaint"), WRONG)
def test_what_cannot_be_read_is_told(text: str, complaint: str) -> None:
    with pytest.raises(BadRequest) as told:
        LabelSelector.parse(text)
    assert told.value.message.startswith("unable to parse requirement: ")
    assert complaint in told.value.message


@given(st.text(alphabet="ab=!(),<> in", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(BadRequest):
        LabelSelector.parse(text).matches({"a": "b"})


def test_the_selectors_of_objects() -> None:
    assert LabelSelector.of(None) is NOTHING
    assert LabelSelector.of({}) == EVERYTHING
    assert LabelSelector.of({}).is_everything
    assert not NOTHING.matches({})
    chosen = LabelSelector.of(
        {
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["front", "back"]},
                {"key": "old", "operator": "DoesNotExist"},
                {"key": "rank", "operator": "Exists"},
                {"key": "app", "operator": "NotIn", "values": ["db"]},
            ],
        }
    )
    assert chosen.matches(WEB)
    assert not chosen.matches({**WEB, "old": ""})
    assert str(chosen) == "app=web,app!=db,!old,rank,tier in (back,front)"
    with pytest.raises(Invalid, match='"Near" is not a valid label selector operator'):
        LabelSelector.of({"matchExpressions": [{"key": "a", "operator": "Near"}]})
    assert not LabelSelector.equal({}).matches(WEB)
    assert LabelSelector.equal({"app": "web"}).matches(WEB)


POD = {
    "metadata": {"name": "web-1", "namespace": "shop"},
    "spec": {"nodeName": "a", "restartPolicy": "Always"},
    "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("metadata.name=web-1", True),
        ("metadata.name==web-1,status.phase=Running", True),
        ("status.phase!=Running", False),
        ("spec.nodeName=", False),
        ("status.podIPs=10.0.0.1", True),
        ("spec.hostNetwork=false", True),
        ("spec.schedulerName!=x", True),
    ],
)
def test_field_selectors(text: str, expected: bool) -> None:
    selector = FieldSelector.parse(text, fields.supported(kinds.PODS))
    assert selector.matches(fields.getter(kinds.PODS, POD)) is expected


def test_values_may_be_escaped() -> None:
    selector = FieldSelector.parse(r"a=x\,y\=z\\")
    assert selector.exact("a") == "x,y=z\\"
    assert str(selector) == r"a=x\,y\=z\\"
    assert selector.exact("b") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("spec.foo=1", "field label not supported: spec.foo"),
        ("status.phase", "can't understand 'status.phase'"),
        ("metadata.name=a=b", "unescaped character"),
        ("metadata.name=a\\x", "invalid escape sequence"),
    ],
)
def test_wrong_field_selectors(text: str, complaint: str) -> None:
    with pytest.raises(BadRequest) as told:
        FieldSelector.parse(text, fields.supported(kinds.PODS))
    assert complaint in told.value.message


def test_a_kind_without_fields_of_its_own_names_those_that_all_have() -> None:
    with pytest.raises(BadRequest, match="is not a known field selector: only"):
        FieldSelector.parse("data=1", fields.supported(kinds.CONFIGMAPS))


def test_the_fields_of_events_secrets_and_others() -> None:
    event = {"involvedObject": {"kind": "Pod", "name": "x"}, "source": {"component": "scheduler"}, "type": "Normal"}
    assert fields.text(kinds.EVENTS, event, "involvedObject.name") == "x"
    assert fields.text(kinds.EVENTS, event, "source") == "scheduler"
    assert "regarding.name" in fields.supported(kinds.EVENTS_V1)
    assert "type" in fields.supported(kinds.SECRETS)
    assert fields.text(kinds.NODES, {"spec": {"unschedulable": True}}, "spec.unschedulable") == "true"
    assert fields.text(kinds.JOBS, {"status": {"succeeded": 2}}, "status.successful") == "2"
    assert tuple(fields.supported(kinds.CONFIGMAPS)) == ("metadata.name", "metadata.namespace")
    assert "spec.color" in fields.supported(kinds.CONFIGMAPS, ("spec.color",))
