"""A pod's service account: named by default, checked, and its token mounted.

The account `default` may still be missing in a fresh namespace; then the pod is taken, and its token waits for the
account on the node. Upstream refuses such a pod, and clients lose that race.
Source: Kubernetes, "Configure Service Accounts for Pods".
"""

from typing import Any

import msgspec

from wherry.api.admission.call import Call, forbidden
from wherry.api.strategy import suffix
from wherry.model.kinds import PODS, SERVICEACCOUNTS

Json = dict[str, Any]

MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
ROOT_CA = "kube-root-ca.crt"
TOKEN_S = 3607
_DEFAULT = "default"


class _Reference(msgspec.Struct, frozen=True):
    name: str = ""


class _Account(msgspec.Struct, frozen=True, rename="camel"):
    automount_service_account_token: bool | None = None
    image_pull_secrets: tuple[_Reference, ...] | None = None


def inject(call: Call) -> None:
    """Give a new pod its service account and the volume with its token. Raises Forbidden when there is no such account."""
    if call.kind != PODS or call.operation != "CREATE":
        return
    spec = call.spec
    name = spec.get("serviceAccountName") or spec.get("serviceAccount") or _DEFAULT
    spec["serviceAccountName"] = spec["serviceAccount"] = name
    item = call.core.find(SERVICEACCOUNTS, call.namespace, name)
    if item is None and name != _DEFAULT:
        raise forbidden(
            call, f'error looking up service account {call.namespace}/{name}: serviceaccount "{name}" not found'
        )
    account = item.view(_Account) if item is not None else _Account()
    if not spec.get("imagePullSecrets") and account.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret.name} for secret in account.image_pull_secrets]
    wanted = spec.get("automountServiceAccountToken")
    if wanted is None:
        wanted = account.automount_service_account_token
    if wanted is not False:
        _mount(spec)


def _mount(spec: Json) -> None:
    bare = [
        container
        for group in ("containers", "initContainers")
        for container in spec.get(group) or ()
        if isinstance(container, dict)
        and not any(mount.get("mountPath") == MOUNT_PATH for mount in container.get("volumeMounts") or ())
    ]
    if not bare:
        return
    name = "kube-api-access-" + suffix()
    for container in bare:
        mounts: list[Json] = container.get("volumeMounts") or []
        container["volumeMounts"] = [*mounts, {"mountPath": MOUNT_PATH, "name": name, "readOnly": True}]
    volumes: list[Json] = spec.get("volumes") or []
    spec["volumes"] = [*volumes, _volume(name)]


def _volume(name: str) -> Json:
    return {
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_S, "path": "token"}},
                {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": ROOT_CA}},
                {
                    "downwardAPI": {
                        "items": [
                            {
                                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                                "path": "namespace",
                            }
                        ]
                    }
                },
            ],
        },
    }
