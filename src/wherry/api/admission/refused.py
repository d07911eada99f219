"""Kinds that mean behaviour which wherry does not have: refused by name, never kept and ignored."""

from collections.abc import Mapping

from wherry.api.admission.call import Call
from wherry.errors import Unsupported
from wherry.model import kinds
from wherry.model.kinds import Kind

FEATURES: Mapping[Kind, str] = {
    kinds.CUSTOMRESOURCEDEFINITIONS: "custom resources",
    kinds.APISERVICES: "aggregated API servers",
    kinds.MUTATINGWEBHOOKCONFIGURATIONS: "admission webhooks",
    kinds.VALIDATINGWEBHOOKCONFIGURATIONS: "admission webhooks",
    kinds.MUTATINGADMISSIONPOLICIES: "admission policies",
    kinds.MUTATINGADMISSIONPOLICYBINDINGS: "admission policies",
    kinds.VALIDATINGADMISSIONPOLICIES: "admission policies",
    kinds.VALIDATINGADMISSIONPOLICYBINDINGS: "admission policies",
}


def refuse(call: Call) -> None:
    """Raises Unsupported for a kind that nothing here would act on."""
    feature = FEATURES.get(call.kind)
    if feature is not None and call.operation == "CREATE":
        raise Unsupported(
            f"{call.kind.qualified} {call.name!r}: {feature} are not supported by this version of wherry; "
            "SCOPE.md lists what is"
        )
    if call.kind == kinds.RESOURCEQUOTAS and (call.spec.get("scopes") or call.spec.get("scopeSelector")):
        raise Unsupported(
            f"resourcequotas {call.name!r}: scopes are not supported by this version of wherry: leave them out"
        )
