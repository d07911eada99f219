"""`wherry fork`: a new instance with the objects of this one as they are or were, on simulated nodes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wherry.api.rbac import Ask
from wherry.api.server import Api, caller
from wherry.daemon.instance import Instance
from wherry.errors import Invalid
from wherry.history.routes import Fork, Permit
from wherry.model.kinds import Kind
from wherry.store.sqlite import SqliteStore


def permit(api: Api) -> Permit:
    """Whoever may read a kind now may read how it was."""

    async def check(verb: str, kind: Kind, namespace: str, name: str) -> None:
        ask = Ask(verb=verb, group=kind.group, resource=kind.plural, namespace=namespace, name=name)
        api.core.authorizer.require(caller(), ask)

    return check


def forker(instance: Instance, store: SqliteStore) -> Fork:
    """Fork the store into `server/forks/NAME`; the command then moves it into a root of its own and starts that.

    The server's user may write only below its own directory, so the copy is made there: hard links, no bytes.
    """

    async def fork(revision: int, options: Mapping[str, Any]) -> Mapping[str, Any]:
        name = str(options.get("name") or "")
        if not name.isalnum():
            raise Invalid(f"fork name {name!r}: letters and digits only")
        place: Path = instance.server / "forks" / name
        await store.fork(revision, place)
        return {"path": str(place), "revision": revision or await store.revision()}

    return fork
