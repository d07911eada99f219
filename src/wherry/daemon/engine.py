"""The role `engine`: containers of this machine, with their part of the network, behind the Docker API."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.clock import Clock
from wherry.content.local import LocalContent
from wherry.daemon import beside
from wherry.daemon.builds import TarBuild
from wherry.daemon.instance import Instance, NodePlan, Plan
from wherry.daemon.phases import unmarked
from wherry.doors.docker.door import DockerDoor
from wherry.engine.local import LocalEngine
from wherry.engine.networks import Networking
from wherry.engine.settings import EngineSettings
from wherry.errors import Invalid
from wherry.host.nftables import Nft
from wherry.network.bridges import Bridges
from wherry.network.claims import Claims
from wherry.network.guard import Guard
from wherry.network.pods import LocalPodNetwork
from wherry.network.ports import Ports
from wherry.network.ranges import Ranges
from wherry.wire.server import Server

if TYPE_CHECKING:
    import ssl

GROUP = "wherry"
"""The group whose members may use the Docker socket, where the administrator made one."""


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine that serves the Docker API."""

    engine: LocalEngine
    network: LocalPodNetwork
    content: LocalContent
    nft: Nft
    guard: Guard
    addresses: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Doorway:
    """Where the Docker API answers beside the node's own socket: more sockets, and one TCP address by TLS.

    `group` owns the sockets; "" is the group `wherry`, where there is one, else root's. `name` is what `docker info` shows.
    """

    sockets: Sequence[Path] = ()
    group: str = ""
    tcp: tuple[str, int] | None = None
    tls: "ssl.SSLContext | None" = None
    name: str = ""


def ranges_of(plan: Plan, node: NodePlan) -> Ranges:
    """The address ranges as this node sees them."""
    return Ranges(plan.pod_cidr, plan.service_cidr, node.pod_cidr)


@asynccontextmanager
async def engine_role(
    instance: Instance,
    plan: Plan,
    node: NodePlan,
    clock: Clock,
    *,
    doorway: Doorway | None = None,
    mark: Callable[[str], None] = unmarked,
) -> AsyncGenerator[RunningEngine]:
    """Run the engine of a node, with its part of the network, behind the Docker API's socket."""
    doorway = doorway or Doorway()
    gid = group_id(doorway.group)
    async with AsyncExitStack() as stack:
        nft = stack.enter_context(Nft())
        guard = await stack.enter_async_context(Guard(nft))
        root, run = instance.node_root(node), instance.node_run(node.name)
        network = LocalPodNetwork(
            instance.id, node.index, ranges_of(plan, node), str(root / "network"), nft, guard
        )  # fmt: skip
        await stack.enter_async_context(network)
        mark("network")
        content = LocalContent.open(instance.node_content(node), clock=clock)
        stack.push_async_callback(content.close)
        settings = EngineSettings(userns_remap=plan.userns_remap)
        if plan.kind == "cluster":
            settings = replace(
                settings,
                cluster_registry=f"unix:{instance.registry_socket}",
                registry_host=f"127.0.0.1:{plan.registry_port}",
                shares_content=not node.apart,
            )
        else:
            settings = replace(settings, beside=lambda domain: beside.endpoint(instance.root, domain))
        engine = LocalEngine(
            root,
            run,
            instance=instance.id,
            node=node.name,
            content=content,
            network=network,
            clock=clock,
            settings=settings,
            networking=Networking(
                instance.id,
                Bridges(instance.id, nft, guard, subnets=Claims(), holder=node.name),
                Ports(instance.id, nft, guard, default_address=plan.publish_address),
                default_subnet=node.pod_cidr,
            ),
        )
        await stack.enter_async_context(engine)
        mark("engine")
        build = TarBuild(engine, content, root / "builder", clock=clock)
        stack.push_async_callback(build.close)
        await build.start()
        door = DockerDoor(engine, build, clock=clock, node=doorway.name or node.name, root=str(root))
        server = Server(door.handle, on_error=door.fail)
        stack.push_async_callback(server.close, 2.0)
        addresses: list[str] = []
        for path in (instance.docker_socket(node.name), *doorway.sockets):
            await server.start_unix(path, mode=0o660, gid=gid)
            addresses.append(f"unix://{path}")
        if doorway.tcp is not None:
            host, port = await server.start_tcp(*doorway.tcp, ssl_context=doorway.tls, half_close=True)
            addresses.append(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        mark("docker")
        yield RunningEngine(engine, network, content, nft, guard, addresses)


def group_id(name: str) -> int | None:
    """The group that the sockets belong to. Raises Invalid for one that was named and is not there."""
    import grp

    with suppress(KeyError):
        return grp.getgrnam(name or GROUP).gr_gid
    if name:
        raise Invalid(f"group {name!r}: no such group on this machine; `groupadd --system {name}` makes it")
    return None
