"""The node itself as an API object: it registers, says what it has, and renews its lease."""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wherry import KUBERNETES_VERSION
from wherry.client.protocol import Client
from wherry.clock import Clock, rfc3339, rfc3339_micro
from wherry.errors import AlreadyExists, Conflict, NotFound, WherryError
from wherry.model.kinds import LEASES, NODES

log = logging.getLogger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
STATUS_EVERY_S = 300.0


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node says of itself. `capacity` holds quantities (cpu, memory, pods, ephemeral-storage)."""

    name: str
    address: str
    pod_cidr: str
    capacity: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    info: Mapping[str, str] = field(default_factory=dict[str, str])
    agent_port: int = 0


class Registration:
    """Keeps the Node object and its Lease true."""

    def __init__(
        self, client: Client, facts: NodeFacts, *, clock: Clock, lease_s: int, renew_s: float,
        renewed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._client = client
        self._facts = facts
        self._clock = clock
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._renewed = renewed

    async def register(self) -> None:
        """Create the Node, or take it over, and report its status. Raises what the API says."""
        facts = self._facts
        labels = {
            "kubernetes.io/hostname": facts.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": facts.info.get("architecture", "amd64"),
            **facts.labels,
        }
        spec = {"podCIDR": facts.pod_cidr, "podCIDRs": [facts.pod_cidr]} if facts.pod_cidr else {}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": facts.name, "labels": labels}, "spec": spec}
        try:
            await self._client.create(NODES, {**body, "status": self.status()})
        except AlreadyExists:
            await self._client.patch(NODES, facts.name, "", {"metadata": {"labels": labels}, "spec": spec})
        await self.report()

    async def report(self) -> None:
        """Write the whole status."""
        await self._client.patch(
            NODES, self._facts.name, "", {"status": self.status()}, subresource="status", type="strategic"
        )

    def status(self) -> dict[str, Any]:
        """The status as of now."""
        facts, now = self._facts, rfc3339(self._clock.now())
        pressures = [
            ("MemoryPressure", "KubeletHasSufficientMemory", "the node has sufficient memory available"),
            ("DiskPressure", "KubeletHasNoDiskPressure", "the node has no disk pressure"),
            ("PIDPressure", "KubeletHasSufficientPID", "the node has sufficient PID available"),
        ]
        times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
        conditions = [{"type": t, "status": "False", "reason": r, "message": m, **times} for t, r, m in pressures]
        conditions.append(
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the node runs pods", **times}
        )
        return {
            "capacity": dict(facts.capacity),
            "allocatable": dict(facts.capacity),
            "addresses": [
                {"type": "InternalIP", "address": facts.address},
                {"type": "Hostname", "address": facts.name},
            ],
            "conditions": conditions,
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
                "containerRuntimeVersion": "wherry://0.1.0", "kubeletVersion": KUBERNETES_VERSION,
                "kubeProxyVersion": KUBERNETES_VERSION, "operatingSystem": "linux", "architecture": "amd64",
                **facts.info,
            },
            **({"daemonEndpoints": {"kubeletEndpoint": {"Port": facts.agent_port}}} if facts.agent_port else {}),
        }  # fmt: skip

    async def run(self) -> None:
        """Renew the lease until cancelled; register again when the Node was deleted, report again after an absence."""
        last_renewed = self._clock.now()
        last_report = last_renewed
        failures = 0
        while True:
            try:
                await self.renew()
                now = self._clock.now()
                self._renewed()
                if now - last_renewed > self._lease_s / 2 or now - last_report > STATUS_EVERY_S or failures:
                    await self._report_again()
                    last_report = now
                last_renewed = now
                failures = 0
            except WherryError as error:
                failures += 1
                log.warning("node %s: lease not renewed: %s", self._facts.name, error.message)
            pause_s = self._renew_s if not failures else min(self._renew_s, 0.2 * 2 ** min(failures, 6))
            await self._clock.sleep(pause_s * random.uniform(0.9, 1.1))

    async def _report_again(self) -> None:
        try:
            await self.report()
        except NotFound:
            await self.register()

    async def renew(self) -> None:
        """Write the lease's renewTime."""
        name = self._facts.name
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": self._lease_s,
            "renewTime": rfc3339_micro(self._clock.now()),
        }
        try:
            await self._client.patch(LEASES, name, LEASE_NAMESPACE, {"spec": spec})
        except NotFound:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": LEASE_NAMESPACE},
                "spec": spec,
            }
            try:
                await self._client.create(LEASES, body, LEASE_NAMESPACE)
            except (AlreadyExists, Conflict):
                log.debug("lease %s: made by another at the same time", name)
