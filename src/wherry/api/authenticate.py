"""Who asks: by client certificate, service-account token, or the peer of a unix socket."""

import os
from collections.abc import Callable

from wherry.api.rbac import Ask
from wherry.api.tokens import Tokens
from wherry.errors import Forbidden, Unauthorized
from wherry.model.users import User
from wherry.wire.http import Request

AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
MASTERS = "system:masters"
ANONYMOUS = User("system:anonymous", (UNAUTHENTICATED,))
OPEN_PATHS = ("/livez", "/readyz", "/healthz", "/version")
"""Paths (and what is below them) that anybody may ask."""

Allowed = Callable[[User, Ask], bool]


def user_of(request: Request, tokens: Tokens, allowed: Allowed) -> User:
    """Find who asks; then, for `Impersonate-*` headers, whom they act as.

    Raises Unauthorized for nobody we know (but for the open paths, which are anonymous), Forbidden for an
    impersonation that is not allowed.
    """
    user = _bearer(request, tokens) or _peer(request)
    if user is None:
        if is_open(request.path):
            return ANONYMOUS
        raise Unauthorized("Unauthorized")
    name = request.headers.get("impersonate-user")
    if name is None:
        if any(key.lower().startswith("impersonate-") for key, _ in request.headers.items()):
            raise Forbidden("Impersonate-Group, -Uid and -Extra need Impersonate-User: say whom to act as")
        return user
    return _impersonated(request, user, name, allowed)


def is_open(path: str) -> bool:
    """Say whether anybody may ask for a path."""
    return any(path == base or path.startswith(base + "/") for base in OPEN_PATHS)


def _bearer(request: Request, tokens: Tokens) -> User | None:
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("Authorization: only Bearer tokens are understood")
    return tokens.check(token.strip()).user


def _peer(request: Request) -> User | None:
    peer = request.peer
    if peer.kind == "unix" and peer.uid is not None and peer.uid in (0, os.geteuid()):
        return User("system:admin", (MASTERS, AUTHENTICATED))
    if peer.kind == "tls" and peer.common_name:
        # The TLS layer took the certificate only because our own CA signed it.
        return User(peer.common_name, (*(peer.organizations or ()), AUTHENTICATED))
    return None


def _impersonated(request: Request, user: User, name: str, allowed: Allowed) -> User:
    asked = list(request.headers.all("impersonate-group"))
    parts = name.split(":")
    is_account = name.startswith("system:serviceaccount:") and len(parts) == 4
    if is_account:
        _may(user, Ask("impersonate", "", "serviceaccounts", parts[2], parts[3]), allowed)
    else:
        _may(user, Ask("impersonate", "", "users", name=name), allowed)
    for group in asked:
        _may(user, Ask("impersonate", "", "groups", name=group), allowed)
    uid = request.headers.get("impersonate-uid") or ""
    if uid:
        _may(user, Ask("impersonate", "authentication.k8s.io", "uids", name=uid), allowed)
    extra: dict[str, list[str]] = {}
    for header, value in request.headers.items():
        if header.lower().startswith("impersonate-extra-"):
            key = header.lower().removeprefix("impersonate-extra-")
            _may(user, Ask("impersonate", "authentication.k8s.io", f"userextras/{key}", name=value), allowed)
            extra.setdefault(key, []).append(value)
    groups = asked
    if is_account and not groups:
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{parts[2]}"]
    last = UNAUTHENTICATED if name == ANONYMOUS.name else AUTHENTICATED
    if last not in groups:
        groups = [*groups, last]
    return User(name, tuple(groups), uid, extra)


def _may(user: User, ask: Ask, allowed: Allowed) -> None:
    if not allowed(user, ask):
        resource = ask.resource
        raise Forbidden(
            f'{resource} "{ask.name}" is forbidden: User "{user.name}" cannot impersonate resource "{resource}"'
            f' in API group "{ask.group}" at the cluster scope'
        )
