"""The role `registry` alone: a registry on one machine, without root, without a cluster.

`root` holds all of it: `content/` (blobs), `registry/` (records), `registry-token` (the administrator's secret) and
`registry.sock`, where its own user administers it and `/metrics` is.
"""

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from wherry.clock import Clock, RealClock
from wherry.content.local import LocalContent
from wherry.daemon import beside
from wherry.errors import Invalid
from wherry.registry.access import trust_local
from wherry.registry.keeping import COLLECT_S, keep
from wherry.registry.pile import Pile
from wherry.registry.records import Records
from wherry.registry.service import Registry
from wherry.registry.sqlite import SqliteRecords
from wherry.wire.server import Server


@dataclass(frozen=True, slots=True)
class Options:
    """How it runs. `listen` and `metrics` are HOST:PORT, "" for none; `certificate` and `key` are PEM files for TLS.

    `database` (postgresql://...) and `storage` (s3://BUCKET/PREFIX) take the places of the files below `root`; several
    registries may share them.
    """

    root: Path
    listen: str = "127.0.0.1:5000"
    metrics: str = ""
    public: bool = False
    open: bool = False
    certificate: str = ""
    key: str = ""
    database: str = ""
    storage: str = ""
    collect_s: float = COLLECT_S


@dataclass(frozen=True, slots=True)
class Running:
    """A registry that answers, and where."""

    registry: Registry
    address: str


@asynccontextmanager
async def registry_alone(options: Options, clock: Clock) -> AsyncGenerator[Running]:
    """Run it. Raises Invalid for an address, Broken when the root cannot be used."""
    from wherry.daemon.server import make_token

    async with AsyncExitStack() as stack:
        options.root.mkdir(parents=True, exist_ok=True)
        token_file = options.root / "registry-token"
        make_token(token_file)
        records = await _records(options)
        stack.push_async_callback(records.close)
        registry = Registry(
            await _pile(options, records, clock, stack),
            options.root / "registry",
            clock=clock,
            token_file=token_file,
            trusted=trust_local(os.geteuid()),
            public=options.public,
            open=options.open,
            records=records,
            shared=bool(options.database),
        )
        await registry.start()
        stack.push_async_callback(registry.close)
        server = Server(registry.handle)
        stack.push_async_callback(server.close, 2.0)
        await server.start_unix(options.root / beside.SOCKET, mode=0o660)
        context = _tls(options)
        host, port = await server.start_tcp(*split_address(options.listen, "listen"), ssl_context=context)
        if options.metrics:
            inner = Server(registry.handle_local)
            stack.push_async_callback(inner.close, 2.0)
            await inner.start_tcp(*split_address(options.metrics, "metrics"))
        if not options.storage:  # an engine that stands alone on this root has these very blobs
            stack.callback(beside.tell(options.root, host, port))
        keeping = asyncio.create_task(keep(registry, clock, collect_s=options.collect_s), name="registry-keeping")
        stack.push_async_callback(_end, keeping)
        yield Running(registry, f"{host}:{port}")


async def _records(options: Options) -> Records:
    """Open the records. Raises Invalid, Broken."""
    if options.storage and not options.database:
        raise Invalid("storage in a bucket needs the records in a database too: name one, as postgresql://...")
    if not options.database:
        return SqliteRecords(options.root / "registry" / "registry.db")
    from wherry.registry.postgres import PostgresRecords  # on use: it is for those who outgrew one machine

    return await asyncio.to_thread(PostgresRecords, options.database)


async def _pile(options: Options, records: Records, clock: Clock, stack: AsyncExitStack) -> Pile:
    """Open what holds the blobs. Raises Invalid, Broken."""
    if options.storage:
        from wherry.registry.bucket import Bucket

        return await Bucket.open(options.storage, records, clock=clock)
    content = LocalContent.open(options.root / "content", clock=clock)
    stack.push_async_callback(content.close)
    return content


async def serve(options: Options) -> None:
    """Run until SIGTERM or SIGINT; print the address when it answers."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with registry_alone(options, RealClock()) as running:
        scheme = "https" if options.certificate else "http"
        print(f"registry: {scheme}://{running.address} (administration: {options.root / beside.SOCKET})", flush=True)
        await stop.wait()


def split_address(text: str, name: str) -> tuple[str, int]:
    """Read HOST:PORT. Raises Invalid."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise Invalid(f"{name} {text!r}: write HOST:PORT, as 127.0.0.1:5000")
    return host.strip("[]"), int(port)


def _tls(options: Options) -> ssl.SSLContext | None:
    if not options.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.certificate, options.key or None)
    except (OSError, ssl.SSLError) as error:
        raise Invalid(f"certificate {options.certificate}: {error}") from None
    return context


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
