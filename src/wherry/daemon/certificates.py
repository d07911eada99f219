"""The server's certificate and the administrator's kubeconfig: issued at start, and anew in the running process.

Certificates are machine time's business: they are renewed when two thirds of their life are over, without a restart and
without a gap: connections that stand keep theirs, new ones get the new one, the kubeconfig is replaced whole.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.api.kubeconfig import text as kubeconfig_text
from wherry.api.pki import Authority
from wherry.clock import machine
from wherry.daemon.instance import Instance

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

DAY_S = 86400.0
LIFE_DAYS = 90.0


class Certificates:
    """Issues and renews. `names` are the host names and addresses that the server is reached by."""

    def __init__(
        self, instance: Instance, authority: Authority, port: int, names: Sequence[str], *, life_days: float = LIFE_DAYS
    ) -> None:
        self._instance, self._authority, self._port, self._names = instance, authority, port, names
        self._life_days = life_days

    async def start(self) -> "ssl.SSLContext":
        """Issue the first ones; the context to listen with."""
        certificate, key = await asyncio.to_thread(self._issue)
        return self._authority.server_context(certificate, key)

    async def keep(self, context: "ssl.SSLContext") -> None:
        """Renew, again and again, until cancelled."""
        while True:
            await machine.sleep(self._life_days * DAY_S * 2 / 3)
            certificate, key = await asyncio.to_thread(self._issue)
            context.load_cert_chain(certificate, key)
            log.info("certificates: renewed for %g days", self._life_days)

    def _issue(self) -> tuple[Path, Path]:
        authority, days = self._authority, self._life_days
        saved = authority.issue_server("kube-apiserver", self._names, days=days).save(
            self._instance.server / "pki", "server"
        )
        admin = authority.issue_client("kubernetes-admin", ["system:masters"], days=days)
        url, name = f"https://127.0.0.1:{self._port}", f"wherry-{self._instance.root.name}"
        write_private(self._instance.kubeconfig, kubeconfig_text(url, authority.ca_pem, credentials=admin, name=name))
        return saved


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    temporary.rename(path)
