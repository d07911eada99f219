"""What an owner can set about a store."""

from dataclasses import dataclass
from typing import Literal

MIB = 1024 * 1024

Durability = Literal["full", "test"]
"""`full`: a write that was answered survives power loss. `test`: it survives our death, not the machine's."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of a store. The defaults suit a cluster of up to a few hundred thousand objects on one machine."""

    roll_bytes: int = 16 * MIB
    """A head log of this size is sealed, and a new one begun."""

    merge_ratio: float = 0.5
    """Sealed logs are merged into a new snapshot when they hold this many times the bytes of the old one (and at
    least `roll_bytes` times it): so the bytes written again stay in proportion to the bytes written."""

    window_events: int = 100_000
    window_bytes: int = 64 * MIB
    """What of the past is kept in memory for `watch` and `list(at=...)`: whichever bound is reached first."""

    watcher_events: int = 10_000
    watcher_bytes: int = 32 * MIB
    """How far a reader of `watch` may fall behind before it gets Expired."""

    queue_writes: int = 20_000
    queue_bytes: int = 64 * MIB
    """Writes that may wait for the disk; more are refused with TooManyRequests."""

    batch_writes: int = 512
    batch_bytes: int = 8 * MIB
    """The most that one commit takes."""

    slice_rows: int = 256
    """Rows that background work copies between two breaths."""

    value_bytes: int = 4 * MIB
    """The largest value."""
