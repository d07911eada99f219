"""What an operator can set about the controllers, in one value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of all controllers; times in cluster seconds. The defaults are upstream's (profile `default`).

    `node_grace_s`: how long a node's lease may go unrenewed before the node counts as lost.
    `fenced_eviction`: delete and force-delete the pods of a lost node as soon as its fence has cut them off.
    `vanished_grace_s`: how long a node may be missing before the pods bound to it are removed.
    `finished_pods`: how many finished pods are kept. `root_ca`: PEM given to every namespace; "" gives none.
    """

    profile: str = "default"
    node_grace_s: float = 40.0
    fenced_eviction: bool = False
    fence_margin_s: float = 0.5
    vanished_grace_s: float = 40.0
    finished_pods: int = 12_500
    root_ca: str = ""

    @classmethod
    def fast_failover(cls, root_ca: str = "") -> "Settings":
        """The profile `fast-failover`: nodes are lost after 4 s, pods that are surely cut off are replaced at once."""
        return cls(
            profile="fast-failover", node_grace_s=4.0, fenced_eviction=True, vanished_grace_s=10.0, root_ca=root_ca
        )
