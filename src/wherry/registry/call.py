"""One call of the distribution protocol: the request, a checked repository name, who asks, and the words of the path."""

from dataclasses import dataclass

from wherry.registry.access import Caller
from wherry.registry.events import Event
from wherry.wire.http import Request


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler gets. Access has been decided. `now` is cluster time."""

    request: Request
    name: str
    caller: Caller
    now: float

    def event(
        self,
        action: str,
        *,
        reference: str = "",
        digest: str = "",
        media_type: str = "",
        size: int = 0,
        detail: str = "",
    ) -> Event:
        """The entry of the audit log for this call."""
        caller = self.caller
        return Event(
            self.now, caller.name, action, self.name, reference, digest, media_type, size, "ok", caller.address, detail
        )
