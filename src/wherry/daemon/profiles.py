"""Profiles: named sets of times that trade safety of slow networks against speed of recovery. The default is upstream's."""

from dataclasses import dataclass

from wherry.daemon.instance import Profile


@dataclass(frozen=True, slots=True)
class Times:
    """Cluster seconds. `fence_s` (0: never): the warden ends all processes of a node whose agent was silent this long."""

    lease_s: int
    renew_s: float
    toleration_s: int
    fence_s: float


TIMES: dict[Profile, Times] = {
    "default": Times(lease_s=40, renew_s=10.0, toleration_s=300, fence_s=0.0),
    "fast-failover": Times(lease_s=4, renew_s=1.0, toleration_s=1, fence_s=3.5),
}
"""Fast: a node is lost after 4 s; the fence must act before that, so that no pod runs twice."""
