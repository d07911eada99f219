"""Label and field selectors: which objects a list, a watch, a Service or a ReplicaSet means.

Source: Kubernetes, "Labels and Selectors", "Field Selectors".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from wherry.errors import BadRequest, Invalid
from wherry.model import names


class Operator(Enum):
    """How a requirement compares; the values are the words that `str()` writes."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    ABSENT = "!"
    GREATER = ">"
    LESS = "<"


_OF_EXPRESSIONS = {
    "In": Operator.IN,
    "NotIn": Operator.NOT_IN,
    "Exists": Operator.EXISTS,
    "DoesNotExist": Operator.ABSENT,
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Say whether labels meet it. An absent label meets `notin` and `!=`."""
        value = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return value is not None and value in self.values
            case Operator.NOT_IN:
                return value is None or value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.ABSENT:
                return value is None
            case Operator.GREATER | Operator.LESS:
                number = _integer(value)
                bound = _integer(next(iter(self.values)))
                if number is None or bound is None:
                    return False
                return number > bound if self.operator is Operator.GREATER else number < bound

    def __str__(self) -> str:
        match self.operator:
            case Operator.EXISTS:
                return self.key
            case Operator.ABSENT:
                return f"!{self.key}"
            case Operator.GREATER | Operator.LESS:
                return f"{self.key}{self.operator.value}{next(iter(self.values))}"
            case Operator.IN | Operator.NOT_IN:
                if len(self.values) == 1:
                    sign = "=" if self.operator is Operator.IN else "!="
                    return f"{self.key}{sign}{next(iter(self.values))}"
                return f"{self.key} {self.operator.value} ({','.join(sorted(self.values))})"


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All of its requirements together; without any it selects everything, and `nothing` selects nothing at all."""

    requirements: tuple[Requirement, ...] = ()
    nothing: bool = False

    @classmethod
    def parse(cls, text: str) -> "LabelSelector":
        """Read the text of a `labelSelector` query: `app=web,tier in (a,b),!old,new`.

        Raises BadRequest with upstream's words.
        """
        try:
            return cls(_Parser(text).read())
        except ValueError as error:
            raise BadRequest(f"unable to parse requirement: {error}") from None

    @classmethod
    def of(cls, selector: Mapping[str, Any] | None) -> "LabelSelector":
        """Read an object's selector (`matchLabels`, `matchExpressions`); None selects nothing, {} everything.

        Raises Invalid for an operator that does not exist.
        """
        if selector is None:
            return NOTHING
        found = [
            Requirement(key, Operator.IN, frozenset((value,)))
            for key, value in (selector.get("matchLabels") or {}).items()
        ]
        for expression in selector.get("matchExpressions") or ():
            operator = _OF_EXPRESSIONS.get(expression.get("operator", ""))
            if operator is None:
                raise Invalid(f'"{expression.get("operator", "")}" is not a valid label selector operator')
            found.append(Requirement(expression.get("key", ""), operator, frozenset(expression.get("values") or ())))
        return cls(tuple(found))

    @classmethod
    def equal(cls, labels: Mapping[str, str] | None) -> "LabelSelector":
        """Select by plain labels, as a Service or a ReplicationController does; none select nothing."""
        if not labels:
            return NOTHING
        return cls(tuple(Requirement(key, Operator.IN, frozenset((value,))) for key, value in labels.items()))

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        """Say whether labels meet every requirement."""
        if self.nothing:
            return False
        have = labels or {}
        return all(requirement.matches(have) for requirement in self.requirements)

    @property
    def is_everything(self) -> bool:
        """Whether it selects all objects, whatever their labels."""
        return not self.requirements and not self.nothing

    def __str__(self) -> str:
        return ",".join(str(requirement) for requirement in sorted(self.requirements, key=lambda one: one.key))


EVERYTHING = LabelSelector()
NOTHING = LabelSelector(nothing=True)

_SYMBOLS = ("==", "!=", "=", "!", "(", ")", ",", ">", "<")
_BREAKS = "=!(),><"
_SPACES = " \t\r\n"
_END = ""


class _Parser:
    """Reads a selector from left to right, one token ahead; complains by ValueError."""

    def __init__(self, text: str) -> None:
        self._tokens = _cut(text)
        self._at = 0

    def read(self) -> tuple[Requirement, ...]:
        found: list[Requirement] = []
        while True:
            token = self._peek()
            if token == _END:
                return tuple(found)
            if token != "!" and token in _SYMBOLS:
                raise ValueError(f"found '{token}', expected: !, identifier, or 'end of string'")
            found.append(self._requirement())
            token = self._next()
            if token == _END:
                return tuple(found)
            if token != ",":
                raise ValueError(f"found '{token}', expected: ',' or 'end of string'")
            after = self._peek()
            if after != "!" and (after == _END or after in _SYMBOLS):
                raise ValueError(f"found '{after}', expected: identifier after ','")

    def _requirement(self) -> Requirement:
        absent = self._peek() == "!"
        if absent:
            self._next()
        key = self._next()
        if key == _END or key in _SYMBOLS:
            raise ValueError(f"found '{key}', expected: identifier")
        wrong = names.qualified_name(key)
        if wrong:
            raise ValueError(f'<nil>: Invalid value: "{key}": ' + "; ".join(wrong))
        if absent:
            return Requirement(key, Operator.ABSENT)
        if self._peek() in (_END, ","):
            return Requirement(key, Operator.EXISTS)
        return self._compared(key)

    def _compared(self, key: str) -> Requirement:
        sign = self._next()
        if sign in ("in", "notin"):
            values = self._values()
            operator = Operator.IN if sign == "in" else Operator.NOT_IN
        elif sign in ("=", "==", "!="):
            values = frozenset((self._value(),))
            operator = Operator.NOT_IN if sign == "!=" else Operator.IN
        elif sign in (">", "<"):
            value = self._value()
            if _integer(value) is None:
                raise ValueError(
                    f'values[0][{key}]: Invalid value: "{value}": '
                    "for 'Gt', 'Lt' operators, the value must be an integer"
                )
            return Requirement(key, Operator.GREATER if sign == ">" else Operator.LESS, frozenset((value,)))
        else:
            raise ValueError(f"found '{sign}', expected: in, notin, =, ==, !=, gt, lt")
        for value in sorted(values):
            wrong = names.label_value(value)
            if wrong:
                raise ValueError(f'values[0][{key}]: Invalid value: "{value}": ' + "; ".join(wrong))
        return Requirement(key, operator, values)

    def _value(self) -> str:
        token = self._peek()
        if token in (_END, ","):
            return ""
        if token in _SYMBOLS:
            raise ValueError(f"found '{token}', expected: identifier")
        return self._next()

    def _values(self) -> frozenset[str]:
        token = self._next()
        if token != "(":
            raise ValueError(f"found '{token}', expected: '('")
        values: list[str] = []
        while True:
            token = self._peek()
            if token in (",", ")"):
                values.append("")
            elif token == _END or token in _SYMBOLS:
                raise ValueError(f"found '{token}', expected: ',', ')' or identifier")
            else:
                values.append(self._next())
            token = self._next()
            if token == ")":
                return frozenset(values)
            if token != ",":
                raise ValueError(f"found '{token}', expected: ',' or ')'")

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else _END

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token


def _cut(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(text):
        if text[at] in _SPACES:
            at += 1
            continue
        symbol = next((sign for sign in _SYMBOLS if text.startswith(sign, at)), None)
        if symbol is not None:
            tokens.append(symbol)
            at += len(symbol)
            continue
        end = at
        while end < len(text) and text[end] not in _BREAKS and text[end] not in _SPACES:
            end += 1
        tokens.append(text[at:end])
        at = end
    return tokens


def _integer(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class FieldCondition:
    """One field, equal or not equal to a value."""

    field: str
    value: str
    equal: bool = True


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """All of its conditions together; without any it selects everything."""

    conditions: tuple[FieldCondition, ...] = ()

    @classmethod
    def parse(cls, text: str, fields: Sequence[str] | None = None) -> "FieldSelector":
        r"""Read `metadata.name=web,status.phase!=Running`; `\,`, `\=` and `\\` stand for themselves in a value.

        With `fields` (see `fields.supported`) any other field is refused. Raises BadRequest.
        """
        found: list[FieldCondition] = []
        for term in _terms(text):
            if not term:
                continue
            condition = _condition(term)
            if condition is None:
                raise BadRequest(f"invalid selector: '{text}'; can't understand '{term}'")
            if fields is not None and condition.field not in fields:
                raise BadRequest(_unsupported(condition.field, fields))
            found.append(condition)
        return cls(tuple(found))

    def matches(self, get: Callable[[str], str]) -> bool:
        """Say whether an object meets every condition; `get` gives the text of a field ("" when it is not set)."""
        return all((get(one.field) == one.value) is one.equal for one in self.conditions)

    def exact(self, field: str) -> str | None:
        """The value that a field must equal (`metadata.name`), or None when the selector does not say."""
        return next((one.value for one in self.conditions if one.field == field and one.equal), None)

    def __str__(self) -> str:
        return ",".join(f"{one.field}{'=' if one.equal else '!='}{_escape(one.value)}" for one in self.conditions)


def _unsupported(field: str, fields: Sequence[str]) -> str:
    if tuple(fields) == ("metadata.name", "metadata.namespace"):
        return f'"{field}" is not a known field selector: only "metadata.name", "metadata.namespace"'
    return f"field label not supported: {field}"


def _terms(text: str) -> list[str]:
    terms: list[str] = [""]
    at = 0
    while at < len(text):
        if text[at] == "\\" and at + 1 < len(text):
            terms[-1] += text[at : at + 2]
            at += 2
            continue
        if text[at] == ",":
            terms.append("")
        else:
            terms[-1] += text[at]
        at += 1
    return terms


def _condition(term: str) -> FieldCondition | None:
    for at in range(len(term)):
        for sign in ("!=", "==", "="):
            if term.startswith(sign, at):
                return FieldCondition(term[:at], _unescape(term[at + len(sign) :]), sign != "!=")
    return None


def _unescape(text: str) -> str:
    plain: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == "\\":
            if at + 1 == len(text) or text[at + 1] not in "\\,=":
                raise BadRequest(f"invalid field selector: invalid escape sequence in '{text}'")
            at += 1
        elif text[at] in ",=":
            raise BadRequest(f"invalid field selector: unescaped character in value '{text}'")
        plain.append(text[at])
        at += 1
    return "".join(plain)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")
