"""The roles `engine` and `agent`: containers of this machine behind the Docker API, and the pods that a cluster binds to it."""

import logging
from dataclasses import dataclass

from wherry.engine.local import LocalEngine
from wherry.network.pods import LocalPodNetwork

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine that serves the Docker API."""

    engine: LocalEngine
    network: LocalPodNetwork
