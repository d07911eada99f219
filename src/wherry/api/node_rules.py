"""What a node's agent may do: read what its own pods need, write what is its own, and nothing of other nodes.

This is upstream's node authorizer and node restriction in one place, over the pods bound to the node.
Source: Kubernetes, "Using Node Authorization", "NodeRestriction".
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from wherry.api.cache import Cache, Meta
from wherry.api.rbac import Ask
from wherry.model.kinds import PODS
from wherry.model.users import User

LEASE_NAMESPACE = "kube-node-lease"
_PREFIX = "system:node:"
_READ = frozenset({"get", "list", "watch"})
_OPEN = frozenset(
    {
        # (group, resource) that every node may read: what services, names and volumes need
        ("", "services"),
        ("", "nodes"),
        ("", "namespaces"),
        ("", "endpoints"),
        ("", "persistentvolumes"),
        ("discovery.k8s.io", "endpointslices"),
        ("networking.k8s.io", "networkpolicies"),
        ("networking.k8s.io", "servicecidrs"),
        ("node.k8s.io", "runtimeclasses"),
        ("storage.k8s.io", "csidrivers"),
        ("storage.k8s.io", "csinodes"),
        ("storage.k8s.io", "volumeattachments"),
    }
)
_MAKES = frozenset(
    {
        ("", "nodes"),
        ("authentication.k8s.io", "tokenreviews"),
        ("authorization.k8s.io", "subjectaccessreviews"),
        ("authorization.k8s.io", "localsubjectaccessreviews"),
        ("certificates.k8s.io", "certificatesigningrequests"),
    }
)


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str = ""
    service_account_name: str = "default"


class NodePod(msgspec.Struct, frozen=True):
    """A pod as rules about nodes see it."""

    metadata: Meta
    spec: _Spec


class PodReferences(msgspec.Struct, frozen=True):
    """A pod's spec, to look for names of secrets, config maps and claims."""

    spec: dict[str, Any]

    def names(self, resource: str) -> set[str]:
        """The names of the `secrets`, `configmaps` or `persistentvolumeclaims` that the pod uses."""
        return set(_names(self.spec, resource))


def node_of(user: User) -> str:
    """The node that a user is the agent of, or ""."""
    if "system:nodes" in user.groups and user.name.startswith(_PREFIX):
        return user.name.removeprefix(_PREFIX)
    return ""


def decide(cache: Cache, node: str, ask: Ask) -> tuple[bool, str]:
    """Say whether the agent of `node` may, and why not."""
    resource, _, subresource = ask.resource.partition("/")
    target = (ask.group, resource)
    if (target in _OPEN and ask.verb in _READ and not subresource) or (target in _MAKES and ask.verb == "create"):
        return True, ""
    match target:
        case ("", "nodes"):
            return ask.name == node, f"node {node} may change only itself"
        case ("coordination.k8s.io", "leases"):
            own = ask.namespace == LEASE_NAMESPACE and (ask.name == node or (ask.verb == "create" and not ask.name))
            return own, f"node {node} may use only its own lease in {LEASE_NAMESPACE}"
        case ("", "events") | ("events.k8s.io", "events"):
            return ask.verb in ("create", "patch", "update"), "nodes may write events, not read them"
        case ("", "pods"):
            return _pods(cache, node, ask, subresource)
        case ("", "serviceaccounts"):
            used = any(pod.view(NodePod).spec.service_account_name == ask.name for pod in _pods_of(cache, node, ask))
            fits = ask.verb == "get" or (ask.verb == "create" and subresource == "token")
            return used and fits, f"no pod on node {node} uses service account {ask.name!r}"
        case ("", "secrets" | "configmaps" | "persistentvolumeclaims"):
            if ask.verb not in _READ or not ask.name or subresource not in ("", "status"):
                return False, f"nodes may read only {resource} that are named, not change or list them"
            used = any(ask.name in pod.view(PodReferences).names(resource) for pod in _pods_of(cache, node, ask))
            return used, f"no pod on node {node} uses {resource} {ask.name!r}"
        case _:
            return False, ""


def _pods(cache: Cache, node: str, ask: Ask, subresource: str) -> tuple[bool, str]:
    if ask.verb in ("list", "watch") and not ask.name:
        own = ask.fields.get("spec.nodeName") == node
        return own, f"a node may list only its own pods: add fieldSelector spec.nodeName={node}"
    if subresource not in ("", "status", "eviction"):
        return False, ""
    allowed = {"": ("get", "list", "watch", "delete"), "status": ("get", "update", "patch"), "eviction": ("create",)}
    if ask.verb not in allowed[subresource]:
        return False, f"nodes may not {ask.verb} {ask.resource}"
    item = cache.get(PODS.root, PODS.key(ask.namespace, ask.name))
    own = item is None or item.view(NodePod).spec.node_name == node
    return own, f"pod {ask.namespace}/{ask.name} is not on node {node}"


def _pods_of(cache: Cache, node: str, ask: Ask) -> Iterator[Any]:
    for item in cache.shelf(PODS.root).all(PODS.prefix(ask.namespace)):
        if item.view(NodePod).spec.node_name == node:
            yield item


_VOLUMES: Mapping[str, tuple[str, str, str]] = {
    # resource: (volume source, its name field, name of the source in projected volumes)
    "secrets": ("secret", "secretName", "secret"),
    "configmaps": ("configMap", "name", "configMap"),
    "persistentvolumeclaims": ("persistentVolumeClaim", "claimName", ""),
}
_ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "secrets": ("secretRef", "secretKeyRef"),
    "configmaps": ("configMapRef", "configMapKeyRef"),
}


def _names(spec: dict[str, Any], resource: str) -> Iterator[str]:
    source, field, projected = _VOLUMES[resource]
    for volume in spec.get("volumes") or ():
        if source in volume:
            yield str(volume[source].get(field, ""))
        for part in (volume.get("projected") or {}).get("sources") or ():
            if projected and projected in part:
                yield str(part[projected].get("name", ""))
    if resource == "secrets":
        for secret in spec.get("imagePullSecrets") or ():
            yield str(secret.get("name", ""))
    if resource not in _ENVIRONMENT:
        return
    whole, single = _ENVIRONMENT[resource]
    for group in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(group) or ():
            for part in container.get("envFrom") or ():
                if whole in part:
                    yield str(part[whole].get("name", ""))
            for variable in container.get("env") or ():
                reference = (variable.get("valueFrom") or {}).get(single)
                if reference:
                    yield str(reference.get("name", ""))
