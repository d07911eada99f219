"""Waiting longer after each failure, and never all at once."""

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Delays that double from `base_s` to `cap_s`; each is cut by a random part of up to a half."""

    base_s: float = 0.05
    cap_s: float = 10.0
    failures: int = 0

    def next_s(self) -> float:
        """Count one failure; say how many seconds to wait."""
        delay_s = delay(self.failures, self.base_s, self.cap_s)
        self.failures += 1
        return delay_s

    def reset(self) -> None:
        """Forget the failures: it worked."""
        self.failures = 0


def delay(failures: int, base_s: float, cap_s: float) -> float:
    """Seconds to wait after `failures` earlier ones: a half to the whole of the doubled base, within the cap."""
    whole_s = min(cap_s, base_s * 2 ** min(failures, 32))
    return whole_s * random.uniform(0.5, 1.0)
