"""Events: what a part tells people about an object, written in the background and counted when it repeats."""

import asyncio
import logging
import random
from collections import OrderedDict
from dataclasses import dataclass

from wherry.client.objects import Meta
from wherry.client.protocol import Client, Json
from wherry.clock import Clock, rfc3339
from wherry.errors import NotFound, WherryError
from wherry.model.kinds import EVENTS, Kind

log = logging.getLogger(__name__)

LINE = 1000  # events that may wait to be written; more are dropped, oldest first
REMEMBERED = 4096  # different events whose repetitions are counted
MESSAGE = 1024  # characters of a message, as the API takes them
BURST, REFILL_S = 25, 300.0  # events about one object by one part at once; one more each so many cluster seconds


@dataclass(frozen=True, slots=True)
class About:
    """The object that an event is about."""

    kind: Kind
    namespace: str
    name: str
    uid: str = ""
    version: str = ""
    field: str = ""

    @classmethod
    def of(cls, kind: Kind, meta: Meta, field: str = "") -> "About":
        """An object by its metadata; `field` is a part of it, such as `spec.containers{web}`."""
        return cls(kind, meta.namespace, meta.name, meta.uid, meta.resource_version, field)


@dataclass(slots=True)
class _Known:
    name: str
    namespace: str
    count: int
    first: str


@dataclass(slots=True)
class _Allowance:
    left: float
    at: float


@dataclass(frozen=True, slots=True)
class _Said:
    about: About
    type: str
    reason: str
    message: str
    time: float


class Recorder:
    """Writes events as one part (`component`, on `host`). `event` never waits and never fails; enter it to start.

    The same words about the same object raise the count of the event that is there. About one object at most 25
    events come at once and one more each 300 s, so that a loop somewhere does not fill the store.
    """

    def __init__(self, client: Client, clock: Clock, component: str, host: str = "") -> None:
        self._client, self._clock = client, clock
        self._component, self._host = component, host
        self._line: asyncio.Queue[_Said] = asyncio.Queue(LINE)
        self._known: OrderedDict[tuple[str, str, str, str, str], _Known] = OrderedDict()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def event(self, about: About, reason: str, message: str, *, warning: bool = False) -> None:
        """Say something about an object: `reason` is a stable CamelCase code, `message` a sentence."""
        now = self._clock.now()
        if not self._allowed(f"{about.kind.kind}/{about.namespace}/{about.name}/{about.uid}", now):
            return
        said = _Said(about, "Warning" if warning else "Normal", reason, message[:MESSAGE], now)
        if self._line.full():
            self._line.get_nowait()
            self._line.task_done()
            log.debug("%s: too many events wait; the oldest is dropped", self._component)
        self._line.put_nowait(said)

    async def flush(self) -> None:
        """Wait until all that was said is written or has failed."""
        await self._line.join()

    async def __aenter__(self) -> "Recorder":
        self._task = asyncio.create_task(self._run(), name=f"events:{self._component}")
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            said = await self._line.get()
            try:
                await self._write(said)
            except WherryError as error:
                log.debug("%s: event %s about %s not written: %s", self._component, said.reason, said.about.name, error)
            except Exception:
                log.exception("%s: event %s about %s not written", self._component, said.reason, said.about.name)
            finally:
                self._line.task_done()

    async def _write(self, said: _Said) -> None:
        about = said.about
        key = (about.uid or about.name, about.field, said.type, said.reason, said.message)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            known.count += 1
            seen: Json = {"count": known.count, "lastTimestamp": rfc3339(said.time)}
            try:
                await self._client.patch(EVENTS, known.name, known.namespace, seen)
                return
            except NotFound:
                del self._known[key]  # it was cleaned up meanwhile: say it anew
        body = self._body(said)
        await self._client.create(EVENTS, body, body["metadata"]["namespace"])
        meta = body["metadata"]
        self._known[key] = _Known(meta["name"], meta["namespace"], 1, body["firstTimestamp"])
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _body(self, said: _Said) -> Json:
        about = said.about
        involved = {
            "apiVersion": about.kind.api_version,
            "kind": about.kind.kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
            "resourceVersion": about.version,
            "fieldPath": about.field,
        }
        time = rfc3339(said.time)
        namespace = about.namespace or "default"
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {
                "name": f"{about.name}.{random.getrandbits(64):016x}",
                "namespace": namespace,
            },
            "involvedObject": {field: value for field, value in involved.items() if value},
            "type": said.type,
            "reason": said.reason,
            "message": said.message,
            "source": {"component": self._component} | ({"host": self._host} if self._host else {}),
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
        }

    def _allowed(self, key: str, now: float) -> bool:
        allowance = self._allowances.setdefault(key, _Allowance(BURST, now))
        self._allowances.move_to_end(key)
        allowance.left = min(BURST, allowance.left + (now - allowance.at) / REFILL_S)
        allowance.at = now
        while len(self._allowances) > REMEMBERED:
            self._allowances.popitem(last=False)
        if allowance.left < 1:
            return False
        allowance.left -= 1
        return True
