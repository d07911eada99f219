"""Which objects a list, a watch or a deletion of a collection means, and the query options that say so."""

from collections.abc import Callable
from dataclasses import dataclass

from wherry.api.cache import Item
from wherry.api.errors import invalid
from wherry.errors import BadRequest, Cause
from wherry.model import fields
from wherry.model.kinds import Kind
from wherry.model.selectors import FieldSelector, LabelSelector
from wherry.wire.http import Request


@dataclass(frozen=True, slots=True)
class Selection:
    """A prefix of keys, with selectors of labels and fields."""

    kind: Kind
    prefix: str
    labels: LabelSelector
    fields: FieldSelector

    @property
    def everything(self) -> bool:
        """Whether it takes all that is under its prefix."""
        return not self.fields.conditions and self.labels.is_everything

    def matches(self, item: Item) -> bool:
        """Say whether an object under the prefix is meant."""
        if not self.labels.is_everything and not self.labels.matches(item.labels):
            return False
        if not self.fields.conditions:
            return True
        return self.fields.matches(_getter(self.kind, item))


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a list or a watch, checked. `version` is "" or a decimal; `limit` 0 for none."""

    version: str = ""
    match: str = ""
    limit: int = 0
    token: str = ""
    timeout_s: float | None = None
    bookmarks: bool = False
    initial: bool | None = None


def selection_of(kind: Kind, namespace: str, name: str, request: Request) -> Selection:
    """Read the selectors of a request. Raises BadRequest for those that cannot be read, or name no selectable field."""
    labels = LabelSelector.parse(request.first("labelSelector") or "")
    chosen = FieldSelector.parse(request.first("fieldSelector") or "", fields.supported(kind))
    if name:
        chosen = FieldSelector((*chosen.conditions, *FieldSelector.parse(f"metadata.name={name}").conditions))
    return Selection(kind, kind.prefix(namespace), labels, chosen)


def options_of(request: Request, *, watch: bool) -> Options:
    """Read the options of a list or a watch. Raises BadRequest and Invalid as upstream does.

    Source: Kubernetes API concepts, "Resource versions"; apimachinery, ValidateListOptions.
    """
    first = request.first
    options = Options(
        version=version_of(first("resourceVersion") or ""),
        match=first("resourceVersionMatch") or "",
        limit=_number("limit", first("limit")),
        token=first("continue") or "",
        timeout_s=float(_number("timeoutSeconds", first("timeoutSeconds"))) or None,
        bookmarks=flag(request, "allowWatchBookmarks"),
        initial=None if first("sendInitialEvents") is None else flag(request, "sendInitialEvents"),
    )
    causes = _watch_causes(options) if watch else _list_causes(options)
    if causes:
        raise invalid("ListOptions", "meta.k8s.io", "", causes)
    return options


def flag(request: Request, name: str) -> bool:
    """A boolean query option; present without a value is true."""
    value = request.first(name)
    if value is None:
        return False
    if value.lower() in ("", "1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise BadRequest(f"{name}={value!r}: write true or false")


def _list_causes(options: Options) -> list[Cause]:
    causes: list[Cause] = []
    if options.initial is not None:
        causes.append(_forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    if options.match:
        field = "resourceVersionMatch"
        if options.token:
            causes.append(_forbidden(field, "resourceVersionMatch is forbidden when continue is provided"))
        elif not options.version:
            causes.append(_forbidden(field, "resourceVersionMatch is forbidden unless resourceVersion is provided"))
        if options.match not in ("Exact", "NotOlderThan"):
            causes.append(_unsupported(field, options.match))
        elif options.match == "Exact" and options.version == "0":
            causes.append(_forbidden(field, 'resourceVersionMatch "Exact" is forbidden for resourceVersion "0"'))
    return causes


def _watch_causes(options: Options) -> list[Cause]:
    field = "resourceVersionMatch"
    if options.initial is None:
        if options.match:
            return [
                _forbidden(field, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
            ]
        return []
    if not options.match:
        return [_forbidden(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")]
    if options.match != "NotOlderThan":
        return [_unsupported(field, options.match, "NotOlderThan")]
    return []


def _forbidden(field: str, message: str) -> Cause:
    return Cause(field, "FieldValueForbidden", f"Forbidden: {message}")


def _unsupported(field: str, value: str, *supported: str) -> Cause:
    words = ", ".join(f'"{word}"' for word in supported or ("Exact", "NotOlderThan"))
    return Cause(field, "FieldValueNotSupported", f'Unsupported value: "{value}": supported values: {words}')


def version_of(text: str) -> str:
    """Check the text of a resourceVersion: "" or a decimal. Raises BadRequest."""
    if text and not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadRequest(f'resourceVersion: Invalid value: "{text}": write the decimal number that an answer had')
    return text


def _number(name: str, text: str | None) -> int:
    if not text:
        return 0
    try:
        number = int(text)
    except ValueError:
        raise BadRequest(f"{name}={text!r}: write a number") from None
    if number < 0:
        raise BadRequest(f"{name}={text!r}: write 0 or more")
    return number


def _getter(kind: Kind, item: Item) -> Callable[[str], str]:
    def get(field: str) -> str:
        if field == "metadata.name":
            return item.meta.name
        if field == "metadata.namespace":
            return item.meta.namespace
        return item.fields(kind).get(field, "")

    return get
