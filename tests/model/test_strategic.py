"""Strategic merge: what kubectl's patches do to a Deployment."""

import copy
from typing import Any

import pytest

from wherry.errors import BadRequest
from wherry.model import kinds
from wherry.model.patches import strategic_merge

OLD: dict[str, Any] = {
    "metadata": {"name": "web", "finalizers": ["a/1", "b/2"], "labels": {"app": "web", "old": "x"}},
    "spec": {
        "replicas": 1,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
        "template": {
            "spec": {
                "containers": [
                    {"name": "a", "image": "x", "env": [{"name": "A", "value": "1"}], "args": ["one", "two"]},
                    {"name": "b", "image": "y"},
                ],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "tolerations": [{"key": "k"}],
            }
        },
    },
}


def patched(patch: dict[str, Any], document: dict[str, Any] = OLD) -> dict[str, Any]:
    before, asked = copy.deepcopy(document), copy.deepcopy(patch)
    made = strategic_merge(kinds.DEPLOYMENTS, document, patch)
    assert document == before
    assert patch == asked
    return made


def in_pod(**fields: Any) -> dict[str, Any]:
    return {
        "spec": {"template": {"spec": {name.replace("order_", "$setElementOrder/"): v for name, v in fields.items()}}}
    }


def containers(made: dict[str, Any]) -> list[dict[str, Any]]:
    return made["spec"]["template"]["spec"]["containers"]


def test_items_merge_by_their_key() -> None:
    made = patched(in_pod(containers=[{"name": "b", "image": "z"}, {"name": "c", "image": "new"}]))
    assert [(one["name"], one["image"]) for one in containers(made)] == [("a", "x"), ("b", "z"), ("c", "new")]


def test_inner_lists_merge_too_and_plain_lists_are_replaced() -> None:
    made = patched(in_pod(containers=[{"name": "a", "env": [{"name": "B", "value": "2"}], "args": ["three"]}]))
    assert containers(made)[0]["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    assert containers(made)[0]["args"] == ["three"]
    assert patched(in_pod(tolerations=[{"key": "z"}]))["spec"]["template"]["spec"]["tolerations"] == [{"key": "z"}]


def test_null_removes_and_maps_merge() -> None:
    made = patched({"metadata": {"labels": {"old": None, "new": "y"}}, "spec": {"replicas": None}})
    assert made["metadata"]["labels"] == {"app": "web", "new": "y"}
    assert "replicas" not in made["spec"]


def test_patch_delete_takes_an_item_or_a_field_away() -> None:
    made = patched(in_pod(containers=[{"name": "a", "$patch": "delete"}]))
    assert [one["name"] for one in containers(made)] == ["b"]
    assert "strategy" not in patched({"spec": {"strategy": {"$patch": "delete"}}})["spec"]


def test_patch_replace_keeps_nothing() -> None:
    assert patched({"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}})["spec"]["strategy"] == {
        "type": "Recreate"
    }
    made = patched(in_pod(containers=[{"$patch": "replace"}, {"name": "n", "image": "i"}]))
    assert containers(made) == [{"name": "n", "image": "i"}]


def test_patch_merge_says_what_is_done_anyway() -> None:
    assert patched({"spec": {"$patch": "merge", "replicas": 3}})["spec"]["replicas"] == 3


def test_retain_keys_clears_the_rest_of_a_union() -> None:
    made = patched({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}})
    assert made["spec"]["strategy"] == {"type": "Recreate"}
    made = patched(in_pod(volumes=[{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]))
    assert made["spec"]["template"]["spec"]["volumes"] == [{"name": "v", "configMap": {"name": "c"}}]


def test_the_order_of_a_list_is_set() -> None:
    order = [{"name": "c"}, {"name": "b"}, {"name": "a"}]
    made = patched(in_pod(order_containers=order, containers=[{"name": "c", "image": "new"}]))
    assert [one["name"] for one in containers(made)] == ["c", "b", "a"]
    made = patched(in_pod(order_containers=[{"name": "b"}, {"name": "a"}]))
    assert [one["name"] for one in containers(made)] == ["b", "a"]


def test_what_only_the_server_has_keeps_its_place() -> None:
    document = {"spec": {"template": {"spec": {"containers": [{"name": name} for name in "asbt"]}}}}
    made = patched(in_pod(order_containers=[{"name": "b"}, {"name": "a"}]), document)
    assert [one["name"] for one in containers(made)] == ["s", "b", "a", "t"]


def test_plain_values_merge_as_a_set() -> None:
    assert patched({"metadata": {"finalizers": ["c/3", "a/1"]}})["metadata"]["finalizers"] == ["b/2", "c/3", "a/1"]
    made = patched({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/1"]}})
    assert made["metadata"]["finalizers"] == ["b/2"]
    made = patched({"metadata": {"finalizers": ["c/3"], "$setElementOrder/finalizers": ["c/3", "b/2", "a/1"]}})
    assert made["metadata"]["finalizers"] == ["c/3", "b/2", "a/1"]


@pytest.mark.parametrize(
    ("patch", "complaint"),
    [
        (in_pod(containers=[{"image": "x"}]), "does not contain declared merge key: name"),
        ({"spec": {"$patch": "burn"}}, 'unknown patch directive "burn"'),
        ({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}}, "does not name 'rollingUpdate'"),
        ({"spec": {"strategy": {"$retainKeys": "type"}}}, "takes a list"),
        (in_pod(order_containers=[{"name": "a"}], containers=[{"name": "q"}]), "does not name 'q'"),
        ({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}, "takes a list"),
    ],
)
def test_directives_that_make_no_sense(patch: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadRequest) as told:
        patched(patch)
    assert complaint in told.value.message


def test_new_objects_carry_no_directives() -> None:
    made = patched(
        {"spec": {"template": {"metadata": {"labels": {"a": "b", "c": None}, "$retainKeys": ["labels"]}}}}, {"spec": {}}
    )
    assert made["spec"]["template"] == {"metadata": {"labels": {"a": "b"}}}


def test_service_ports_and_conditions_have_their_own_keys() -> None:
    service = {"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 443, "name": "b"}]}}
    made = strategic_merge(kinds.SERVICES, service, {"spec": {"ports": [{"port": 443, "name": "tls"}]}})
    assert made["spec"]["ports"] == [{"port": 80, "name": "a"}, {"port": 443, "name": "tls"}]
    node = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    patch = {"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Disk", "status": "True"}]}}
    assert [one["status"] for one in strategic_merge(kinds.NODES, node, patch)["status"]["conditions"]] == [
        "False",
        "True",
    ]
