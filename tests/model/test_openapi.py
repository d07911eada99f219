"""OpenAPI documents: whole, marked as kubectl needs, and a stub for old clients."""

import json
import re

import pytest

from wherry.errors import NotFound
from wherry.model import kinds, openapi


@pytest.mark.parametrize("group_version", kinds.group_versions())
def test_a_document_refers_to_nothing_outside_itself(group_version: str) -> None:
    document = openapi.document(group_version)
    schemas = document["components"]["schemas"]
    for name in set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document))):
        assert name in schemas
    for kind in kinds.KINDS:
        if kind.api_version != group_version:
            continue
        gvk = {"group": kind.group, "kind": kind.kind, "version": kind.version}
        assert gvk in schemas[kind.definition]["x-kubernetes-group-version-kind"]
        collection = document["paths"][kind.path("{namespace}" if kind.namespaced else "")]
        for verb, method in (("create", "post"), ("list", "get"), ("deletecollection", "delete")):
            assert (verb in kind.verbs) == (method in collection)
            if verb in kind.verbs:
                assert collection[method]["x-kubernetes-group-version-kind"] == gvk


def test_writes_take_field_validation_and_patches_may_be_strategic() -> None:
    document = openapi.document("apps/v1")
    path = "/apis/apps/v1/namespaces/{namespace}/deployments"
    writes = {
        "post": document["paths"][path]["post"],
        "put": document["paths"][path + "/{name}"]["put"],
        "patch": document["paths"][path + "/{name}"]["patch"],
    }
    for action, operation in writes.items():
        assert operation["x-kubernetes-action"] == action
        assert "fieldValidation" in [one["name"] for one in operation["parameters"]]
    assert "application/strategic-merge-patch+json" in writes["patch"]["requestBody"]["content"]
    assert "application/apply-patch+yaml" in writes["patch"]["requestBody"]["content"]
    scale = document["paths"][path + "/{name}/scale"]["get"]["x-kubernetes-group-version-kind"]
    assert scale == {"group": "autoscaling", "kind": "Scale", "version": "v1"}


def test_schemas_say_how_lists_merge() -> None:
    schemas = openapi.document("v1")["components"]["schemas"]
    containers = schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-strategy"] == "merge"
    assert containers["x-kubernetes-patch-merge-key"] == "name"
    assert containers["x-kubernetes-list-type"] == "map"
    assert containers["x-kubernetes-list-map-keys"] == ["name"]
    assert schemas["io.k8s.api.core.v1.PodSpec"]["required"] == ["containers"]
    assert schemas["io.k8s.apimachinery.pkg.apis.meta.v1.Time"]["format"] == "date-time"


def test_operations_have_names_of_their_own() -> None:
    for group_version in kinds.group_versions():
        paths = openapi.document(group_version)["paths"]
        names = [
            operation["operationId"]
            for item in paths.values()
            for method, operation in item.items()
            if method != "parameters"
        ]
        assert len(names) == len(set(names)), group_version


def test_the_index_leads_to_every_document() -> None:
    paths = openapi.index({"apis/example.com/v1": "ABC"})["paths"]
    assert paths["apis/example.com/v1"]["serverRelativeURL"] == "/openapi/v3/apis/example.com/v1?hash=ABC"
    assert {openapi.key(group_version) for group_version in kinds.group_versions()} < set(paths)
    assert paths["api/v1"]["serverRelativeURL"].startswith("/openapi/v3/api/v1?hash=")


def test_what_there_is_no_document_of() -> None:
    with pytest.raises(NotFound, match="example"):
        openapi.document("example.com/v1")


def test_the_stub_for_old_clients_is_a_small_protobuf_document() -> None:
    stub = openapi.v2_stub()
    assert len(stub) < 64
    assert stub.startswith(b"\x0a\x032.0\x12")
    assert stub.endswith(b"\x42\x00\x4a\x00")
