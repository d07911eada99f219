"""Keys of the Docker API's TCP address: an authority of its own, the server's certificate, bundles for clients.

Whoever has a bundle is root on this machine, so the authority is not the cluster's, and a bundle is given out by hand. To
take all of them back: remove the directory `pki` of the root, start again, and give out new ones.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.api.pki import Authority
from wherry.clock import RealClock, machine
from wherry.errors import AlreadyExists, Invalid

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

DAY_S = 86400.0
LIFE_DAYS = 90.0
MOST_DAYS = 3650
BUNDLE = ("ca.pem", "cert.pem", "key.pem")
"""The names that Docker's clients look for in DOCKER_CERT_PATH."""


class DoorCertificate:
    """The server's certificate for `names`; renewed in the running process when two thirds of its life are over."""

    def __init__(self, directory: Path, names: Sequence[str], *, life_days: float = LIFE_DAYS) -> None:
        self._directory, self._names, self._life_days = directory, names, life_days

    async def start(self) -> "ssl.SSLContext":
        """Issue the first one; the context to listen with, which takes clients of our own authority only."""
        return await asyncio.to_thread(self._context)

    async def keep(self, context: "ssl.SSLContext") -> None:
        """Renew, again and again, until cancelled."""
        while True:
            await machine.sleep(self._life_days * DAY_S * 2 / 3)
            context.load_cert_chain(*await asyncio.to_thread(self._issue))
            log.info("docker: the server's certificate is renewed for %g days", self._life_days)

    def _context(self) -> "ssl.SSLContext":
        import ssl

        context = authority(self._directory).server_context(*self._issue())
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_RENEGOTIATION
        return context

    def _issue(self) -> tuple[Path, Path]:
        made = authority(self._directory).issue_server("docker", self._names, days=self._life_days)
        return made.save(self._directory, "server")


def authority(directory: Path) -> Authority:
    """The authority of a root, made where there is none."""
    return Authority.load_or_create(directory, RealClock(), signs_tokens=False)


def names_of_machine(more: Sequence[str]) -> list[str]:
    """What clients may call this machine: its host name, localhost, its addresses, and `more`."""
    from wherry.host import netlink

    with netlink.Netlink() as net:
        addresses = [str(each.interface.ip) for each in net.addresses()]
    name = socket.gethostname()
    return list(dict.fromkeys([*more, name, "localhost", "127.0.0.1", "::1", *addresses]))


def write_bundle(directory: Path, place: Path, name: str, *, days: int) -> list[Path]:
    """Write `ca.pem`, `cert.pem` and `key.pem` for a client called `name` to `place`; the key is for its owner alone.

    Raises AlreadyExists where one of them is there, Invalid for a life that is none.
    """
    if not 1 <= days <= MOST_DAYS:
        raise Invalid(f"days {days}: 1 to {MOST_DAYS}")
    if not name or len(name) > 64 or not name.isprintable():
        raise Invalid(f"name {name!r}: 1 to 64 printable characters")
    paths = [place / each for each in BUNDLE]
    for path in paths:
        if path.exists():
            raise AlreadyExists(f"{path} is there already: remove it, or choose another directory")
    signer = authority(directory)
    made = signer.issue_client(name, days=days)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, data, mode in zip(paths, (signer.ca_pem, made.certificate, made.key), (0o644, 0o644, 0o600), strict=True):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    return paths
