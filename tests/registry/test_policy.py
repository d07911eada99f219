"""The rules of AWS IAM as cases: what a policy says, what is asked, and what comes out.

Source: AWS IAM User Guide: "Policy evaluation logic", "IAM JSON policy elements" (Principal, Action, Resource, Condition
operators, conditions with several keys or values), "Variables and tags".
"""

from typing import Any

import msgspec
import pytest

from wherry.errors import Invalid
from wherry.registry.policy import Ask, evaluate, parse_policy

ANN = frozenset(("user/ann", "team/web", "authenticated"))


def statement(effect: str, action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    found = {"Effect": effect, **more}
    if "NotAction" not in more:
        found["Action"] = action
    if "NotResource" not in more:
        found["Resource"] = resource
    return found


def allow(action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return statement("Allow", action, resource, **more)


def deny(action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return statement("Deny", action, resource, **more)


def on(operator: str, key: str, *values: Any) -> dict[str, Any]:
    return {"Condition": {operator: {key: list(values)}}}


def decide(
    identity: list[dict[str, Any]],
    resource: list[dict[str, Any]],
    action: str = "pull",
    name: str = "team/web",
    context: dict[str, Any] | None = None,
    boundary: list[dict[str, Any]] | None = None,
    one_account: bool = True,
) -> str:
    def policy(statements: list[dict[str, Any]], *, mine: bool) -> Any:
        return parse_policy(msgspec.json.encode({"Version": "2012-10-17", "Statement": statements}), identity=mine)

    seen = {key.lower(): (value,) if isinstance(value, str) else tuple(value) for key, value in (context or {}).items()}
    return evaluate(
        Ask(ANN, action, name, seen),
        identity=[policy(identity, mine=True)] if identity else [],
        resource=[policy(resource, mine=False)] if resource else [],
        boundaries=[[policy(boundary, mine=True)]] if boundary else [],
        one_account=one_account,
    ).reason


YES, NO, DENIED, BOUND = "allowed", "implicit-deny", "explicit-deny", "boundary"
HERE = {"Principal": "*"}
AT = {"SourceIp": "10.1.2.3", "Tag": "v1.2", "Size": "50", "When": "2026-05-01T00:00:00Z", "Mfa": "true", "user": "ann"}
MANY = {"Tags": ("a", "b")}

LOGIC: list[tuple[Any, ...]] = [
    ([], [], {}, NO),
    ([allow()], [], {}, YES),
    ([deny()], [], {}, DENIED),
    ([allow(), deny()], [], {}, DENIED),
    ([deny(), allow()], [], {}, DENIED),
    ([], [allow(**HERE)], {}, YES),
    ([allow()], [deny(**HERE)], {}, DENIED),
    ([deny()], [allow(**HERE)], {}, DENIED),
    ([allow("push")], [allow("pull", **HERE)], {}, YES),
    ([allow("push")], [allow("delete", **HERE)], {}, NO),
    ([allow()], [], {"one_account": False}, NO),
    ([], [allow(**HERE)], {"one_account": False}, NO),
    ([allow()], [allow(**HERE)], {"one_account": False}, YES),
    ([allow()], [], {"boundary": [allow("push")]}, BOUND),
    ([allow()], [], {"boundary": [allow("pull")]}, YES),
    ([], [], {"boundary": [allow()]}, NO),
    ([allow()], [], {"boundary": [allow(), deny("pull")]}, DENIED),
]
ACTIONS: list[tuple[Any, ...]] = [
    ([allow("pull")], [], {}, YES),
    ([allow("PULL")], [], {}, YES),
    ([allow("push")], [], {}, NO),
    ([allow(["push", "pull"])], [], {}, YES),
    ([allow("pu*")], [], {}, YES),
    ([allow("pu?l")], [], {}, YES),
    ([allow("pu?")], [], {}, NO),
    ([allow("p*l")], [], {}, YES),
    ([allow("ecr:Batch*")], [], {"action": "ecr:BatchGetImage"}, YES),
    ([allow("ecr:*")], [], {"action": "ECR:PutImage"}, YES),
    ([allow("ecr:Get*")], [], {"action": "ecr:PutImage"}, NO),
    ([allow(NotAction="delete")], [], {}, YES),
    ([allow(NotAction="pull")], [], {}, NO),
    ([allow(NotAction=["push", "p*"])], [], {}, NO),
    ([allow(), deny(NotAction=["pull", "list"])], [], {"action": "push"}, DENIED),
    ([allow(), deny(NotAction=["pull", "list"])], [], {}, YES),
]
RESOURCES: list[tuple[Any, ...]] = [
    ([allow(resource="team/web")], [], {}, YES),
    ([allow(resource="team/we")], [], {}, NO),
    ([allow(resource="team/*")], [], {}, YES),
    ([allow(resource="*/web")], [], {"name": "a/b/web"}, YES),
    ([allow(resource="Team/*")], [], {}, NO),
    ([allow(resource="team/we?")], [], {}, YES),
    ([allow(resource=["other", "team/web"])], [], {}, YES),
    ([allow(NotResource="secret/*")], [], {}, YES),
    ([allow(NotResource="team/*")], [], {}, NO),
    ([allow(), deny(NotResource="team/*")], [], {"name": "x"}, DENIED),
    ([allow(resource="${user}/*")], [], {"name": "ann/x", "context": AT}, YES),
    ([allow(resource="${user}/*")], [], {"name": "bob/x", "context": AT}, NO),
    ([allow(resource="${absent}/*")], [], {"name": "ann/x", "context": AT}, NO),
    ([allow(resource="${absent, 'ann'}/*")], [], {"name": "ann/x", "context": AT}, YES),
    ([allow(resource="${*}")], [], {"name": "x"}, NO),
    ([allow(resource="${*}")], [], {"name": "*"}, YES),
    ([allow(resource="${user}/*")], [], {"name": "bob/x", "context": {"user": "*"}}, NO),
    ([allow(resource="a.b")], [], {"name": "axb"}, NO),
]
PRINCIPALS: list[tuple[Any, ...]] = [
    ([], [allow(Principal="user/ann")], {}, YES),
    ([], [allow(Principal={"AWS": "user/ann"})], {}, YES),
    ([], [allow(Principal={"AWS": ["user/bob", "team/web"]})], {}, YES),
    ([], [allow(Principal={"AWS": "*"})], {}, YES),
    ([], [allow(Principal="user/bob")], {}, NO),
    ([], [allow(Principal="user/*")], {}, NO),
    ([], [allow(Principal=[])], {}, NO),
    ([], [allow(**HERE), deny(NotPrincipal="user/ann")], {}, YES),
    ([], [allow(**HERE), deny(NotPrincipal="user/bob")], {}, DENIED),
    ([], [allow(**HERE), deny(Principal="team/web")], {}, DENIED),
]
CONDITIONS: list[tuple[Any, ...]] = [
    (on("StringEquals", "Tag", "v1.2"), AT, YES),
    (on("StringEquals", "tag", "v1.2"), AT, YES),
    (on("StringEquals", "Tag", "V1.2"), AT, NO),
    (on("StringEquals", "Tag", "v1", "v1.2"), AT, YES),
    (on("StringEquals", "Tag", "v*"), AT, NO),
    (on("StringEquals", "Absent", "x"), AT, NO),
    (on("StringNotEquals", "Tag", "v1.2"), AT, NO),
    (on("StringNotEquals", "Tag", "v1"), AT, YES),
    (on("StringNotEquals", "Tag", "v1", "v1.2"), AT, NO),
    (on("StringNotEquals", "Absent", "x"), AT, YES),
    (on("StringEqualsIgnoreCase", "Tag", "V1.2"), AT, YES),
    (on("StringNotEqualsIgnoreCase", "Tag", "V1.2"), AT, NO),
    (on("StringLike", "Tag", "v1.?"), AT, YES),
    (on("StringLike", "Tag", "x*", "v*"), AT, YES),
    (on("StringNotLike", "Tag", "v*"), AT, NO),
    (on("StringEquals", "user", "${user}"), AT, YES),
    (on("StringLike", "Tag", "${absent}"), AT, NO),
    (on("StringEqualsIfExists", "Absent", "x"), AT, YES),
    (on("StringEqualsIfExists", "Tag", "x"), AT, NO),
    (on("NumericLessThan", "Size", 51), AT, YES),
    (on("NumericLessThan", "Size", "50"), AT, NO),
    (on("NumericLessThanEquals", "Size", 50), AT, YES),
    (on("NumericGreaterThan", "Size", 49.5), AT, YES),
    (on("NumericGreaterThanEquals", "Size", 51), AT, NO),
    (on("NumericEquals", "Size", "50.0"), AT, YES),
    (on("NumericNotEquals", "Size", 50), AT, NO),
    (on("NumericEquals", "Tag", 50), AT, NO),
    (on("DateLessThan", "When", "2026-06-01T00:00:00Z"), AT, YES),
    (on("DateGreaterThan", "When", "2026-06-01T00:00:00Z"), AT, NO),
    (on("DateGreaterThanEquals", "When", "2026-05-01T00:00:00Z"), AT, YES),
    (on("DateEquals", "When", "2026-05-01T02:00:00+02:00"), AT, YES),
    (on("DateNotEquals", "When", "2026-05-01T00:00:00Z"), AT, NO),
    (on("Bool", "Mfa", True), AT, YES),
    (on("Bool", "Mfa", "false"), AT, NO),
    (on("Bool", "Absent", True), AT, NO),
    (on("BoolIfExists", "Absent", True), AT, YES),
    (on("IpAddress", "SourceIp", "10.0.0.0/8"), AT, YES),
    (on("IpAddress", "SourceIp", "10.1.2.3"), AT, YES),
    (on("IpAddress", "SourceIp", "192.168.0.0/16", "10.1.0.0/16"), AT, YES),
    (on("IpAddress", "SourceIp", "2001:db8::/32"), AT, NO),
    (on("NotIpAddress", "SourceIp", "10.0.0.0/8"), AT, NO),
    (on("ArnLike", "Tag", "v*"), AT, YES),
    (on("ArnNotLike", "Tag", "v*"), AT, NO),
    (on("Null", "Absent", "true"), AT, YES),
    (on("Null", "Tag", "true"), AT, NO),
    (on("Null", "Tag", "false"), AT, YES),
    ({"Condition": {"StringEquals": {"Tag": "v1.2", "user": "bob"}}}, AT, NO),
    ({"Condition": {"StringEquals": {"Tag": "v1.2"}, "Bool": {"Mfa": "true"}}}, AT, YES),
    ({"Condition": {"StringEquals": {"Tag": "v1.2"}, "Bool": {"Mfa": "false"}}}, AT, NO),
    (on("ForAllValues:StringEquals", "Tags", "a", "b", "c"), MANY, YES),
    (on("ForAllValues:StringEquals", "Tags", "a"), MANY, NO),
    (on("ForAllValues:StringEquals", "Absent", "a"), MANY, YES),
    (on("ForAnyValue:StringEquals", "Tags", "b", "z"), MANY, YES),
    (on("ForAnyValue:StringEquals", "Tags", "z"), MANY, NO),
    (on("ForAnyValue:StringEquals", "Absent", "a"), MANY, NO),
    (on("ForAnyValue:StringLike", "Tags", "?"), MANY, YES),
    (on("ForAllValues:StringNotEquals", "Tags", "z"), MANY, YES),
    (on("ForAnyValue:StringNotEquals", "Tags", "a"), MANY, YES),
]


def test_there_are_a_hundred_cases() -> None:
    assert sum(map(len, (LOGIC, ACTIONS, RESOURCES, PRINCIPALS, CONDITIONS))) >= 100


@pytest.mark.parametrize(("identity", "resource", "more", "reason"), [*LOGIC, *ACTIONS, *RESOURCES, *PRINCIPALS])
def test_a_question_is_decided(identity: Any, resource: Any, more: dict[str, Any], reason: str) -> None:
    assert decide(identity, resource, **more) == reason


@pytest.mark.parametrize(("condition", "context", "reason"), CONDITIONS)
def test_a_condition_holds_or_not(condition: Any, context: dict[str, Any], reason: str) -> None:
    assert decide([allow(**condition)], [], context=context) == reason
    flipped = DENIED if reason == YES else YES
    assert decide([allow(), deny(**condition)], [], context=context) == flipped


@pytest.mark.parametrize(
    ("document", "identity", "field"),
    [
        ("{", True, ""),
        ('{"Statement": []}', True, "Statement"),
        ('{"Statements": []}', True, "Statements"),
        ('{"Version": "2020-01-01", "Statement": [{}]}', True, "Version"),
        ('{"Statement": [{"Effect": "allow"}]}', True, "Statement[0].Effect"),
        ('{"Statement": [{"Effect": "Allow"}]}', True, "Statement[0].Action"),
        ('{"Statement": {"Effect": "Allow", "Action": "*"}}', True, "Statement[0].Resource"),
        ('{"Statement": {"Effect": "Allow", "Action": "*"}}', False, "Statement[0].Principal"),
        ('{"Statement":{"Effect":"Allow","Action":"*","Principal":"*","Resource":"*"}}', True, "Statement[0].Principal"),
        ('{"Statement": {"Effect": "Allow", "Action": "*", "NotPrincipal": "x"}}', False, "Statement[0].NotPrincipal"),
        ('{"Statement":{"Effect":"Allow","Action":"*","NotAction":"x","Resource":"*"}}', True, "Statement[0].NotAction"),
        ('{"Statement": {"Effect": "Allow", "Action": 1, "Resource": "*"}}', True, "Statement[0].Action"),
        ('{"Statement":{"Effect":"Allow","Action":"*","Principal":{"Federated":"x"}}}', False,
         "Statement[0].Principal.Federated"),
        ('{"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {"BinaryEquals": {}}}}', True,
         "Statement[0].Condition.BinaryEquals"),
    ],
)  # fmt: skip
def test_a_wrong_document_names_its_field(document: str, identity: bool, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_policy(document, identity=identity)
    assert refused.value.causes[0].field == field
