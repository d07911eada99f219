"""Nothing is created in a namespace that is not there, or that is on its way out."""

from wherry.api.admission.call import Call, forbidden
from wherry.errors import Cause, NotFound
from wherry.model.kinds import NAMESPACES


def must_be_alive(call: Call) -> None:
    """Raises NotFound for an absent namespace, Forbidden for a terminating one."""
    if call.operation != "CREATE" or not call.kind.namespaced:
        return
    item = call.core.find(NAMESPACES, "", call.namespace)
    if item is None:
        raise NotFound(f'namespaces "{call.namespace}" not found')
    if item.meta.deletion_timestamp:
        message = f"namespace {call.namespace} is being terminated"
        raise forbidden(
            call,
            f"unable to create new content in namespace {call.namespace} because it is being terminated",
            Cause("metadata.namespace", "NamespaceTerminating", message),
        )
