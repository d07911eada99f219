"""The roles `server` and `registry`: the store, the API, controllers, scheduler and history; and images for the cluster."""

import asyncio
import hmac
import logging
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from wherry.api.api import Api
from wherry.api.kubeconfig import text as kubeconfig_text
from wherry.api.pki import Authority
from wherry.api.settings import Settings as ApiSettings
from wherry.client.api import ApiClient
from wherry.client.protocol import Client
from wherry.client.transports import LocalTransport
from wherry.clock import Clock, machine
from wherry.controllers.runner import Controllers
from wherry.controllers.settings import Settings as ControllerSettings
from wherry.daemon.instance import Instance, Plan
from wherry.daemon.profiles import TIMES
from wherry.errors import NotFound, Unavailable
from wherry.history.archive import Archive
from wherry.history.routes import routes as history_routes
from wherry.model.users import User
from wherry.scheduler.scheduler import Scheduler
from wherry.store.sqlite import SqliteStore
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.http import Request, Response
from wherry.wire.proxy import forward
from wherry.wire.server import Server

log = logging.getLogger(__name__)

CERTIFICATE_DAYS = 90.0
COMPACT_EVERY_S = 60.0


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
