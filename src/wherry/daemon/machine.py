"""The roles `engine` and `agent`: containers of this machine behind the Docker API, and the pods that a cluster binds to it."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from wherry.builder.builder import Builder
from wherry.client.api import ApiClient
from wherry.client.transports import HttpTransport, LocalTransport
from wherry.clock import Clock
from wherry.content.local import LocalContent
from wherry.daemon.instance import Instance, NodePlan, Plan
from wherry.daemon.profiles import TIMES
from wherry.doors.docker.door import DockerDoor
from wherry.engine.local import LocalEngine
from wherry.engine.settings import EngineSettings
from wherry.engine.types import Dns
from wherry.host import facts, mounts
from wherry.model.users import node as node_user
from wherry.network.dns import DnsServer
from wherry.network.pods import LocalPodNetwork
from wherry.network.services import NftServices
from wherry.node.agent import Agent, AgentSettings
from wherry.node.proxy import ServiceProxy
from wherry.node.real import EngineRuntime
from wherry.node.registration import NodeFacts
from wherry.node.simulated import SimulatedRuntime
from wherry.node.streams import AgentServer
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.server import Server

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine that serves the Docker API."""

    engine: LocalEngine
    network: LocalPodNetwork
