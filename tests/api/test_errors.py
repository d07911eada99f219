"""Every outcome has its Status; wrong requests get the right code, reason and field, and never a 500."""

# ruff: noqa: E501  # the tables read best with a case on a line

from typing import Any

import pytest

from wherry import errors
from wherry.api.errors import STATUS, code_of, failure
from wherry.errors import Cause, WherryError

from .conftest import Running

Json = dict[str, Any]


def _subclasses(cls: type[WherryError]) -> list[type[WherryError]]:
    found = [cls for cls in cls.__subclasses__() if cls.__module__ == errors.__name__]
    return found + [below for one in found for below in _subclasses(one)]


def test_no_outcome_is_forgotten() -> None:
    missing = [cls.__name__ for cls in _subclasses(WherryError) if cls not in STATUS]
    assert not missing
    assert all(code not in (500,) for code, _ in STATUS.values())


def test_causes_and_retry_are_told() -> None:
    error = errors.TooManyRequests("later", retry_after_s=7, causes=[Cause("a.b", "X", "y")])
    assert code_of(error) == 429
    status = failure(error)
    assert status["details"] == {"causes": [{"reason": "X", "message": "y", "field": "a.b"}], "retryAfterSeconds": 7}


POD: Json = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web"},
    "spec": {"containers": [{"name": "web", "image": "web:1"}]},
}
CONFIGMAP: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}}
DEPLOYMENT: Json = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": POD["spec"]},
    },
}
SERVICE: Json = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}},
}
NS = "/api/v1/namespaces/default"
APPS = "/apis/apps/v1/namespaces/default"
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
MERGE = {"Content-Type": "application/merge-patch+json"}


def _with(obj: Json, path: str, value: Any) -> Json:
    head, _, rest = path.partition(".")
    if not rest:
        return {**obj, head: value}
    return {**obj, head: _with(obj.get(head) or {}, rest, value)}


WRONG: list[tuple[str, str, str, Any, dict[str, str], int, str, str]] = [
    # what, method, path, body, headers, code, reason, a word that must be in the message or a cause's field
    ("no such object", "GET", f"{NS}/pods/none", None, {}, 404, "NotFound", 'pods "none" not found'),
    ("no such resource", "GET", f"{NS}/boats", None, {}, 404, "NotFound", "the requested resource"),
    ("no such group", "GET", "/apis/boats.example/v1/boats", None, {}, 404, "NotFound", "the requested resource"),
    ("no such path", "GET", "/nothing", None, {}, 404, "NotFound", "/nothing"),
    ("no such sub-resource", "GET", f"{NS}/pods/web/sails", None, {}, 404, "NotFound", "the requested resource"),
    ("method", "PUT", f"{NS}/pods", POD, {}, 405, "MethodNotAllowed", "PUT"),
    ("method unknown", "BREW", f"{NS}/pods", None, {}, 405, "MethodNotAllowed", "BREW"),
    ("namespaced without one", "POST", "/api/v1/pods", POD, {}, 405, "MethodNotAllowed", "namespace"),
    ("no JSON", "POST", f"{NS}/pods", b"{", {}, 400, "BadRequest", "JSON"),
    ("no body", "POST", f"{NS}/pods", b"", {}, 400, "BadRequest", "no body"),
    ("a list", "POST", f"{NS}/pods", [], {}, 400, "BadRequest", "list"),
    ("no YAML", "POST", f"{NS}/pods", b"a: [", {"Content-Type": "application/yaml"}, 400, "BadRequest", "YAML"),
    ("no protobuf", "POST", f"{NS}/pods", b"x", {"Content-Type": "application/vnd.kubernetes.protobuf"}, 400, "BadRequest", "protobuf"),
    ("media type", "POST", f"{NS}/pods", b"x", {"Content-Type": "text/csv"}, 415, "UnsupportedMediaType", "text/csv"),
    ("wrong kind", "POST", f"{NS}/pods", CONFIGMAP, {}, 400, "BadRequest", "ConfigMap"),
    ("wrong version", "POST", f"{APPS}/deployments", {**DEPLOYMENT, "apiVersion": "apps/v2"}, {}, 400, "BadRequest", "apps/v2"),
    ("wrong namespace", "POST", f"{NS}/pods", _with(POD, "metadata.namespace", "x"), {}, 400, "BadRequest", "namespace"),
    ("absent namespace", "POST", "/api/v1/namespaces/none/pods", POD, {}, 404, "NotFound", 'namespaces "none" not found'),
    ("no name", "POST", f"{NS}/configmaps", _with(CONFIGMAP, "metadata", {}), {}, 422, "Invalid", "metadata.name"),
    ("bad name", "POST", f"{NS}/configmaps", _with(CONFIGMAP, "metadata.name", "A_b"), {}, 422, "Invalid", "metadata.name"),
    ("bad label", "POST", f"{NS}/configmaps", _with(CONFIGMAP, "metadata.labels", {"a": "b c"}), {}, 422, "Invalid", "metadata.labels"),
    ("wrong type", "POST", f"{APPS}/deployments", _with(DEPLOYMENT, "spec.replicas", "three"), {}, 400, "BadRequest", "replicas"),
    ("unknown field", "POST", f"{APPS}/deployments?fieldValidation=Strict", _with(DEPLOYMENT, "spec.replica", 3), {}, 400, "BadRequest", 'unknown field "spec.replica"'),
    ("duplicate field", "POST", f"{NS}/configmaps?fieldValidation=Strict", b'{"metadata":{"name":"a"},"data":{"x":"1","x":"2"}}', {}, 400, "BadRequest", 'duplicate field "data.x"'),
    ("negative replicas", "POST", f"{APPS}/deployments", _with(DEPLOYMENT, "spec.replicas", -1), {}, 422, "Invalid", "spec.replicas"),
    ("selector without match", "POST", f"{APPS}/deployments", _with(DEPLOYMENT, "spec.selector.matchLabels", {"app": "x"}), {}, 422, "Invalid", "spec.template.metadata.labels"),
    ("no containers", "POST", f"{NS}/pods", _with(POD, "spec.containers", []), {}, 422, "Invalid", "spec.containers"),
    ("bad quantity", "POST", f"{NS}/pods", _with(POD, "spec.containers", [{"name": "a", "image": "b", "resources": {"limits": {"cpu": "much"}}}]), {}, 400, "BadRequest", "quantit"),
    ("absent account", "POST", f"{NS}/pods", _with(POD, "spec.serviceAccountName", "none"), {}, 403, "Forbidden", "none"),
    ("absent priority class", "POST", f"{NS}/pods", _with(POD, "spec.priorityClassName", "none"), {}, 403, "Forbidden", "none"),
    ("address taken", "POST", f"{NS}/services", _with(SERVICE, "spec.clusterIP", "10.96.0.1"), {}, 422, "Invalid", "spec.clusterIPs"),
    ("address outside", "POST", f"{NS}/services", _with(SERVICE, "spec.clusterIP", "192.0.2.1"), {}, 422, "Invalid", "spec.clusterIPs"),
    ("port outside", "POST", f"{NS}/services", _with(_with(SERVICE, "spec.type", "NodePort"), "spec.ports", [{"port": 80, "nodePort": 80}]), {}, 422, "Invalid", "spec.ports[0].nodePort"),
    ("version at creation", "POST", f"{NS}/configmaps", _with(CONFIGMAP, "metadata.resourceVersion", "3"), {}, 400, "BadRequest", "resourceVersion"),
    ("taken name", "POST", "/api/v1/namespaces", {"metadata": {"name": "default"}}, {}, 409, "AlreadyExists", "default"),
    ("field validation", "POST", f"{NS}/configmaps?fieldValidation=Maybe", CONFIGMAP, {}, 400, "BadRequest", "fieldValidation"),
    ("dry run", "POST", f"{NS}/configmaps?dryRun=Some", CONFIGMAP, {}, 400, "BadRequest", "dryRun"),
    ("label selector", "GET", f"{NS}/pods?labelSelector=a%20b", None, {}, 400, "BadRequest", "requirement"),
    ("field selector", "GET", f"{NS}/pods?fieldSelector=spec.hat=x", None, {}, 400, "BadRequest", "spec.hat"),
    ("limit", "GET", f"{NS}/pods?limit=few", None, {}, 400, "BadRequest", "limit"),
    ("continue", "GET", f"{NS}/pods?continue=%21%21", None, {}, 400, "BadRequest", "continue"),
    ("version", "GET", f"{NS}/pods?resourceVersion=new", None, {}, 400, "BadRequest", "resourceVersion"),
    ("version match", "GET", f"{NS}/pods?resourceVersionMatch=Exact", None, {}, 422, "Invalid", "resourceVersionMatch"),
    ("version to come", "GET", f"{NS}/pods?resourceVersion=999999", None, {}, 504, "Timeout", "Too large resource version"),
    ("initial events in a list", "GET", f"{NS}/pods?sendInitialEvents=true", None, {}, 422, "Invalid", "sendInitialEvents"),
    ("form", "GET", f"{NS}/pods", None, {"Accept": "application/cbor"}, 406, "NotAcceptable", "application/json"),
    ("apply", "PATCH", f"{NS}/configmaps/a", b"{}", {"Content-Type": "application/apply-patch+yaml"}, 415, "UnsupportedMediaType", "server-side apply"),
    ("patch type", "PATCH", "/api/v1/namespaces/default", b"{}", {"Content-Type": "text/plain"}, 415, "UnsupportedMediaType", "json-patch"),
    ("patch form", "PATCH", "/api/v1/namespaces/default", b"[]", MERGE, 400, "BadRequest", "merge patch"),
    ("patch path", "PATCH", "/api/v1/namespaces/default", b'[{"op":"remove","path":"/metadata/none"}]', JSON_PATCH, 422, "Invalid", "none"),
    ("patch of the name", "PATCH", "/api/v1/namespaces/default", b'{"metadata":{"name":"x"}}', MERGE, 422, "Invalid", "metadata.name"),
    ("name of the body", "PUT", "/api/v1/namespaces/default", {"metadata": {"name": "x"}}, {}, 400, "BadRequest", "name"),
    ("old version", "PUT", "/api/v1/namespaces/default", {"metadata": {"name": "default", "resourceVersion": "999"}}, {}, 409, "Conflict", "modified"),
    ("precondition", "DELETE", "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical", {"preconditions": {"uid": "x"}}, {}, 409, "Conflict", "UID"),
    ("propagation", "DELETE", "/api/v1/namespaces/default?propagationPolicy=Sideways", None, {}, 422, "Invalid", "propagationPolicy"),
    ("grace", "DELETE", "/api/v1/namespaces/default", {"gracePeriodSeconds": "long"}, {}, 400, "BadRequest", "gracePeriodSeconds"),
    ("immortal", "DELETE", "/api/v1/namespaces/kube-system", None, {}, 403, "Forbidden", "kube-system"),
    ("custom resources", "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {"metadata": {"name": "a.b"}, "spec": {"group": "b", "names": {"plural": "a", "kind": "A"}, "scope": "Namespaced", "versions": []}}, {}, 501, "NotImplemented", "custom resources"),
    ("review without a question", "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"spec": {}}, {}, 422, "Invalid", "spec.resourceAttributes"),
    ("token for nobody", "POST", f"{NS}/serviceaccounts/none/token", {"spec": {}}, {}, 404, "NotFound", "none"),
    ("logs of nobody", "GET", f"{NS}/pods/none/log", None, {}, 404, "NotFound", "none"),
]  # fmt: skip


async def test_wrong_requests_are_answered_with_what_is_wrong(api: Running) -> None:
    wrong: list[str] = []
    for what, method, path, body, headers, code, reason, word in WRONG:
        answer = await api.ask(method, path, body, headers=headers)
        try:
            status = answer.json
            told = status["message"] + str([c.get("field") for c in status.get("details", {}).get("causes", ())])
            got = answer.status, status["reason"], status["kind"], status["status"], status["code"]
            if got != (code, reason, "Status", "Failure", code) or word not in told:
                wrong.append(f"{what}: wanted {code} {reason} {word!r}, got {got} {told!r}")
        except (ValueError, KeyError) as error:
            wrong.append(f"{what}: {error!r} {answer}")
    assert not wrong, "\n".join(wrong)
    assert len(WRONG) >= 25


async def test_causes_name_each_field(api: Running) -> None:
    body = _with(_with(DEPLOYMENT, "spec.replicas", -1), "spec.minReadySeconds", -2)
    answer = await api.ask("POST", f"{APPS}/deployments", body)
    details = answer.json["details"]
    assert {cause["field"] for cause in details["causes"]} >= {"spec.replicas", "spec.minReadySeconds"}
    assert (details["name"], details["group"], details["kind"]) == ("web", "apps", "Deployment")


async def test_warnings_tell_of_fields_that_were_dropped(api: Running) -> None:
    answer = await api.ask("POST", f"{NS}/configmaps?fieldValidation=Warn", {**CONFIGMAP, "dta": {}})
    assert answer.status == 201
    assert answer.headers["warning"] == '299 - "unknown field \\"dta\\""'
    assert "dta" not in answer.json


@pytest.mark.parametrize("size", [3 * 1024 * 1024 + 1])
async def test_a_body_too_large_is_refused(api: Running, size: int) -> None:
    answer = await api.ask("POST", f"{NS}/configmaps", b" " * size)
    assert (answer.status, answer.json["reason"]) == (413, "RequestEntityTooLarge")
