"""Checks of nodes, namespaces, leases, events, bindings, requests, and of the kinds that extend the API."""

from wherry.errors import Cause
from wherry.model import names
from wherry.model.checks.problems import Object, Problems, each, part

_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_SCOPES = ("Cluster", "Namespaced")
_LEAST_TOKEN_S = 600
_MOST_TOKEN_S = 2**32


def node(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Node: its taints, and that its pod range stays."""
    found = Problems()
    spec = part(obj, "spec")
    seen: set[tuple[str, str]] = set()
    for here, taint in each("spec", spec, "taints"):
        key, value, effect = taint.get("key") or "", taint.get("value") or "", taint.get("effect") or ""
        found.all_invalid(f"{here}.key", key, names.qualified_name(key))
        found.all_invalid(f"{here}.value", value, names.label_value(value))
        if effect:
            found.one_of(f"{here}.effect", effect, _EFFECTS)
        else:
            found.required(f"{here}.effect")
        if (key, effect) in seen:
            found.duplicate(here, taint)
        seen.add((key, effect))
    for at, block in enumerate(spec.get("podCIDRs") or ()):
        found.all_invalid(f"spec.podCIDRs[{at}]", block, names.cidr(block))
    if old is not None and part(old, "spec").get("podCIDRs") and spec.get("podCIDRs") != part(old, "spec")["podCIDRs"]:
        found.forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')
    return found.causes


def namespace(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Namespace's own finalizers."""
    found = Problems()
    for finalizer in part(obj, "spec").get("finalizers") or ():
        found.all_invalid("spec.finalizers", finalizer, names.qualified_name(finalizer))
        if "/" not in finalizer and finalizer != "kubernetes":
            found.invalid(
                "spec.finalizers", finalizer, "name is neither a standard finalizer name nor is it fully qualified"
            )
    return found.causes


def lease(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Lease."""
    found = Problems()
    spec = part(obj, "spec")
    life_s = spec.get("leaseDurationSeconds")
    if life_s is not None and life_s <= 0:
        found.invalid("spec.leaseDurationSeconds", life_s, "must be greater than 0")
    found.not_negative("spec", spec, "leaseTransitions")
    return found.causes


def event(obj: Object, old: Object | None) -> list[Cause]:
    """Check a core/v1 Event: it lies in the namespace of what it is about."""
    return _check_event(obj, "involvedObject")


def event_v1(obj: Object, old: Object | None) -> list[Cause]:
    """Check an events.k8s.io/v1 Event."""
    return _check_event(obj, "regarding")


def _check_event(obj: Object, field: str) -> list[Cause]:
    found = Problems()
    namespace, about = part(obj, "metadata").get("namespace") or "", part(obj, field).get("namespace") or ""
    if about:
        if about != namespace:
            found.invalid(f"{field}.namespace", about, "does not match event.namespace")
    elif namespace not in ("", "default", "kube-system"):
        found.invalid(f"{field}.namespace", about, "does not match event.namespace")
    return found.causes


def binding(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Binding: pods are bound to nodes."""
    found = Problems()
    target = part(obj, "target")
    if target.get("kind") not in (None, "", "Node"):
        found.unsupported("target.kind", target["kind"], ("Node", "<empty>"))
    if not target.get("name"):
        found.required("target.name")
    return found.causes


def scale(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Scale."""
    found = Problems()
    found.not_negative("spec", part(obj, "spec"), "replicas")
    return found.causes


def token_request(obj: Object, old: Object | None) -> list[Cause]:
    """Check a TokenRequest: ten minutes at least."""
    found = Problems()
    life_s = part(obj, "spec").get("expirationSeconds") or 0
    if life_s < _LEAST_TOKEN_S:
        found.invalid("spec.expirationSeconds", life_s, "may not specify a duration less than 10 minutes")
    elif life_s > _MOST_TOKEN_S:
        found.invalid("spec.expirationSeconds", life_s, "may not specify a duration larger than 2^32 seconds")
    return found.causes


def certificate_request(obj: Object, old: Object | None) -> list[Cause]:
    """Check a CertificateSigningRequest; what is asked for never changes."""
    found = Problems()
    spec = part(obj, "spec")
    if not spec.get("request"):
        found.required("spec.request")
    if not spec.get("usages"):
        found.required("spec.usages")
    signer = spec.get("signerName") or ""
    if not signer:
        found.required("spec.signerName")
    elif signer.count("/") != 1 or not all(signer.split("/")):
        found.invalid(
            "spec.signerName", signer, 'must be a fully qualified domain and path of the form "example.com/signer-name"'
        )
    life_s = spec.get("expirationSeconds")
    if life_s is not None and life_s < _LEAST_TOKEN_S:
        found.invalid("spec.expirationSeconds", life_s, "may not specify a duration less than 600 seconds (10 minutes)")
    if old is not None:
        found.unchanged("spec", spec, part(old, "spec"))
    return found.causes


def custom_resource(obj: Object, old: Object | None) -> list[Cause]:
    """Check a CustomResourceDefinition: its names and versions (not yet its schemas)."""
    found = Problems()
    spec = part(obj, "spec")
    group, named = spec.get("group") or "", part(spec, "names")
    if not group:
        found.required("spec.group")
    else:
        found.all_invalid("spec.group", group, names.dns_subdomain(group))
        if "." not in group:
            found.invalid("spec.group", group, "should be a domain with at least one dot")
    plural = named.get("plural") or ""
    wanted = f"{plural}.{group}"
    name = part(obj, "metadata").get("name") or ""
    if name != wanted:
        found.invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group')
    for field in ("plural", "singular", "kind", "listKind"):
        text = named.get(field) or ""
        if not text:
            found.required(f"spec.names.{field}")
        else:
            found.all_invalid(f"spec.names.{field}", text, names.dns_1035_label(text.lower()))
    found.one_of("spec.scope", spec.get("scope"), _SCOPES)
    stored = [one for one in spec.get("versions") or () if one.get("storage")]
    if not spec.get("versions"):
        found.required("spec.versions", "must have exactly one version marked as storage version")
    elif len(stored) != 1:
        found.invalid("spec.versions", spec["versions"], "must have exactly one version marked as storage version")
    seen: set[str] = set()
    for here, version in each("spec", spec, "versions"):
        text = version.get("name") or ""
        found.all_invalid(f"{here}.name", text, names.dns_1035_label(text))
        if text in seen:
            found.invalid("spec.versions", spec["versions"], "must contain unique version names")
        seen.add(text)
        if not part(version, "schema").get("openAPIV3Schema"):
            found.required(f"{here}.schema.openAPIV3Schema", "schemas are required")
    if old is not None:
        before = part(old, "spec")
        found.unchanged("spec.group", group, before.get("group") or "")
        found.unchanged("spec.scope", spec.get("scope"), before.get("scope"))
        for field in ("kind", "plural"):
            found.unchanged(f"spec.names.{field}", named.get(field), part(before, "names").get(field))
    return found.causes


def webhooks(obj: Object, old: Object | None) -> list[Cause]:
    """Check the webhooks of a webhook configuration."""
    found = Problems()
    seen: set[str] = set()
    for here, hook in each("", obj, "webhooks"):
        name = hook.get("name") or ""
        if name.count(".") < 2:
            found.invalid(f"{here}.name", name, "should be a domain with at least three segments separated by dots")
        if name in seen:
            found.duplicate(f"{here}.name", name)
        seen.add(name)
        config = part(hook, "clientConfig")
        if bool(config.get("url")) == bool(config.get("service")):
            found.required(f"{here}.clientConfig", "exactly one of url or service is required")
        effects = hook.get("sideEffects")
        if not effects:
            found.required(f"{here}.sideEffects", "must specify one of None, NoneOnDryRun")
        elif effects not in ("None", "NoneOnDryRun"):
            found.unsupported(f"{here}.sideEffects", effects, ("None", "NoneOnDryRun"))
        if not hook.get("admissionReviewVersions"):
            found.required(f"{here}.admissionReviewVersions", "must specify one of v1, v1beta1")
        life_s = hook.get("timeoutSeconds") or 0
        if not 1 <= life_s <= 30:
            found.invalid(f"{here}.timeoutSeconds", life_s, "the timeout value must be between 1 and 30 seconds")
    return found.causes
