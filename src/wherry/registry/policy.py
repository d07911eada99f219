"""Who may do what, by documents in the form of AWS's IAM, and the one function that reads them. Pure.

An explicit Deny wins; else something must Allow; each boundary (a token's scope) must allow too. `evaluate` knows no
action or resource by name, so a door can ask it in its own words (`ecr:BatchGetImage` on an ARN).
Source: AWS IAM User Guide, "Policy evaluation logic", "IAM JSON policy elements reference".

Not taken, and refused by name: BinaryEquals, and principals of federations.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec

from wherry.clock import parse_rfc3339
from wherry.errors import Cause, Invalid

DOCUMENT_MAX_BYTES = 20_480
EVERYBODY = "*"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. None for an element that is not written; a `not_` element means all but those."""

    effect: str
    sid: str = ""
    principals: tuple[str, ...] | None = None
    not_principals: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None
    not_actions: tuple[str, ...] | None = None
    resources: tuple[str, ...] | None = None
    not_resources: tuple[str, ...] | None = None
    conditions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """A document by name."""

    name: str
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """A question. `principals` are all the names of who asks (`user/ann`, `team/web`); `context` has lower-case keys."""

    principals: frozenset[str]
    action: str
    resource: str
    context: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer: `reason` is "allowed", "explicit-deny", "implicit-deny" or "boundary"; `by` names policy and sid."""

    allowed: bool
    reason: str
    by: str = ""


def evaluate(
    ask: Ask,
    *,
    identity: Sequence[Policy] = (),
    resource: Sequence[Policy] = (),
    boundaries: Sequence[Sequence[Policy]] = (),
    one_account: bool = True,
) -> Decision:
    """Decide. Within one account an identity or a resource policy must allow; across accounts both must."""
    every = (*identity, *resource, *(policy for boundary in boundaries for policy in boundary))
    denied = _first(ask, every, "Deny", resource)
    if denied is not None:
        return Decision(False, "explicit-deny", denied)
    for boundary in boundaries:
        if _first(ask, boundary, "Allow", resource) is None:
            return Decision(False, "boundary")
    mine, its = _first(ask, identity, "Allow", ()), _first(ask, resource, "Allow", resource)
    allowed = (mine or its) if one_account else (mine and its)
    return Decision(True, "allowed", allowed) if allowed else Decision(False, "implicit-deny")


@lru_cache(maxsize=4096)
def parse_policy(data: bytes | str, *, name: str = "policy", identity: bool = False) -> Policy:
    """Read a document. An `identity` policy has no principals, any other must. Raises Invalid with the field."""
    if len(data) > DOCUMENT_MAX_BYTES:
        raise _invalid("", f"policy {name}: {len(data)} characters; at most {DOCUMENT_MAX_BYTES} are taken")
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid("", f"policy {name} cannot be read: {error}") from None
    for key in document:
        if key not in ("Version", "Id", "Statement"):
            raise _invalid(key, f"policy {name}: {key!r} is no element; there are Version, Id and Statement")
    if document.get("Version", "2012-10-17") not in ("2012-10-17", "2008-10-17"):
        raise _invalid("Version", f"policy {name}: Version {document['Version']!r}: write 2012-10-17")
    statements = document.get("Statement")
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list) or not statements:
        raise _invalid("Statement", f"policy {name}: Statement must be a list with at least one statement")
    return Policy(name, tuple(_statement(one, f"Statement[{index}]", identity) for index, one in enumerate(statements)))


_ELEMENTS = {
    "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition"
}  # fmt: skip


def _statement(one: Any, where: str, identity: bool) -> Statement:
    if not isinstance(one, dict):
        raise _invalid(where, f"{where}: not an object")
    for key in one:
        if key not in _ELEMENTS:
            raise _invalid(f"{where}.{key}", f"{where}: {key!r} is no element of a statement")
    effect = one.get("Effect")
    if effect not in ("Allow", "Deny"):
        raise _invalid(f"{where}.Effect", f"{where}: Effect {effect!r}: write Allow or Deny")
    for name in ("Principal", "Action", "Resource"):
        if name in one and f"Not{name}" in one:
            raise _invalid(f"{where}.Not{name}", f"{where}: {name} and Not{name} exclude each other")
    if "Action" not in one and "NotAction" not in one:
        raise _invalid(f"{where}.Action", f"{where}: Action or NotAction is needed")
    has_principal = "Principal" in one or "NotPrincipal" in one
    if identity and has_principal:
        raise _invalid(f"{where}.Principal", f"{where}: a policy of a person has no Principal: they are it")
    if not identity and not has_principal:
        raise _invalid(f"{where}.Principal", f"{where}: Principal is needed: who this is about")
    if "NotPrincipal" in one and effect == "Allow":
        raise _invalid(f"{where}.NotPrincipal", f"{where}: NotPrincipal goes with Deny only")
    if identity and "Resource" not in one and "NotResource" not in one:
        raise _invalid(f"{where}.Resource", f"{where}: Resource is needed")

    def texts(name: str) -> tuple[str, ...] | None:
        return _texts(one[name], f"{where}.{name}", principal=name.endswith("Principal")) if name in one else None

    return Statement(
        effect,
        str(one.get("Sid", "")),
        texts("Principal"),
        texts("NotPrincipal"),
        texts("Action"),
        texts("NotAction"),
        texts("Resource"),
        texts("NotResource"),
        _conditions(one.get("Condition", {}), f"{where}.Condition"),
    )


def _texts(value: Any, where: str, *, principal: bool = False) -> tuple[str, ...]:
    if principal and isinstance(value, dict):
        if "Federated" in value:
            raise _invalid(f"{where}.Federated", f"{where}: federated principals are not supported")
        return tuple(text for part in value.values() for text in _texts(part, where))
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise _invalid(where, f"{where}: a text or a list of texts")
    return tuple(str(text) for text in found)


def _conditions(value: Any, where: str) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    if not isinstance(value, dict):
        raise _invalid(where, f"{where}: an object of operators")
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for operator, tests in value.items():
        if _operator(operator) is None:
            raise _invalid(f"{where}.{operator}", f"{where}: {operator!r} is not an operator that is known here")
        if not isinstance(tests, dict):
            raise _invalid(f"{where}.{operator}", f"{where}.{operator}: an object of keys")
        for key, wanted in tests.items():
            texts = wanted if isinstance(wanted, list) else [wanted]
            if not all(isinstance(text, str | bool | int | float) for text in texts):
                raise _invalid(f"{where}.{operator}.{key}", f"{where}.{operator}.{key}: texts, numbers or booleans")
            found.append((operator, key.lower(), tuple(_text(text) for text in texts)))
    return tuple(found)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _first(ask: Ask, policies: Sequence[Policy], effect: str, resource: Sequence[Policy]) -> str | None:
    for policy in policies:
        for statement in policy.statements:
            if statement.effect == effect and _applies(
                ask, statement, with_principal=any(policy is one for one in resource)
            ):
                return f"{policy.name}/{statement.sid}" if statement.sid else policy.name
    return None


def _applies(ask: Ask, statement: Statement, *, with_principal: bool) -> bool:
    if with_principal and not _principal_fits(ask, statement):
        return False
    if statement.actions is not None and not any(_like(one.lower(), ask.action.lower()) for one in statement.actions):
        return False
    if statement.not_actions is not None and any(
        _like(one.lower(), ask.action.lower()) for one in statement.not_actions
    ):
        return False
    if statement.resources is not None and not any(_fits(ask, one, ask.resource) for one in statement.resources):
        return False
    if statement.not_resources is not None and any(_fits(ask, one, ask.resource) for one in statement.not_resources):
        return False
    return all(_holds(ask, operator, key, wanted) for operator, key, wanted in statement.conditions)


def _principal_fits(ask: Ask, statement: Statement) -> bool:
    if statement.principals is not None:
        return EVERYBODY in statement.principals or not ask.principals.isdisjoint(statement.principals)
    if statement.not_principals is not None:
        return EVERYBODY not in statement.not_principals and ask.principals.isdisjoint(statement.not_principals)
    return False


def _fits(ask: Ask, pattern: str, value: str) -> bool:
    filled = _fill(ask, pattern)
    return filled is not None and _like(filled, value)


_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_LITERAL = {"*": "\ue000", "?": "\ue001", "$": "\ue002"}


def _fill(ask: Ask, pattern: str) -> str | None:
    """Put the context's values for `${key}`; None when one is missing and has no default."""
    missing = False

    def value(found: re.Match[str]) -> str:
        nonlocal missing
        name, comma, default = found[1].partition(",")
        if name in _LITERAL:
            return _LITERAL[name]
        values = ask.context.get(name.strip().lower(), ())
        if len(values) == 1:
            return "".join(_LITERAL.get(char, char) for char in values[0])
        missing = missing or not comma
        return default.strip().strip("'")

    filled = _VARIABLE.sub(value, pattern) if "${" in pattern else pattern
    return None if missing else filled


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    parts = [".*" if char == "*" else "." if char == "?" else re.escape(char) for char in text]
    whole = "".join(parts)
    for char, stands in _LITERAL.items():
        whole = whole.replace(re.escape(stands), re.escape(char))
    return re.compile(whole, re.DOTALL)


def _like(pattern: str, value: str) -> bool:
    """IAM's wildcards: `*` any text, also none and also over slashes; `?` one character."""
    return pattern == "*" or _pattern(pattern).fullmatch(value) is not None


Test = Callable[[str, str], bool]


def _number(test: Callable[[float, float], bool]) -> Test:
    def compare(wanted: str, seen: str) -> bool:
        try:
            return test(float(seen), float(wanted))
        except ValueError:
            return False

    return compare


def _date(test: Callable[[float, float], bool]) -> Test:
    def compare(wanted: str, seen: str) -> bool:
        try:
            return test(_time(seen), _time(wanted))
        except ValueError:
            return False

    return compare


def _time(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() and "-" not in text else parse_rfc3339(text)


def _in_network(wanted: str, seen: str) -> bool:
    try:
        return ipaddress.ip_address(seen) in ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        return False


_TESTS: dict[str, Test] = {
    "StringEquals": lambda wanted, seen: wanted.translate(_BACK) == seen,
    "StringEqualsIgnoreCase": lambda wanted, seen: wanted.translate(_BACK).lower() == seen.lower(),
    "StringLike": _like,
    "ArnEquals": _like,
    "ArnLike": _like,
    "NumericEquals": _number(lambda seen, wanted: seen == wanted),
    "NumericLessThan": _number(lambda seen, wanted: seen < wanted),
    "NumericLessThanEquals": _number(lambda seen, wanted: seen <= wanted),
    "NumericGreaterThan": _number(lambda seen, wanted: seen > wanted),
    "NumericGreaterThanEquals": _number(lambda seen, wanted: seen >= wanted),
    "DateEquals": _date(lambda seen, wanted: seen == wanted),
    "DateLessThan": _date(lambda seen, wanted: seen < wanted),
    "DateLessThanEquals": _date(lambda seen, wanted: seen <= wanted),
    "DateGreaterThan": _date(lambda seen, wanted: seen > wanted),
    "DateGreaterThanEquals": _date(lambda seen, wanted: seen >= wanted),
    "Bool": lambda wanted, seen: wanted.lower() == seen.lower(),
    "IpAddress": _in_network,
}
_BACK = {ord(stands): char for char, stands in _LITERAL.items()}
_NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
    "NumericNotEquals": "NumericEquals",
    "DateNotEquals": "DateEquals",
    "NotIpAddress": "IpAddress",
}


@lru_cache(maxsize=256)
def _operator(text: str) -> tuple[str, Test | None, bool, bool] | None:
    """Read an operator as (set prefix, test, negated, if exists); Null has no test. None for what is no operator."""
    prefix, colon, name = text.rpartition(":")
    if colon and prefix not in ("ForAllValues", "ForAnyValue"):
        return None
    if name == "Null" and not colon:
        return "", None, False, False
    if_exists = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    negated = name in _NEGATED
    test = _TESTS.get(_NEGATED.get(name, name))
    return None if test is None else (prefix, test, negated, if_exists)


def _holds(ask: Ask, text: str, key: str, wanted: Sequence[str]) -> bool:
    """Whether one condition holds. Values of one key are alternatives; for a negated operator none may match."""
    operator = _operator(text)
    assert operator is not None  # checked when it was read
    prefix, test, negated, if_exists = operator
    seen = ask.context.get(key)
    if test is None:
        return any((one.lower() == "true") == (seen is None) for one in wanted)
    if seen is None:
        return negated or if_exists if not prefix else prefix == "ForAllValues" or if_exists
    filled = [one for each in wanted if (one := _fill(ask, each)) is not None]

    def matches(value: str) -> bool:
        return any(test(one, value) for one in filled) != negated

    if prefix == "ForAllValues":
        return all(matches(value) for value in seen)
    if prefix == "ForAnyValue":
        return any(matches(value) for value in seen)
    return len(seen) > 0 and (all(matches(value) for value in seen) if negated else any(matches(v) for v in seen))


def _invalid(field_name: str, message: str) -> Invalid:
    return Invalid(message, causes=[Cause(field_name, "Invalid", message)])
