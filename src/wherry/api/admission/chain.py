"""The table of admission plug-ins, and the walk along it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wherry.api.admission import access, accounts, defaults, limits, namespaces, nodes, pods, quotas, refused, services
from wherry.api.admission.call import Call
from wherry.model.kinds import SERVICES

Step = Callable[[Call], None]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in's steps. `mutate` runs before defaults and checks, `validate` after them and last of all.

    `allocate` chooses what must be unique in the cluster; it runs while `Core.allocating` is held.
    """

    name: str
    mutate: Step | None = None
    allocate: Step | None = None
    validate: Step | None = None


PLUGINS: Sequence[Plugin] = (
    Plugin("Unsupported", mutate=refused.refuse),
    Plugin("NamespaceLifecycle", mutate=namespaces.must_be_alive),
    Plugin("NodeRestriction", validate=nodes.restrict),
    Plugin("ServiceAccount", mutate=accounts.inject),
    Plugin("Priority", mutate=pods.resolve_priority),
    Plugin("RuntimeClass", mutate=pods.resolve_runtime),
    Plugin("DefaultTolerationSeconds", mutate=pods.add_tolerations),
    Plugin("LimitRanger", mutate=limits.add_defaults, validate=limits.check),
    Plugin("DefaultStorageClass", mutate=defaults.storage_class),
    Plugin("DefaultIngressClass", mutate=defaults.ingress_class),
    Plugin("CertificateRequester", mutate=defaults.certificate_requester),
    Plugin("ServiceAddresses", allocate=services.allocate),
    Plugin("RoleEscalation", validate=access.check),
    Plugin("ResourceQuota", validate=quotas.check),
)


def mutate(call: Call) -> None:
    """Let the plug-ins add what they add. Raises Forbidden, NotFound, Unsupported, Invalid."""
    for plugin in PLUGINS:
        if plugin.mutate is not None:
            plugin.mutate(call)


def allocate(call: Call) -> None:
    """Choose addresses and ports. Raises Invalid."""
    for plugin in PLUGINS:
        if plugin.allocate is not None:
            plugin.allocate(call)


def validate(call: Call) -> None:
    """Let the plug-ins refuse. Raises Forbidden and others."""
    for plugin in PLUGINS:
        if plugin.validate is not None:
            plugin.validate(call)


def needs_lock(call: Call) -> bool:
    """Say whether the write must be alone from its choices to its commit, so that no two choose the same."""
    if call.kind == SERVICES:
        return not call.subresource
    return call.operation == "CREATE" and quotas.any_in(call)
