"""One write on its way through admission."""

from dataclasses import dataclass
from typing import Any

from wherry.api.bodies import WriteOptions
from wherry.api.core import Core
from wherry.errors import Cause, Forbidden
from wherry.model.kinds import Kind
from wherry.model.users import User
from wherry.store.protocol import Note

Json = dict[str, Any]


@dataclass(slots=True)
class Call:
    """A write: `operation` is CREATE, UPDATE or DELETE; `obj` may be changed in place, `old` (None for CREATE) not."""

    core: Core
    user: User
    operation: str
    kind: Kind
    namespace: str
    name: str
    subresource: str
    obj: Json
    old: Json | None
    options: WriteOptions
    note: Note

    @property
    def spec(self) -> Json:
        """The object's spec, made where it is missing."""
        found = self.obj.get("spec")
        if not isinstance(found, dict):
            found = self.obj["spec"] = {}
        return found


def forbidden(call: Call, message: str, *causes: Cause) -> Forbidden:
    """A refusal in upstream's words: `pods "web" is forbidden: ...`."""
    return Forbidden(f'{call.kind.qualified} "{call.name}" is forbidden: {message}', causes=causes)


def immutable(field: str, value: Any) -> Cause:
    """The cause for a field that may not change."""
    shown = f'"{value}"' if isinstance(value, str) else value
    return Cause(field, "FieldValueInvalid", f"Invalid value: {shown}: field is immutable")
