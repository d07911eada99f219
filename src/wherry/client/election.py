"""One leader among several: a Lease that its holder renews, and that others take when it has run out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from wherry.client.objects import Object, Projected
from wherry.client.protocol import Client, Json
from wherry.clock import Clock, machine, rfc3339_micro
from wherry.errors import AlreadyExists, Conflict, NotFound, WherryError
from wherry.model.kinds import LEASES

log = logging.getLogger(__name__)


RELEASE_S = 2.0  # machine seconds that giving the lease back may take


class LeaseSpec(Projected, frozen=True):
    """spec of a Lease."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(Object, frozen=True):
    """A Lease, as elections and node life cycle read it."""

    spec: LeaseSpec = LeaseSpec()


_LEASE = msgspec.json.Decoder(Lease)


class Election:
    """Stands for election as `identity` for the Lease `name`; all times in cluster seconds.

    A holder that cannot renew for `renew_s` stops working; others wait `lease_s` since they last *saw* it renewed,
    by their own clocks, so that clocks that differ never make two leaders as long as `renew_s` is below `lease_s`.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        identity: str,
        *,
        clock: Clock,
        namespace: str = "kube-system",
        lease_s: float = 15.0,
        renew_s: float = 10.0,
        retry_s: float = 2.0,
    ) -> None:
        self.identity = identity
        self._client, self._clock = client, clock
        self._name, self._namespace = name, namespace
        self._lease_s, self._renew_s, self._retry_s = lease_s, renew_s, retry_s
        self._seen: tuple[LeaseSpec, float] | None = None
        self._leading = False

    @property
    def is_leader(self) -> bool:
        """Whether we hold the Lease, as far as we know."""
        return self._leading

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait to lead, then do `work` while we do; return when it returns. Losing the Lease cancels it: wait anew."""
        while True:
            await self._acquire()
            worker = asyncio.create_task(_do(work), name=f"leader:{self._name}")
            keeper = asyncio.create_task(self._keep(), name=f"lease:{self._name}")
            try:
                await asyncio.wait((worker, keeper), return_when=asyncio.FIRST_COMPLETED)
                ended = worker.done()
                worker.cancel()
                keeper.cancel()
                await asyncio.gather(worker, keeper, return_exceptions=True)
                if ended:
                    worker.result()
                    return
                log.warning("%s: %s no longer leads", self._name, self.identity)
            finally:
                worker.cancel()
                keeper.cancel()
                await asyncio.gather(worker, keeper, return_exceptions=True)
                self._leading = False
                await self._release()  # the work has ended by now, however it came to

    async def _acquire(self) -> None:
        while True:
            try:
                if await self._try():
                    self._leading = True
                    log.info("%s: %s leads", self._name, self.identity)
                    return
            except (Conflict, AlreadyExists):
                pass  # somebody was faster
            except WherryError as error:
                log.debug("%s: cannot stand for election: %s", self._name, error.message)
            await self._clock.sleep(self._retry_s)

    async def _keep(self) -> None:
        """Renew until that has not worked for `renew_s`."""
        renewed = self._clock.now()
        while self._clock.now() - renewed < self._renew_s:
            await self._clock.sleep(self._retry_s)
            try:
                if not await self._try():
                    return
                renewed = self._clock.now()
            except WherryError as error:
                log.debug("%s: cannot renew: %s", self._name, error.message)

    async def _try(self) -> bool:
        """Create, take or renew the Lease; say whether it is ours. Raises Conflict when another was faster."""
        now = self._clock.now()
        try:
            lease = _LEASE.decode(await self._client.get(LEASES, self._name, self._namespace))
        except NotFound:
            await self._client.create(LEASES, self._body(now, now, 0, ""), self._namespace)
            return True
        if self._seen is None or self._seen[0] != lease.spec:
            self._seen = (lease.spec, now)
        holder = lease.spec.holder_identity or ""
        if holder not in ("", self.identity) and now - self._seen[1] < self._lease_s:
            return False
        transitions = (lease.spec.lease_transitions or 0) + (holder != self.identity)
        body = self._body(now, now, transitions, lease.metadata.resource_version)
        if holder == self.identity and lease.spec.acquire_time:
            body["spec"]["acquireTime"] = lease.spec.acquire_time
        await self._client.update(LEASES, body)
        return True

    async def _release(self) -> None:
        """Give the Lease back so that the next leader need not wait; nothing is lost if that fails."""
        try:
            async with machine.timeout(RELEASE_S):
                await self._give_back()
        except (WherryError, TimeoutError) as error:
            log.debug("%s: the lease was not given back: %s", self._name, error)

    async def _give_back(self) -> None:
        lease = _LEASE.decode(await self._client.get(LEASES, self._name, self._namespace))
        if lease.spec.holder_identity == self.identity:
            now = self._clock.now()
            body = self._body(now, now, lease.spec.lease_transitions or 0, lease.metadata.resource_version)
            body["spec"]["holderIdentity"] = ""
            await self._client.update(LEASES, body)

    def _body(self, acquired: float, renewed: float, transitions: int, version: str) -> Json:
        meta: Json = {"name": self._name, "namespace": self._namespace}
        if version:
            meta["resourceVersion"] = version
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": meta,
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": max(1, int(self._lease_s)),
                "acquireTime": rfc3339_micro(acquired),
                "renewTime": rfc3339_micro(renewed),
                "leaseTransitions": transitions,
            },
        }


async def _do(work: Callable[[], Awaitable[None]]) -> None:
    await work()
