"""What a registry does by itself from time to time: it collects, runs the lifecycle rules, prunes the audit log, and notes
what is stored."""

import logging

from wherry.clock import Clock
from wherry.errors import Conflict, WherryError
from wherry.registry.events import prune
from wherry.registry.service import Registry
from wherry.registry.usage import note_stored

COLLECT_S = 3600.0
METER_S = 600.0
log = logging.getLogger(__name__)


async def keep(registry: Registry, clock: Clock, *, collect_s: float = COLLECT_S) -> None:
    """Go on until cancelled. Times are of the cluster's clock."""
    last = clock.now()
    while True:
        await clock.sleep(min(METER_S, collect_s))
        try:
            await note_stored(registry.database, clock.now())
            if clock.now() - last >= collect_s:
                last = clock.now()
                if registry.shared:
                    await registry.reconcile()
                await prune(registry.database, last)
                done = await registry.collector.collect(lifecycle=True)
                if done.blobs or done.manifests:
                    log.info("registry: collected %d blobs, %d bytes", done.blobs, done.bytes)
        except Conflict:
            continue  # somebody runs one by hand
        except WherryError as error:
            log.error("registry: keeping: %s", error.message)
