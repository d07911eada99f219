"""Questions about rights and identities, answered and not kept: access reviews, rules reviews, token reviews."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.api import bodies
from wherry.api.core import Core
from wherry.api.errors import invalid
from wherry.api.rbac import Ask, Rule
from wherry.api.target import Target
from wherry.clock import rfc3339
from wherry.errors import Cause, Unauthorized
from wherry.model import kinds
from wherry.model.kinds import Kind
from wherry.model.users import User
from wherry.wire.http import Request, Response

Json = dict[str, Any]
Answerer = Callable[[Core, User, Target, Json], Json]


async def review(core: Core, user: User, target: Target, request: Request) -> Response:
    """POST of a question: the same object with its status."""
    options = bodies.options_of(request)
    body = await bodies.read(request, target.kind, options, limit=core.settings.body_bytes)
    await core.cache.present()
    body["status"] = REVIEWS[target.kind](core, user, target, body)
    body.setdefault("metadata", {})
    return Response.json(body, 201, options.headers)


def _self_access(core: Core, user: User, target: Target, body: Json) -> Json:
    return _decide(core, user, target, body.get("spec") or {})


def _access(core: Core, user: User, target: Target, body: Json) -> Json:
    spec: Json = body.get("spec") or {}
    who = User(
        str(spec.get("user", "")), tuple(spec.get("groups") or ()), str(spec.get("uid", "")), spec.get("extra") or {}
    )
    if not who.name and not who.groups:
        cause = Cause(
            "spec.user", "FieldValueRequired", "Required value: at least one of user or group must be specified"
        )
        raise invalid(target.kind.kind, target.kind.group, "", [cause])
    where: Json = spec.get("resourceAttributes") or {}
    if target.kind == kinds.LOCALSUBJECTACCESSREVIEWS and where.get("namespace", "") != target.namespace:
        message = f'Invalid value: "{where.get("namespace", "")}": must match metadata.namespace: {target.namespace}'
        cause = Cause("spec.resourceAttributes.namespace", "FieldValueInvalid", message)
        raise invalid(target.kind.kind, target.kind.group, "", [cause])
    return _decide(core, who, target, spec)


def _decide(core: Core, who: User, target: Target, spec: Json) -> Json:
    resource: Json | None = spec.get("resourceAttributes")
    path: Json | None = spec.get("nonResourceAttributes")
    if (resource is None) == (path is None):
        message = "Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified"
        cause = Cause("spec.resourceAttributes", "FieldValueInvalid", message)
        raise invalid(target.kind.kind, target.kind.group, "", [cause])
    ask: Ask
    if path is not None:
        ask = Ask(str(path.get("verb", "")), path=str(path.get("path", "")))
    else:
        resource = resource or {}
        name = str(resource.get("resource", ""))
        if resource.get("subresource"):
            name = f"{name}/{resource['subresource']}"
        ask = Ask(
            str(resource.get("verb", "")),
            str(resource.get("group", "")),
            name,
            str(resource.get("namespace", "")),
            str(resource.get("name", "")),
        )
    decision = core.authorizer.decide(who, ask)
    status: Json = {"allowed": decision.allowed}
    if decision.reason:
        status["reason"] = decision.reason
    return status


def _self_rules(core: Core, user: User, target: Target, body: Json) -> Json:
    namespace = str((body.get("spec") or {}).get("namespace") or "")
    if not namespace:
        cause = Cause("spec.namespace", "FieldValueRequired", "Required value: name a namespace")
        raise invalid(target.kind.kind, target.kind.group, "", [cause])
    rules = core.authorizer.rules(user, namespace)
    return {
        "resourceRules": [_resource_rule(rule) for rule in rules if rule.resources],
        "nonResourceRules": [
            {"verbs": list(rule.verbs), "nonResourceURLs": list(rule.non_resource_urls)}
            for rule in rules
            if rule.non_resource_urls
        ],
        "incomplete": False,
    }


def _resource_rule(rule: Rule) -> Json:
    found: Json = {"verbs": list(rule.verbs), "apiGroups": list(rule.api_groups), "resources": list(rule.resources)}
    if rule.resource_names:
        found["resourceNames"] = list(rule.resource_names)
    return found


def _self_subject(core: Core, user: User, target: Target, body: Json) -> Json:
    del target
    body.setdefault("metadata", {})["creationTimestamp"] = rfc3339(core.clock.now())
    return {"userInfo": _info(user)}


def _token(core: Core, user: User, target: Target, body: Json) -> Json:
    del user
    spec: Json = body.get("spec") or {}
    token = str(spec.get("token") or "")
    if not token:
        cause = Cause("spec.token", "FieldValueRequired", "Required value: the token to check")
        raise invalid(target.kind.kind, target.kind.group, "", [cause])
    try:
        checked = core.tokens.check(token, tuple(spec.get("audiences") or ()))
    except Unauthorized as error:
        return {"authenticated": False, "user": {}, "error": error.message}
    return {"authenticated": True, "user": _info(checked.user), "audiences": list(checked.audiences)}


def _info(user: User) -> Json:
    info: Json = {"username": user.name, "groups": list(user.groups)}
    if user.uid:
        info["uid"] = user.uid
    if user.extra:
        info["extra"] = {key: list(values) for key, values in user.extra.items()}
    return info


REVIEWS: Mapping[Kind, Answerer] = {
    kinds.SELFSUBJECTACCESSREVIEWS: _self_access,
    kinds.SUBJECTACCESSREVIEWS: _access,
    kinds.LOCALSUBJECTACCESSREVIEWS: _access,
    kinds.SELFSUBJECTRULESREVIEWS: _self_rules,
    kinds.SELFSUBJECTREVIEWS: _self_subject,
    kinds.TOKENREVIEWS: _token,
}
