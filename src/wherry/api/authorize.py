"""May they? Masters may all; nodes what their pods need; everybody else what roles and bindings grant."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from wherry.api import node_rules
from wherry.api.authenticate import MASTERS, is_open
from wherry.api.cache import Cache, Item
from wherry.api.errors import qualified
from wherry.api.rbac import Ask, Binding, RoleRef, Rule, Subject, allows, rules_of
from wherry.errors import Forbidden
from wherry.model.kinds import CLUSTERROLEBINDINGS, CLUSTERROLES, ROLEBINDINGS, ROLES
from wherry.model.users import User

_KINDS = (ROLES, CLUSTERROLES, ROLEBINDINGS, CLUSTERROLEBINDINGS)
_REMEMBERED = 4096
_ALL = (Rule(("*",), ("*",), ("*",)), Rule(("*",), non_resource_urls=("*",)))


class _Role(msgspec.Struct, frozen=True):
    rules: tuple[Rule, ...] | None = None


class _Binding(msgspec.Struct, frozen=True, rename="camel"):
    subjects: tuple[Subject, ...] | None = None
    role_ref: RoleRef = RoleRef()


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether, and why: the grant that allows it, or why there is none."""

    allowed: bool
    reason: str = ""


class Authorizer:
    """Decides from the roles and bindings in the cache; decisions are remembered until one of those changes."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._bindings: list[Binding] = []
        self._at: tuple[int, ...] = ()
        self._remembered: dict[tuple[str, tuple[str, ...], Ask], Decision] = {}

    def decide(self, user: User, ask: Ask) -> Decision:
        """Say whether a user may, with the reason."""
        if MASTERS in user.groups:
            return Decision(True, "member of system:masters")
        if ask.path and ask.verb in ("get", "head") and is_open(ask.path):
            return Decision(True, "open to everybody")
        self._refresh()
        key = (user.name, tuple(user.groups), ask)
        found = self._remembered.get(key)
        if found is None:
            found = self._by_roles(user, ask)
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = found
        if found.allowed:
            return found
        node = node_rules.node_of(user)
        if node:
            allowed, reason = node_rules.decide(self._cache, node, ask)
            return Decision(allowed, "node rules" if allowed else reason)
        return found

    def allowed(self, user: User, ask: Ask) -> bool:
        """Say whether a user may."""
        return self.decide(user, ask).allowed

    def require(self, user: User, ask: Ask) -> None:
        """Raises Forbidden, in upstream's words, when a user may not."""
        decision = self.decide(user, ask)
        if not decision.allowed:
            raise Forbidden(refusal(user, ask, decision.reason))

    def rules(self, user: User, namespace: str) -> Sequence[Rule]:
        """Everything that a user may do in a namespace ("": cluster-wide)."""
        if MASTERS in user.groups:
            return _ALL
        self._refresh()
        return [rule for _, rules in rules_of(self._bindings, user, namespace) for rule in rules]

    def rules_of_role(self, namespace: str, ref: RoleRef) -> Sequence[Rule] | None:
        """The rules of a Role in a namespace or of a ClusterRole; None when there is no such role."""
        if ref.kind == "Role":
            item = self._cache.get(ROLES.root, ROLES.key(namespace, ref.name))
        else:
            item = self._cache.get(CLUSTERROLES.root, CLUSTERROLES.key("", ref.name))
        return None if item is None else item.view(_Role).rules or ()

    def _by_roles(self, user: User, ask: Ask) -> Decision:
        for binding, rules in rules_of(self._bindings, user, ask.namespace):
            if any(allows(rule, ask) for rule in rules):
                return Decision(True, f"RBAC: allowed by {binding.label}")
        return Decision(False)

    def _refresh(self) -> None:
        shelves = [self._cache.shelf(kind.root) for kind in _KINDS]
        at = tuple(shelf.revision for shelf in shelves)
        if at == self._at:
            return
        self._at = at
        self._remembered.clear()
        self._bindings = [
            *(self._binding(item, "ClusterRoleBinding") for item in shelves[3].all()),
            *(self._binding(item, "RoleBinding") for item in shelves[2].all()),
        ]

    def _binding(self, item: Item, kind: str) -> Binding:
        view, meta = item.view(_Binding), item.meta
        subjects = view.subjects or ()
        rules = tuple(self.rules_of_role(meta.namespace, view.role_ref) or ())
        name = f"{meta.name}/{meta.namespace}" if meta.namespace else meta.name
        to = ", ".join(f'{subject.kind} "{subject.name}"' for subject in subjects[:3])
        label = f'{kind} "{name}" of {view.role_ref.kind} "{view.role_ref.name}" to {to}'
        return Binding(meta.namespace, subjects, rules, label)


def refusal(user: User, ask: Ask, reason: str = "") -> str:
    """Why not, as kubectl's users know it."""
    why = f": {reason}" if reason else ""
    if ask.path:
        return f'forbidden: User "{user.name}" cannot {ask.verb} path "{ask.path}"{why}'
    subject = qualified(ask.resource.partition("/")[0], ask.group)
    subject = f'{subject} "{ask.name}"' if ask.name else subject
    where = f'in the namespace "{ask.namespace}"' if ask.namespace else "at the cluster scope"
    return (
        f'{subject} is forbidden: User "{user.name}" cannot {ask.verb} resource "{ask.resource}"'
        f' in API group "{ask.group}" {where}{why}'
    )
