"""Objects between the version at rest and the version of a request; nearly always the same."""

import orjson

from wherry.model.kinds import Kind


def shown(kind: Kind, data: bytes) -> bytes:
    """An object's bytes in the version of `kind`."""
    if not kind.stored_as:
        return data
    from wherry.model import convert

    return orjson.dumps(convert.convert(orjson.loads(data), kind.storage, kind))


def shown_dict(kind: Kind, obj: dict[str, object]) -> dict[str, object]:
    """An object at rest in the version of `kind`."""
    if not kind.stored_as:
        return obj
    from wherry.model import convert

    return convert.convert(obj, kind.storage, kind)


def at_rest(kind: Kind, obj: dict[str, object]) -> dict[str, object]:
    """An object of `kind` in the version at rest."""
    if not kind.stored_as:
        return obj
    from wherry.model import convert

    return convert.convert(obj, kind, kind.storage)
