"""The stock Python client against the API alone."""

import asyncio
from typing import Any

from .conftest import Running


def _walk(config: str) -> dict[str, Any]:
    from kubernetes import client, watch
    from kubernetes import config as loader
    from kubernetes.client.exceptions import ApiException

    api_client = loader.new_client_from_config(config)
    core, apps = client.CoreV1Api(api_client), client.AppsV1Api(api_client)
    seen: dict[str, Any] = {"version": client.VersionApi(api_client).get_code().git_version}
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name="shop")))
    container = client.V1Container(name="web", image="web:1", ports=[client.V1ContainerPort(container_port=80)])
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"app": "web"}), spec=client.V1PodSpec(containers=[container])
    )
    spec = client.V1DeploymentSpec(
        replicas=2, selector=client.V1LabelSelector(match_labels={"app": "web"}), template=template
    )
    body = client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec)
    made = apps.create_namespaced_deployment("shop", body)
    seen["ready"] = made.status.ready_replicas
    apps.patch_namespaced_deployment_scale("web", "shop", {"spec": {"replicas": 3}})
    apps.patch_namespaced_deployment_status("web", "shop", {"status": {"replicas": 3, "readyReplicas": 3}})
    read = apps.read_namespaced_deployment("web", "shop")
    seen["replicas"] = (read.spec.replicas, read.status.ready_replicas)
    core.create_namespaced_config_map("shop", {"metadata": {"name": "a"}, "data": {"x": "1"}})
    listed = core.list_namespaced_config_map("shop")
    seen["maps"] = [one.metadata.name for one in listed.items]
    core.patch_namespaced_config_map("a", "shop", {"data": {"x": "2"}})
    core.delete_namespaced_config_map("a", "shop")
    events = watch.Watch().stream(
        core.list_namespaced_config_map,
        "shop",
        resource_version=listed.metadata.resource_version,
        timeout_seconds=1,
    )
    seen["events"] = [event["type"] for event in events]
    try:
        core.read_namespaced_pod("none", "shop")
    except ApiException as error:
        seen["error"] = (error.status, error.reason)
    review = client.AuthorizationV1Api(api_client).create_self_subject_access_review(
        client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(
                resource_attributes=client.V1ResourceAttributes(verb="get", resource="pods")
            )
        )
    )
    seen["allowed"] = review.status.allowed
    core.delete_collection_namespaced_config_map("shop")
    core.delete_namespace("shop")
    api_client.close()
    return seen


async def test_the_python_client(api: Running) -> None:
    seen = await asyncio.to_thread(_walk, str(api.config("admin", ("system:masters",))))
    assert seen == {
        "version": "v1.37.0+wherry1",
        "ready": None,
        "replicas": (3, 3),
        "maps": ["a"],
        "events": ["MODIFIED", "DELETED"],
        "error": (404, "Not Found"),
        "allowed": True,
    }
