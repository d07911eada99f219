"""Taints of nodes and tolerations of pods: who may be where, and for how long. Pure."""

from collections.abc import Iterable, Sequence

from wherry.client.objects import Projected

NO_SCHEDULE = "NoSchedule"
PREFER_NO_SCHEDULE = "PreferNoSchedule"
NO_EXECUTE = "NoExecute"

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"


class Taint(Projected, frozen=True):
    """One entry of a node's spec.taints."""

    key: str
    effect: str
    value: str = ""
    time_added: str | None = None

    def __str__(self) -> str:
        """As messages have it: `key: value`; the value is empty more often than not."""
        return f"{{{self.key}: {self.value}}}"


class Toleration(Projected, frozen=True):
    """One entry of a pod's spec.tolerations. No key with operator Exists tolerates all; no effect means every effect."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None

    def tolerates(self, taint: Taint) -> bool:
        """Say whether this toleration covers `taint`. Source: Kubernetes, "Taints and Tolerations"."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.key != taint.key and not (self.key == "" and self.operator == "Exists"):
            return False
        return self.operator == "Exists" or (self.operator in ("", "Equal") and self.value == taint.value)


def untolerated(taints: Iterable[Taint], tolerations: Sequence[Toleration], effects: Sequence[str]) -> Taint | None:
    """Find the first taint with one of `effects` that no toleration covers; None if there is none."""
    for taint in taints:
        if taint.effect in effects and not any(toleration.tolerates(taint) for toleration in tolerations):
            return taint
    return None
