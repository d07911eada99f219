"""Simulated nodes: agents in the server's own process, whose pods only seem to run."""

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from wherry.clock import Clock
from wherry.daemon.instance import Instance, NodePlan, Plan
from wherry.daemon.profiles import TIMES
from wherry.daemon.server import RunningServer
from wherry.model.users import node as node_user
from wherry.node.agent import Agent, AgentSettings
from wherry.node.registration import NodeFacts
from wherry.node.simulated import SimulatedRuntime
from wherry.node.streams import AgentServer
from wherry.wire.server import Server

CAPACITY = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"}
LABELS = {"wherry.dev/simulated": "true"}


@asynccontextmanager
async def simulated_nodes(instance: Instance, plan: Plan, server: RunningServer, clock: Clock) -> AsyncGenerator[None]:
    """Run the agents of all simulated nodes of the plan, each with a socket of its own, as real ones have."""
    async with AsyncExitStack() as stack:
        for node in plan.nodes:
            if not node.real:
                await stack.enter_async_context(_one(instance, plan, node, server, clock))
        yield


@asynccontextmanager
async def _one(
    instance: Instance, plan: Plan, node: NodePlan, server: RunningServer, clock: Clock
) -> AsyncGenerator[Agent]:
    times = TIMES[plan.profile]
    facts = NodeFacts(
        name=node.name, address=node.address, pod_cidr=node.pod_cidr, capacity=CAPACITY, labels=LABELS,
        info={"osImage": "simulated", "kernelVersion": os.uname().release},
    )  # fmt: skip
    settings = AgentSettings(
        facts=facts, root=instance.server / "simulated" / node.name, lease_s=times.lease_s, renew_s=times.renew_s,
        with_files=False,
    )  # fmt: skip
    runtime = SimulatedRuntime(clock, pod_cidr=node.pod_cidr)
    async with Agent(server.client(node_user(node.name)), runtime, clock=clock, settings=settings) as agent:
        face = Server(AgentServer(agent, clock).handle)
        socket = instance.agent_socket(node.name)
        await face.start_unix(socket, mode=0o600)
        try:
            yield agent
        finally:
            await face.close(1.0)
            await runtime.close()
