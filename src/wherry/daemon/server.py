"""The roles `server` and `registry`: the store, the API, controllers, scheduler and history; and images for the cluster."""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from wherry.api.pki import Authority
from wherry.api.server import Api
from wherry.api.settings import Settings as ApiSettings
from wherry.client.api import ApiClient
from wherry.client.protocol import Client
from wherry.client.transports import LocalTransport
from wherry.clock import Clock
from wherry.controllers.runner import Controllers
from wherry.controllers.settings import Settings as ControllerSettings
from wherry.daemon.certificates import Certificates, write_private
from wherry.daemon.forks import forker, permit
from wherry.daemon.instance import Instance, Plan
from wherry.daemon.phases import unmarked
from wherry.daemon.profiles import TIMES
from wherry.errors import NotFound, Unavailable
from wherry.history.archive import Archive
from wherry.history.routes import routes as history_routes
from wherry.model.users import User
from wherry.scheduler.scheduler import Scheduler
from wherry.store.compaction import keep_compacted
from wherry.store.sqlite import SqliteStore
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.http import Request, Response
from wherry.wire.proxy import forward
from wherry.wire.server import Server

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers: its API, in process too."""

    api: Api
    store: SqliteStore
    archive: Archive
    scheduler: Scheduler

    def client(self, user: User) -> Client:
        """A client in this process that acts as `user`."""
        return ApiClient(LocalTransport(self.api.serve, user))


@asynccontextmanager
async def server_role(
    instance: Instance, plan: Plan, clock: Clock, *, mark: Callable[[str], None] = unmarked
) -> AsyncGenerator[RunningServer]:
    """Run the API server of an instance: it listens on its unix socket and, by TLS, on its port.

    Everything it keeps is below `instance.server`; it needs no root. Pods reach it at the gateway of each node.
    """
    times = TIMES[plan.profile]
    async with AsyncExitStack() as stack:
        store, authority = await asyncio.gather(  # keys are made while the store's files are synced
            SqliteStore.open(instance.server / "store", clock=clock, durability=plan.durability),
            asyncio.to_thread(Authority.load_or_create, instance.server / "pki", clock),
        )
        stack.push_async_callback(store.close)
        mark("store and keys")
        gateways = [each.address for each in plan.nodes if each.real and each.address]
        settings = ApiSettings(
            service_cidr=plan.service_cidr,
            advertise=[(address, plan.api_port) for address in gateways[:1]],
            toleration_s=times.toleration_s,
        )
        archive = await Archive.open(instance.server / "history", store, clock=clock)
        stack.push_async_callback(archive.close)
        mark("history")
        api = Api(
            store,
            clock=clock,
            authority=authority,
            settings=settings,
            nodes=NodeConnector(instance),
            extra=history_routes(archive, permit=lambda *ask: permit(api)(*ask), fork=forker(instance, store)),
        )
        await api.start()
        stack.push_async_callback(api.close)
        mark("api")
        running = RunningServer(api, store, archive, Scheduler(_client(api, "system:kube-scheduler"), clock=clock))
        server = Server(api.handle, on_error=api.fail)
        stack.push_async_callback(server.close, 2.0)
        instance.api_socket.parent.mkdir(parents=True, exist_ok=True)
        await server.start_unix(instance.api_socket, mode=0o660)
        renewal = await _listen_tls(server, instance, plan, authority, gateways)
        stack.push_async_callback(_end, renewal)
        mark("listen")
        await stack.enter_async_context(running.scheduler)
        mark("scheduler")
        await stack.enter_async_context(_controllers(api, plan, authority, clock))
        mark("controllers")
        await stack.enter_async_context(archive)
        compaction = asyncio.create_task(keep_compacted(store, read_until=lambda: archive.position), name="compaction")
        stack.push_async_callback(_end, compaction)
        yield running


def _client(api: Api, name: str, groups: tuple[str, ...] = ("system:authenticated",)) -> Client:
    return ApiClient(LocalTransport(api.serve, User(name, groups)))


def _controllers(api: Api, plan: Plan, authority: Authority, clock: Clock) -> Controllers:
    pem = authority.ca_pem.decode()
    fast = plan.profile == "fast-failover"
    settings = ControllerSettings.fast_failover(pem) if fast else ControllerSettings(root_ca=pem)
    return Controllers(lambda user: ApiClient(LocalTransport(api.serve, user)), clock=clock, settings=settings)


async def _listen_tls(
    server: Server, instance: Instance, plan: Plan, authority: Authority, gateways: list[str]
) -> asyncio.Task[None]:
    """Listen on loopback and on the first node's address, which may come later (freebind); return who renews."""
    first_service = _first_address(plan.service_cidr)
    names = [
        "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local", "127.0.0.1", "::1", first_service, *gateways,
    ]  # fmt: skip

    certificates = Certificates(instance, authority, plan.api_port, names)
    context = await certificates.start()
    for host in ("127.0.0.1", *gateways[:1]):
        await server.start_tcp(host, plan.api_port, ssl_context=context, freebind=True)
    return asyncio.create_task(certificates.keep(context), name="certificates")


def _first_address(cidr: str) -> str:
    import ipaddress

    return str(ipaddress.ip_network(cidr)[1])


class NodeConnector:
    """Sends a request to a node's agent, by the socket that the instance gives each node's name; never by what a Node says."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._clients: dict[str, HttpClient] = {}

    async def __call__(self, node: str, request: Request) -> Response:
        """Pass a request on. Raises NotFound for a node that is not of this instance, Unavailable when it is away."""
        if "/" in node or node in ("", ".", ".."):
            raise NotFound(f"node {node!r}: no such node")
        socket = self._instance.agent_socket(node)
        if not socket.exists():
            raise Unavailable(f"node {node}: its agent is not there ({socket.name} is missing)")
        client = self._clients.get(node)
        if client is None:
            client = self._clients[node] = HttpClient(Endpoint.parse(f"unix:{socket}"))
        return await forward(request, client)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def registry_role(instance: Instance, plan: Plan, clock: Clock) -> AsyncGenerator[None]:
    """Run the cluster's registry: on its unix socket, where local roles may write, and on loopback, where a token is asked."""
    from wherry.content.local import LocalContent
    from wherry.registry.access import trust_local
    from wherry.registry.keeping import keep
    from wherry.registry.service import Registry

    token_file = instance.server / "registry-token"
    make_token(token_file)
    content = LocalContent.open(instance.content, clock=clock)
    registry = Registry(
        content, instance.server / "registry", clock=clock, token_file=token_file, trusted=trust_local(0, os.geteuid())
    )
    await registry.start()
    server = Server(registry.handle)
    instance.registry_socket.parent.mkdir(parents=True, exist_ok=True)
    await server.start_unix(instance.registry_socket, mode=0o660)
    await server.start_tcp("127.0.0.1", plan.registry_port)
    keeping = asyncio.create_task(keep(registry, clock), name="registry-keeping")
    try:
        yield
    finally:
        await _end(keeping)
        await server.close(2.0)
        await registry.close()
        await content.close()


def make_token(path: Path) -> None:
    """Make the secret that a person signs in to the registry with; once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, secrets.token_urlsafe(24))
