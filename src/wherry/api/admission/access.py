"""Nobody grants more than they have: roles and bindings are checked against the writer's own rights.

Source: Kubernetes, "Using RBAC Authorization", "Privilege escalation prevention and bootstrapping".
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry.api import rbac
from wherry.api.admission.call import Call, forbidden
from wherry.api.rbac import Ask, RoleRef, Rule
from wherry.errors import NotFound
from wherry.model.kinds import CLUSTERROLEBINDINGS, CLUSTERROLES, ROLEBINDINGS, ROLES

Json = dict[str, Any]
_GROUP = "rbac.authorization.k8s.io"


def check(call: Call) -> None:
    """Raises Forbidden for a grant beyond the writer's own rights, NotFound for a binding to a role that is not there."""
    if call.operation == "DELETE":
        return
    if call.kind in (ROLES, CLUSTERROLES):
        if call.old is None or call.obj.get("rules") != call.old.get("rules"):
            ask = Ask("escalate", _GROUP, call.kind.plural, call.namespace, call.name)
            if not call.core.authorizer.allowed(call.user, ask):
                _covered(call, msgspec.convert(call.obj.get("rules") or [], tuple[Rule, ...]))
    elif call.kind in (ROLEBINDINGS, CLUSTERROLEBINDINGS):
        _check_binding(call)


def _check_binding(call: Call) -> None:
    if call.old is not None and all(call.obj.get(f) == call.old.get(f) for f in ("subjects", "roleRef")):
        return
    reference: Json = call.obj.get("roleRef") or {}
    ref = RoleRef(str(reference.get("kind", "")), str(reference.get("name", "")))
    resource = "roles" if ref.kind == "Role" else "clusterroles"
    authorizer = call.core.authorizer
    if authorizer.allowed(call.user, Ask("bind", _GROUP, resource, call.namespace, ref.name)):
        return
    rules = authorizer.rules_of_role(call.namespace, ref)
    if rules is None:
        raise NotFound(f'{resource}.{_GROUP} "{ref.name}" not found')
    _covered(call, rules)


def _covered(call: Call, wanted: Sequence[Rule]) -> None:
    lacking = rbac.missing(call.core.authorizer.rules(call.user, call.namespace), wanted)
    if lacking:
        lines = "\n".join(rbac.describe(rule) for rule in lacking[:20])
        raise forbidden(
            call,
            f'user "{call.user.name}" (groups={list(call.user.groups)}) is attempting to grant RBAC permissions not '
            f"currently held:\n{lines}".replace("'", '"'),
        )
