"""What an operator can set about the API server, in one value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wherry import KUBERNETES_VERSION


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one API server; every server of a cluster has the same.

    `advertise` are the (address, port) pairs at which pods reach the API; `node_ports` is (first, last), inclusive.
    `toleration_s` is how long a pod without own tolerations stays on a node that is not ready or unreachable: upstream's
    300, a few in the `fast-failover` profile, None for no such tolerations. `event_life_s` is how long an Event is kept
    after it was last written, in cluster time; `event_window` how many changes of each kind watches can go back;
    `request_s` how long anything but a stream may take, in machine time.
    """

    service_cidr: str = "10.96.0.0/16"
    node_ports: tuple[int, int] = (30000, 32767)
    advertise: Sequence[tuple[str, int]] = ()
    toleration_s: int | None = 300
    issuer: str = "https://kubernetes.default.svc.cluster.local"
    audiences: Sequence[str] = ()
    cluster_domain: str = "cluster.local"
    version: str = KUBERNETES_VERSION
    body_bytes: int = 3 * 1024 * 1024
    event_window: int = 4096
    bookmark_s: float = 60.0
    event_life_s: float = 3600.0
    request_s: float = 60.0

    @property
    def api_audiences(self) -> Sequence[str]:
        """The audiences of tokens that this API takes; the issuer when none are set."""
        return self.audiences or (self.issuer,)


@dataclass(frozen=True, slots=True)
class Audit:
    """One finished request: who asked for what, and what came of it. `seconds` is machine time."""

    time: float
    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    path: str
    code: int
    seconds: float


AuditSink = Callable[[Audit], None]
Check = Callable[[], str]
"""A health check: says what is wrong, or nothing ("")."""
Checks = Mapping[str, Check]
