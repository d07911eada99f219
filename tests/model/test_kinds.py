"""The table of kinds: complete, consistent with the schema, and what paths and keys are made of."""

import pytest

from wherry.model import kinds, schema


def test_every_stable_kind_of_the_schema_is_in_the_table() -> None:
    opened = schema.load()
    have = {kind.definition for kind in (*kinds.KINDS, *kinds.BODIES)}
    others = ("APIGroup", "APIVersions", "Status", "WatchEvent")
    for name in opened.names:
        for _, version, kind in opened.get(name).kinds:
            if "alpha" not in version and "beta" not in version and not kind.endswith("List") and kind not in others:
                assert name in have, f"{name} is a kind and not in the table"


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: f"{kind.qualified}.{kind.version}")
def test_a_kind_agrees_with_its_definition(kind: kinds.Kind) -> None:
    definition = schema.load().get(kind.definition)
    assert (kind.group, kind.version, kind.kind) in definition.kinds
    fields = {field.name for field in definition.fields}
    if kind.stored:
        assert ("status" in fields) == (kind.subresource("status") is not None)
        assert schema.load().has(kind.definition + "List")
    if kind.generation:
        assert "metadata" in fields
    assert kind.singular == kind.kind.lower()


def test_paths_and_keys() -> None:
    assert kinds.DEPLOYMENTS.path("x", "y") == "/apis/apps/v1/namespaces/x/deployments/y"
    assert kinds.DEPLOYMENTS.path() == "/apis/apps/v1/deployments"
    assert kinds.PODS.path("x", "y", "log") == "/api/v1/namespaces/x/pods/y/log"
    assert kinds.NODES.path("", "n", "status") == "/api/v1/nodes/n/status"
    assert kinds.PODS.key("x", "y") == "/core/pods/x/y"
    assert kinds.NODES.key("", "n") == "/core/nodes/n"
    assert kinds.DEPLOYMENTS.prefix() == "/apps/deployments/"
    assert kinds.DEPLOYMENTS.prefix("x") == "/apps/deployments/x/"


def test_versions_of_one_thing_share_their_keys() -> None:
    assert kinds.EVENTS_V1.key("a", "b") == kinds.EVENTS.key("a", "b") == "/core/events/a/b"
    assert kinds.EVENTS_V1.storage is kinds.EVENTS
    assert kinds.HORIZONTALPODAUTOSCALERS_V1.storage is kinds.HORIZONTALPODAUTOSCALERS
    assert kinds.HORIZONTALPODAUTOSCALERS_V1.key("a", "b") == kinds.HORIZONTALPODAUTOSCALERS.key("a", "b")
    assert kinds.PODS.storage is kinds.PODS


def test_no_two_resources_share_keys_or_short_names_otherwise() -> None:
    roots = [kind.root for kind in kinds.KINDS if not kind.stored_as]
    assert len(roots) == len(set(roots))
    short: dict[str, str] = {}
    for kind in kinds.KINDS:
        for name in kind.short_names:
            assert short.setdefault(name, kind.plural) == kind.plural


def test_looking_up() -> None:
    assert kinds.by_resource("apps", "v1", "deployments") is kinds.DEPLOYMENTS
    assert kinds.by_resource("", "v1", "pods") is kinds.PODS
    assert kinds.by_resource("", "v1", "deployments") is None
    assert kinds.by_kind("policy/v1", "Eviction") is kinds.EVICTIONS
    assert kinds.by_kind("v1", "Deployment") is None
    assert kinds.group_versions()[0] == "v1"
    assert kinds.group_versions().index("autoscaling/v2") < kinds.group_versions().index("autoscaling/v1")


def test_what_clients_look_for_in_discovery() -> None:
    eviction = kinds.PODS.subresource("eviction")
    assert eviction is not None
    assert (eviction.kind, eviction.api_version) == ("Eviction", "policy/v1")
    for kind in (kinds.DEPLOYMENTS, kinds.REPLICASETS, kinds.STATEFULSETS, kinds.REPLICATIONCONTROLLERS):
        scale = kind.subresource("scale")
        assert scale is not None
        assert (scale.kind, scale.api_version) == ("Scale", "autoscaling/v1")
    in_all = {kind.plural for kind in kinds.KINDS if "all" in kind.categories}
    assert in_all == {
        "pods", "replicationcontrollers", "services", "daemonsets", "deployments", "replicasets", "statefulsets",
        "horizontalpodautoscalers", "cronjobs", "jobs",
    }  # fmt: skip
    assert kinds.LEASES.history_budget == kinds.EVENTS.history_budget == kinds.EVENTS_V1.history_budget == 0
