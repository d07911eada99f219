"""Every namespace has a ConfigMap `kube-root-ca.crt`, by which its pods know the API server."""

from collections.abc import Iterable

from wherry.client.objects import Key
from wherry.controllers.cluster import Cluster, Controller, Watch, itself
from wherry.controllers.objects import ConfigMap, Namespace
from wherry.errors import AlreadyExists, Forbidden, NotFound
from wherry.model.kinds import CONFIGMAPS, NAMESPACES

NAME = "kube-root-ca.crt"
FIELD = "ca.crt"
DESCRIPTION = "kubernetes.io/description"
TEXT = "The certificate authority of this cluster's API server; kept by wherry, so changes made here are undone."


async def reconcile(key: Key, cluster: Cluster) -> None:
    """Create or mend the ConfigMap in one namespace that lives."""
    namespace = cluster.get(NAMESPACES, Namespace, key)
    certificate = cluster.settings.root_ca
    if namespace is None or namespace.metadata.is_deleting or not certificate:
        return
    found = cluster.view(CONFIGMAPS, ConfigMap).get(NAME, key[1])
    if found is None:
        await _create(cluster, key[1], certificate)
    elif found.data.certificate != certificate:
        await cluster.patch(CONFIGMAPS, found.metadata, {"data": {FIELD: certificate}})


async def _create(cluster: Cluster, namespace: str, certificate: str) -> None:
    body = {
        "apiVersion": CONFIGMAPS.api_version,
        "kind": CONFIGMAPS.kind,
        "metadata": {"name": NAME, "namespace": namespace, "annotations": {DESCRIPTION: TEXT}},
        "data": {FIELD: certificate},
    }
    try:
        await cluster.create(CONFIGMAPS, body, namespace)
    except (AlreadyExists, NotFound):
        return
    except Forbidden as error:
        if not any(cause.reason == "NamespaceTerminating" for cause in error.causes):
            raise


def _its_namespace(cluster: Cluster, before: ConfigMap | None, now: ConfigMap | None) -> Iterable[Key]:
    """Ours, changed or gone, is mended."""
    found = now or before
    if found is not None and found.metadata.name == NAME:
        yield "", found.metadata.namespace


CONTROLLER = Controller(
    "root-ca-cert-publisher",
    (Watch(NAMESPACES, Namespace, itself), Watch(CONFIGMAPS, ConfigMap, _its_namespace)),
    reconcile,
    workers=1,
)
