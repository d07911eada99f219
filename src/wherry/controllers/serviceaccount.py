"""Every namespace has a service account `default`."""

from collections.abc import Iterable

from wherry.client.objects import Key
from wherry.controllers.cluster import Cluster, Controller, Watch, itself
from wherry.controllers.objects import Namespace, Partial
from wherry.errors import AlreadyExists, Forbidden, NotFound
from wherry.model.kinds import NAMESPACES, SERVICEACCOUNTS

NAME = "default"


async def reconcile(key: Key, cluster: Cluster) -> None:
    """Create the account in one namespace that lives and has none."""
    namespace = cluster.get(NAMESPACES, Namespace, key)
    if namespace is None or namespace.metadata.is_deleting:
        return
    if cluster.view(SERVICEACCOUNTS, Partial).get(NAME, key[1]) is not None:
        return
    body = {
        "apiVersion": SERVICEACCOUNTS.api_version,
        "kind": SERVICEACCOUNTS.kind,
        "metadata": {"name": NAME, "namespace": key[1]},
    }
    try:
        await cluster.create(SERVICEACCOUNTS, body, key[1])
    except (AlreadyExists, NotFound):
        return
    except Forbidden as error:
        if not any(cause.reason == "NamespaceTerminating" for cause in error.causes):
            raise


def _its_namespace(cluster: Cluster, before: Partial | None, now: Partial | None) -> Iterable[Key]:
    """A default account that is gone comes again."""
    if now is None and before is not None and before.metadata.name == NAME:
        yield "", before.metadata.namespace


CONTROLLER = Controller(
    "service-account-controller",
    (Watch(NAMESPACES, Namespace, itself), Watch(SERVICEACCOUNTS, Partial, _its_namespace)),
    reconcile,
    workers=1,
)
