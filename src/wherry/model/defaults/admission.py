"""Defaults of the groups that extend the API: admissionregistration.k8s.io, apiextensions.k8s.io, apiregistration.k8s.io."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.model import kinds
from wherry.model.defaults.filling import Object, each, fill, made, part
from wherry.model.kinds import Kind

_WEBHOOK_S = 10
_HTTPS = 443


def validating_webhooks(obj: Object) -> None:
    """Fill in a ValidatingWebhookConfiguration."""
    for webhook in each(obj, "webhooks"):
        _webhook(webhook)


def mutating_webhooks(obj: Object) -> None:
    """Fill in a MutatingWebhookConfiguration."""
    for webhook in each(obj, "webhooks"):
        _webhook(webhook)
        fill(webhook, "reinvocationPolicy", "Never")


def _webhook(webhook: Object) -> None:
    fill(webhook, "failurePolicy", "Fail")
    fill(webhook, "timeoutSeconds", _WEBHOOK_S)
    _service(part(webhook, "clientConfig"))
    _match(webhook)
    for rule in each(webhook, "rules"):
        fill(rule, "scope", "*")


def _service(config: Object) -> None:
    if isinstance(config.get("service"), dict):
        fill(config["service"], "port", _HTTPS)


def _match(resources: Object) -> None:
    fill(resources, "matchPolicy", "Equivalent")
    fill(resources, "namespaceSelector", {})
    fill(resources, "objectSelector", {})
    for rule in each(resources, "resourceRules", "excludeResourceRules"):
        fill(rule, "scope", "*")


def policy(obj: Object) -> None:
    """Fill in a ValidatingAdmissionPolicy or MutatingAdmissionPolicy."""
    spec = made(obj, "spec")
    fill(spec, "failurePolicy", "Fail")
    if isinstance(spec.get("matchConstraints"), dict):
        _match(spec["matchConstraints"])


def policy_binding(obj: Object) -> None:
    """Fill in the binding of an admission policy."""
    spec = part(obj, "spec")
    if isinstance(spec.get("matchResources"), dict):
        _match(spec["matchResources"])


def custom_resource(obj: Object) -> None:
    """Fill in a CustomResourceDefinition: names from its kind, no conversion."""
    spec = made(obj, "spec")
    names = made(spec, "names")
    kind = names.get("kind") or ""
    if kind:
        fill(names, "singular", kind.lower())
        fill(names, "listKind", kind + "List")
    conversion = made(spec, "conversion")
    fill(conversion, "strategy", "None")
    _service(part(part(conversion, "webhook"), "clientConfig"))


def api_service(obj: Object) -> None:
    """Fill in an APIService."""
    _service(part(obj, "spec"))


TABLE: Mapping[Kind, Callable[[dict[str, Any]], None]] = {
    kinds.VALIDATINGWEBHOOKCONFIGURATIONS: validating_webhooks,
    kinds.MUTATINGWEBHOOKCONFIGURATIONS: mutating_webhooks,
    kinds.VALIDATINGADMISSIONPOLICIES: policy,
    kinds.MUTATINGADMISSIONPOLICIES: policy,
    kinds.VALIDATINGADMISSIONPOLICYBINDINGS: policy_binding,
    kinds.MUTATINGADMISSIONPOLICYBINDINGS: policy_binding,
    kinds.CUSTOMRESOURCEDEFINITIONS: custom_resource,
    kinds.APISERVICES: api_service,
}
