"""Certificates are renewed in the running process."""

import asyncio
import ssl
from pathlib import Path

from wherry.api.pki import Authority
from wherry.clock import RealClock, machine
from wherry.daemon.certificates import DAY_S, Certificates
from wherry.daemon.instance import Instance


async def serial(port: int, trust: ssl.SSLContext) -> str:
    """The serial number that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="localhost")
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert()
        return str(shown["serialNumber"])
    finally:
        writer.close()


async def test_a_new_connection_gets_the_new_certificate_and_the_kubeconfig_follows(tmp_path: Path) -> None:
    instance = Instance(tmp_path, tmp_path / "run", "00000000")
    instance.server.mkdir(parents=True)
    authority = Authority.load_or_create(instance.server / "pki", RealClock())
    certificates = Certificates(instance, authority, 1, ["localhost", "127.0.0.1"], life_days=3.0 / DAY_S)
    context = await certificates.start()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trust = authority.client_context()
    first, config = await serial(port, trust), instance.kubeconfig.read_text()
    renewal = asyncio.create_task(certificates.keep(context))
    try:
        async with machine.timeout(30):
            while await serial(port, trust) == first:
                await machine.sleep(0.05)
        assert instance.kubeconfig.read_text() != config
        assert instance.kubeconfig.stat().st_mode & 0o777 == 0o600
    finally:
        renewal.cancel()
        server.close()
