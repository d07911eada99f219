"""What an HTTP answer costs: a GET of 2 KiB on kept connections, over unix, TCP and TLS, beside its floor in the same run.

The floor is a bare `asyncio.Protocol` that writes a constant for whatever arrives: no parsing, no task, no head. Server and
load generator are processes of their own; CPU is the server's. Rounds are interleaved, the best of each is shown.

    .venv/bin/python benchmarks/wire.py [--seconds 2] [--rounds 3] [--connections 32]
"""

import argparse
import asyncio
import os
import ssl
import sys
import tempfile
from pathlib import Path

from wherry.clock import machine
from wherry.wire.http import Request, Response
from wherry.wire.router import Route, Router
from wherry.wire.server import Server

BODY = b'{"kind":"ConfigMap","data":"' + b"x" * 2018 + b'"}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
PATH = "/api/v1/namespaces/default/configmaps/one"
QUESTION = (
    f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench/1\r\nAccept: application/json\r\n"
    "Accept-Encoding: gzip\r\n\r\n"
).encode()
TRANSPORTS = ("unix", "tcp", "tls")
SERVERS = ("floor", "wherry")


class Floor(asyncio.Protocol):
    """Answers a constant."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer."""
        self.transport.write(ANSWER)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed P-256 certificate for localhost."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.fromtimestamp(machine.now(), UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_path, key_path


def cpu_s() -> float:
    """CPU seconds of this process."""
    times = os.times()
    return times.user + times.system


def resident_kib() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


async def serve(kind: str, transport: str, folder: Path) -> None:
    """Serve until stdin closes; each line on stdin is answered by the CPU seconds so far."""
    loop = asyncio.get_running_loop()
    context: ssl.SSLContext | None = None
    if transport == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    path = str(folder / f"{kind}.sock")

    async def one(request: Request) -> Response:
        return Response.json(BODY)

    router = Router(
        [
            Route("GET", "/readyz", one),
            Route("GET", "/api/v1/nodes/{name}", one),
            Route("GET", "/api/v1/namespaces/{namespace}/{plural}", one),
            Route("GET", "/api/v1/namespaces/{namespace}/{plural}/{name}", one),
        ]
    )

    async def handle(request: Request) -> Response:
        handler, request.params = router.match(request.method, request.path)
        return await handler(request)

    server: Server | None = None
    bare: asyncio.Server | None = None
    if kind == "wherry":
        server = Server(handle)
        if transport == "unix":
            await server.start_unix(path)
            where = path
        else:
            where = str((await server.start_tcp("127.0.0.1", 0, ssl_context=context))[1])
    elif transport == "unix":
        bare = await loop.create_unix_server(Floor, path)
        where = path
    else:
        bare = await loop.create_server(Floor, "127.0.0.1", 0, ssl=context)
        where = str(bare.sockets[0].getsockname()[1])
    print(where, flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(cpu_s(), resident_kib(), flush=True)
    if server is not None:
        await server.close(0)
    if bare is not None:
        bare.close()


class Load(asyncio.Protocol):
    """One connection: asks again as soon as it is answered."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts
        self.buffer = b""
        self.size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(QUESTION)

    def data_received(self, data: bytes) -> None:
        """Count whole answers: all have one size, learnt from the first."""
        self.buffer = self.buffer + data if self.buffer else data
        if not self.size:
            head, mark, _ = self.buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            assert head.startswith(b"HTTP/1.1 200"), head
            self.size = len(head) + 4 + len(BODY)
        if len(self.buffer) >= self.size:
            self.buffer = self.buffer[self.size :]
            self.counts[0] += 1
            self.transport.write(QUESTION)


async def load(transport: str, where: str, connections: int, seconds: float) -> None:
    """Ask for `seconds`; print how many answers came."""
    loop = asyncio.get_running_loop()
    counts = [0]
    made: list[asyncio.BaseTransport] = []
    context: ssl.SSLContext | None = None
    if transport == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for _ in range(connections):
        if transport == "unix":
            made.append((await loop.create_unix_connection(lambda: Load(counts), where))[0])
        else:
            made.append((await loop.create_connection(lambda: Load(counts), "127.0.0.1", int(where), ssl=context))[0])
    print("ready", flush=True)
    start, before = machine.monotonic(), counts[0]
    await machine.sleep(seconds)
    print((counts[0] - before) / (machine.monotonic() - start), flush=True)
    for each in made:
        each.close()


class Child:
    """A process of this file, spoken to by lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *arguments: str) -> "Child":
        """Start it."""
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, __file__, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
        )

    async def line(self) -> str:
        """Read a line."""
        assert self.process.stdout is not None
        async with machine.timeout(60):
            return (await self.process.stdout.readline()).decode().strip()

    async def ask(self) -> tuple[float, int]:
        """Ask a server for its CPU seconds and memory."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"?\n")
        cpu, resident = (await self.line()).split()
        return float(cpu), int(resident)

    async def end(self) -> None:
        """Close its stdin and wait."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()


async def round_of(
    kind: str, transport: str, folder: Path, connections: int, seconds: float
) -> tuple[float, float, int]:
    """Measure once: answers per second, CPU us per answer, KiB resident."""
    server = await Child.start("serve", kind, transport, str(folder))
    where = await server.line()
    generator = await Child.start("load", transport, where, str(connections), str(seconds))
    await generator.line()
    before, _ = await server.ask()
    rate = float(await generator.line())
    after, resident = await server.ask()
    await generator.end()
    await server.end()
    return rate, (after - before) / seconds / rate * 1e6, resident


async def measure(seconds: float, rounds: int, connections: int) -> None:
    """Run everything, print the table."""
    rates: dict[tuple[str, str], float] = {}
    costs: dict[tuple[str, str], float] = {}
    memory: dict[tuple[str, str], int] = {}
    with tempfile.TemporaryDirectory(prefix="wire") as name:
        certificate(Path(name))
        for _ in range(rounds):
            for transport in TRANSPORTS:
                for kind in SERVERS:
                    rate, cost, resident = await round_of(kind, transport, Path(name), connections, seconds)
                    key = (transport, kind)
                    rates[key] = max(rate, rates.get(key, 0.0))
                    costs[key] = min(cost, costs.get(key, 1e9))
                    memory[key] = max(resident, memory.get(key, 0))
    print(f"GET of {len(BODY)} bytes, {connections} kept connections, best of {rounds} rounds of {seconds:g} s")
    print(
        f"{'':6}{'floor req/s':>12}{'wherry req/s':>14}{'floor us':>10}{'wherry us':>11}{'ratio':>7}{'over us':>9}{'MiB':>6}"
    )
    for transport in TRANSPORTS:
        floor, ours = costs[transport, "floor"], costs[transport, "wherry"]
        print(
            f"{transport:6}{rates[transport, 'floor']:12,.0f}{rates[transport, 'wherry']:14,.0f}{floor:10.1f}{ours:11.1f}"
            f"{ours / floor:7.2f}{ours - floor:9.1f}{memory[transport, 'wherry'] / 1024:6.0f}"
        )
    print("us: CPU of the server process per answer, system calls included; over: ours above the floor")


def main() -> None:
    """Read arguments: none to measure; `serve` and `load` are the children."""
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(sys.argv[2], sys.argv[3], Path(sys.argv[4])))
    elif sys.argv[1:2] == ["load"]:
        asyncio.run(load(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--seconds", type=float, default=2.0)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--connections", type=int, default=32)
        options = parser.parse_args()
        asyncio.run(measure(options.seconds, options.rounds, options.connections))


if __name__ == "__main__":
    main()
