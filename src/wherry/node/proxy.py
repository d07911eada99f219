"""Services and routes as a node sees them: informers in, plain values out to the network."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress

import msgspec

from wherry.client.informer import Informer
from wherry.client.objects import Meta, Projected
from wherry.client.protocol import Client
from wherry.clock import machine
from wherry.errors import WherryError
from wherry.model.kinds import ENDPOINTSLICES, NODES, SERVICES
from wherry.network.types import Port, Service
from wherry.node.plans import service_variables

log = logging.getLogger(__name__)

SERVICE_NAME = "kubernetes.io/service-name"
SETTLE_S = 0.005
"""Changes that come within this time are applied together."""

REPAIR_S = 30.0
DRAIN_MOST_S = 2.0
DRAIN_MARGIN_S = 0.2
"""What other nodes need to take a backend out, and what a request under way needs to end."""


class _ServicePort(Projected, frozen=True):
    port: int
    name: str = ""
    protocol: str = "TCP"
    node_port: int = 0


class _ClientIP(Projected, frozen=True):
    timeout_seconds: int = 10800


class _AffinityConfig(Projected, frozen=True):
    client_ip: _ClientIP = msgspec.field(default=_ClientIP(), name="clientIP")


class _ServiceSpec(Projected, frozen=True):
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: list[str] = msgspec.field(default=[], name="clusterIPs")
    external_ips: list[str] = msgspec.field(default=[], name="externalIPs")
    ports: list[_ServicePort] = []
    type: str = "ClusterIP"
    session_affinity: str = "None"
    session_affinity_config: _AffinityConfig | None = None
    publish_not_ready_addresses: bool = False
    external_name: str = ""


class ServiceView(Projected, frozen=True):
    """A Service."""

    metadata: Meta
    spec: _ServiceSpec = _ServiceSpec()


class _Conditions(Projected, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class _Endpoint(Projected, frozen=True):
    addresses: list[str]
    conditions: _Conditions = _Conditions()
    hostname: str = ""


class _SlicePort(Projected, frozen=True):
    name: str = ""
    protocol: str = "TCP"
    port: int | None = None


class SliceView(Projected, frozen=True):
    """An EndpointSlice."""

    metadata: Meta
    endpoints: list[_Endpoint] | None = None
    ports: list[_SlicePort] | None = None


class _NodeAddress(Projected, frozen=True):
    type: str
    address: str


class _NodeStatus(Projected, frozen=True):
    addresses: list[_NodeAddress] = []


class _NodeSpec(Projected, frozen=True):
    pod_cidr: str = msgspec.field(default="", name="podCIDR")


class NodeView(Projected, frozen=True):
    """A Node."""

    metadata: Meta
    spec: _NodeSpec = _NodeSpec()
    status: _NodeStatus = _NodeStatus()


def is_ready(conditions: _Conditions) -> bool:
    """Whether an endpoint takes new connections; unknown counts as ready."""
    return conditions.ready is not False


def endpoints_of(slices: Iterable[SliceView], port: _ServicePort) -> Sequence[tuple[str, int]]:
    """The backends of one service port: the ready ones, or, when none is, those that serve while they end."""
    ready: set[tuple[str, int]] = set()
    ending: set[tuple[str, int]] = set()
    for each in slices:
        numbers = [
            one.port for one in each.ports or () if one.name == port.name and one.protocol == port.protocol and one.port
        ]
        for endpoint in each.endpoints or ():
            conditions = endpoint.conditions
            places = {(endpoint.addresses[0], number) for number in numbers} if endpoint.addresses else set()
            if is_ready(conditions):
                ready |= places
            elif conditions.terminating and conditions.serving:
                ending |= places
    return sorted(ready or ending)


def service_table(
    services: Iterable[ServiceView], slices: Mapping[tuple[str, str], Sequence[SliceView]]
) -> list[Service]:
    """The kernel's table for all services that have an address of their own."""
    result: list[Service] = []
    for each in services:
        spec = each.spec
        addresses = [one for one in (spec.cluster_ips or [spec.cluster_ip]) if one and one != "None"]
        if not addresses or spec.type == "ExternalName":
            continue
        affinity_s = 0
        if spec.session_affinity == "ClientIP":
            config = spec.session_affinity_config or _AffinityConfig()
            affinity_s = config.client_ip.timeout_seconds
        mine = slices.get((each.metadata.namespace, each.metadata.name), ())
        ports = [Port(one.protocol, one.port, endpoints_of(mine, one), one.node_port) for one in spec.ports]
        key = f"{each.metadata.namespace}/{each.metadata.name}"
        result.append(Service(key, [*addresses, *spec.external_ips], ports, affinity_s))
    return sorted(result, key=lambda service: service.key)


class ServiceProxy:
    """Keeps the machine's service table, DNS and routes as the API says. Enter it to start.

    `table(services)` gets the kernel's table; `names(services, slices)` the same views for DNS; `routes({pod CIDR: node
    address})` the other nodes. A call that fails is made again, later each time.
    """

    def __init__(
        self,
        client: Client,
        node: str,
        *,
        table: Callable[[Sequence[Service]], Awaitable[None]],
        names: Callable[[Sequence[ServiceView], Mapping[tuple[str, str], Sequence[SliceView]]], None],
        routes: Callable[[Mapping[str, str]], Awaitable[None]],
    ) -> None:
        self._node = node
        self._table, self._names, self._routes = table, names, routes
        self._services = Informer(client, SERVICES, ServiceView)
        self._slices = Informer(client, ENDPOINTSLICES, SliceView)
        self._nodes = Informer(client, NODES, NodeView)
        self._dirty = asyncio.Event()
        self._stack = AsyncExitStack()
        self._backends: frozenset[str] = frozenset()
        self._drains: set[asyncio.Event] = set()
        self.applied = asyncio.Event()

    async def __aenter__(self) -> "ServiceProxy":
        await self._stack.__aenter__()
        for informer in (self._services, self._slices, self._nodes):
            await self._stack.enter_async_context(informer)
        self._services.on_change(self._changed)
        self._slices.on_change(self._changed)
        self._nodes.on_change(self._node_changed)
        task = asyncio.create_task(self._run(), name=f"services:{self._node}")
        self._stack.push_async_callback(_end, task)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def variables(self, namespace: str) -> Sequence[tuple[str, str]]:
        """The variables that pods of a namespace get: of its services, and of the API's."""
        views = [each for each in self._services.list() if each.metadata.namespace == namespace]
        api = self._services.get("kubernetes", "default")
        if api is not None and namespace != "default":
            views.append(api)
        return service_variables(
            [
                (each.metadata.name, each.spec.cluster_ip, [(one.name, one.port) for one in each.spec.ports])
                for each in views
                if each.spec.cluster_ip not in ("", "None")
            ]
        )

    async def drained(self, address: str, *, timeout_s: float = DRAIN_MOST_S) -> None:
        """Return when no service of this machine leads to `address` any more, and a moment for the others' sake.

        A pod that is to end gets its stop signal after this, so that no new connection meets a closed door.
        """
        if address not in self._backends:
            return
        changed = asyncio.Event()
        self._drains.add(changed)
        try:
            async with machine.timeout(timeout_s):
                while address in self._backends:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            log.debug("%s is still a backend after %g s", address, timeout_s)
        finally:
            self._drains.discard(changed)
        await machine.sleep(DRAIN_MARGIN_S)

    def _changed(self, before: object, now: object) -> None:
        self._dirty.set()

    def _node_changed(self, before: NodeView | None, now: NodeView | None) -> None:
        if _route(before) != _route(now):
            self._dirty.set()

    async def _run(self) -> None:
        for informer in (self._services, self._slices, self._nodes):
            await informer.wait_synced(timeout_s=10**9)
        failures = 0
        while True:
            self._dirty.clear()
            try:
                await self._apply()
                failures = 0
                self.applied.set()
            except WherryError as error:
                failures += 1
                log.warning("services of node %s: %s; trying again", self._node, error.message)
            pause_s = REPAIR_S if not failures else min(REPAIR_S, 0.1 * 2.0 ** min(failures, 8))
            with suppress(TimeoutError):
                async with machine.timeout(pause_s):
                    await self._dirty.wait()
            await machine.sleep(SETTLE_S)

    async def _apply(self) -> None:
        slices: dict[tuple[str, str], list[SliceView]] = defaultdict(list)
        for each in self._slices.list():
            if name := each.metadata.labels.get(SERVICE_NAME):
                slices[(each.metadata.namespace, name)].append(each)
        services = self._services.list()
        self._names(services, slices)
        table = service_table(services, slices)
        await self._table(table)
        self._backends = frozenset(address for each in table for port in each.ports for address, _ in port.endpoints)
        for changed in self._drains:
            changed.set()
        routes = [_route(each) for each in self._nodes.list() if each.metadata.name != self._node]
        await self._routes({cidr: address for cidr, address in routes if cidr and address})


def _route(view: NodeView | None) -> tuple[str, str]:
    """A node's pods and the address that leads to them."""
    if view is None:
        return ("", "")
    address = next((each.address for each in view.status.addresses if each.type == "InternalIP"), "")
    return (view.spec.pod_cidr, address)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
