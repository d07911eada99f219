"""What can be set for an engine."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from wherry.content.protocol import Digest


def ignore_arrow(name: str) -> None:
    """Do nothing between two states."""


def nobody(domain: str) -> str:
    """There is no registry beside this engine."""
    return ""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engine's settings. Times are seconds.

    `runtime`: "crun", "runc", or "" for crun where there is one and else runc. `cluster_registry`: the endpoint of the
    cluster's registry (`unix:/path`, `http://h:p`), or "" on a machine that is not joined. `registry_host` is that
    registry's own name in images (`REGISTRYHOST:PORT/x`). `shares_content`: it keeps its blobs in this very content store,
    so a tag there moves no bytes. `on_tag` is told of each name given (name, manifest digest), in place of the PUT to the
    registry. `beside` gives the endpoint of a registry that runs alone over this content store, where the first part of an
    image's name says that one; it is asked each time, since such a registry comes and goes. `parallel` bounds the runtime
    calls at once (0: twice the cores). `rotate_every_s`: how often logs are measured. `insecure` are registries spoken to
    by plain HTTP.
    `hosts_dir` has mirrors per registry (`HOST/hosts.toml`). `userns_remap`: whose users containers' users are (remaps.py);
    "" for the machine's. `arrow` is called between two states (see README.md).
    """

    runtime: str = ""
    cluster_registry: str = ""
    registry_host: str = ""
    shares_content: bool = True
    on_tag: Callable[[str, Digest], Awaitable[None]] | None = None
    beside: Callable[[str], str] = nobody
    parallel: int = 0
    create_timeout_s: float = 60.0
    rotate_every_s: float = 1.0
    insecure: frozenset[str] = frozenset()
    cgroup: str = ""
    hosts_dir: str = "/etc/containerd/certs.d"
    arrow: Callable[[str], None] = ignore_arrow
    userns_remap: str = ""

    @property
    def at_once(self) -> int:
        """How many runtime calls may run at once."""
        return self.parallel or 2 * (os.cpu_count() or 1)
