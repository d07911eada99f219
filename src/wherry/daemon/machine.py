"""The role `agent`: the pods that a cluster binds to this machine, on the engine that runs beside it."""

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from wherry.client.api import ApiClient
from wherry.client.transports import HttpTransport
from wherry.clock import Clock
from wherry.daemon.engine import RunningEngine, ranges_of
from wherry.daemon.instance import Instance, NodePlan, Plan
from wherry.daemon.phases import unmarked
from wherry.daemon.profiles import TIMES
from wherry.engine.types import Dns
from wherry.host import facts, mounts
from wherry.model.quantities import parse_bytes
from wherry.model.users import node as node_user
from wherry.network.dns import DnsEndpoint, DnsPort, DnsServer, DnsService
from wherry.network.services import NftServices
from wherry.network.upstream import read_resolvers
from wherry.network.zone import Zone
from wherry.node.agent import Agent, AgentSettings
from wherry.node.proxy import ServiceProxy, ServiceView, SliceView, is_ready
from wherry.node.real import EngineRuntime
from wherry.node.registration import NodeFacts
from wherry.node.streams import AgentServer
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.server import Server


@asynccontextmanager
async def agent_role(
    instance: Instance,
    plan: Plan,
    node: NodePlan,
    running: RunningEngine,
    clock: Clock,
    *,
    mark: Callable[[str], None] = unmarked,
) -> AsyncGenerator[Agent]:
    """Join the cluster: register, run pods, keep services, names and routes."""
    times = TIMES[plan.profile]
    transport = HttpTransport(HttpClient(Endpoint.parse(f"unix:{instance.api_socket}")), node_user(node.name))
    async with AsyncExitStack() as stack:
        client = ApiClient(transport)
        stack.push_async_callback(client.close)
        zone = Zone(ranges=[plan.pod_cidr, plan.service_cidr])
        dns = await stack.enter_async_context(DnsServer([running.network.gateway], zone=zone))
        services = NftServices(instance.id, ranges_of(plan, node), running.nft, running.guard)
        stack.push_async_callback(services.close)

        async def routes(wanted: Mapping[str, str]) -> None:
            if not node.apart:  # a node that stands apart sends everything to the machine, which knows the way
                local = {each.pod_cidr for each in plan.nodes if each.apart}
                known = {each.pod_cidr for each in instance.load().nodes if each.apart} | local
                await running.network.sync_routes({cidr: to for cidr, to in wanted.items() if cidr in known})

        proxy = ServiceProxy(
            client, node.name, table=services.sync, names=lambda views, slices: dns.sync(dns_services(views, slices)),
            routes=routes,
        )  # fmt: skip
        await stack.enter_async_context(proxy)
        mark("proxy")
        capacity, info = await asyncio.to_thread(node_facts, instance.node_root(node))
        labels = {"wherry.dev/instance": instance.id}
        if (
            times.fence_s
        ):  # what the controllers may count on: after this much silence nothing of the node runs any more
            labels["wherry.dev/fence-seconds"] = str(times.fence_s)
        settings = AgentSettings(
            facts=NodeFacts(node.name, node.address, node.pod_cidr, capacity, labels, info),
            root=instance.node_root(node),
            dns_address=running.network.gateway,
            host_dns=host_dns(),
            lease_s=times.lease_s,
            renew_s=times.renew_s,
            services=proxy.variables,
            tmpfs=_tmpfs,
            untmpfs=_untmpfs,
            renewed=lambda: touch(instance.heartbeat(node.name)),
            drained=proxy.drained,
        )
        agent = Agent(client, EngineRuntime(running.engine), clock=clock, settings=settings)
        await stack.enter_async_context(agent)
        mark("agent")
        face = Server(AgentServer(agent, clock).handle)
        gid = plan.server_uid if os.geteuid() == 0 else None
        await face.start_unix(instance.agent_socket(node.name), mode=0o660, gid=gid)
        stack.push_async_callback(face.close, 1.0)
        yield agent


def dns_services(
    views: Sequence[ServiceView], slices: Mapping[tuple[str, str], Sequence[SliceView]]
) -> Sequence[DnsService]:
    """The services as DNS knows them."""
    result: list[DnsService] = []
    for each in views:
        spec, meta = each.spec, each.metadata
        ports = [DnsPort(port.name, port.protocol, port.port) for port in spec.ports]
        addresses = [one for one in (spec.cluster_ips or [spec.cluster_ip]) if one and one != "None"]
        endpoints: list[DnsEndpoint] = []
        if not addresses and spec.type != "ExternalName":
            for part in slices.get((meta.namespace, meta.name), ()):
                own = [DnsPort(one.name, one.protocol, one.port) for one in part.ports or () if one.port]
                endpoints += [
                    DnsEndpoint(endpoint.addresses[0], endpoint.hostname, own)
                    for endpoint in part.endpoints or ()
                    if endpoint.addresses and (is_ready(endpoint.conditions) or spec.publish_not_ready_addresses)
                ]
        external = spec.external_name if spec.type == "ExternalName" else ""
        result.append(DnsService(meta.namespace, meta.name, addresses, ports, endpoints, external))
    return result


def node_facts(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What this machine has, as quantities, and what it says of itself."""
    found = facts.read()
    capacity = {
        "cpu": str(found.cpus),
        "memory": f"{found.memory_bytes // 1024}Ki",
        "pods": "110",
        "ephemeral-storage": f"{shutil.disk_usage(root).total // 1024}Ki",
    }
    info = {
        "kernelVersion": found.kernel,
        "osImage": found.os_image,
        "machineID": found.machine_id,
        "bootID": found.boot_id,
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(found.architecture, found.architecture),
    }
    return capacity, info


def host_dns() -> Dns:
    """The machine's own resolvers, beyond a loopback stub, for pods that ask for them."""
    found = read_resolvers()
    return Dns(list(found.servers), list(found.searches), list(found.options))


def touch(path: Path) -> None:
    """Say that the agent lives and is heard: the warden watches the age of this file."""
    path.touch()


def _tmpfs(path: str, size: str) -> None:
    mounts.tmpfs(path, size_bytes=parse_bytes(size) if size else 0, mode=0o1777)


def _untmpfs(path: str) -> None:
    mounts.unmount(path)
