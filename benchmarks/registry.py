"""The registry beside Debian's docker-registry, interleaved, with the floors of the same run.

Floors, measured anew in each round: one core's sha256, a file that is written and synced, a loopback socket, `sendfile`
over it, a bare asyncio answer. Both registries listen on loopback without credentials and write to the same disk; CPU is the
server's own (user and system, from /proc). The load generator is this process, so with two cores the servers have about
one. Rows show the best of the rounds; the aims are judged by the median of the rounds' own ratios.

    .venv/bin/python benchmarks/registry.py [--rounds 3] [--mib 256] [--images 500] [--seconds 1.5] [--names 10000]

Needs the Debian package docker-registry for its rows; without it only ours are shown.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from wherry.clock import machine
from wherry.content.digests import digest_of
from wherry.wire.client import Endpoint, HttpClient

TICKS = os.sysconf("SC_CLK_TCK")
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OURS, THEIRS = "wherry", "docker-registry"
SHA, SYNCED, LOOPBACK, SENDFILE = "sha256, one core", "file written and synced", "loopback socket", "sendfile"
BARE = "bare asyncio answer"
CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: 127.0.0.1:{port}}}
"""


class Peer:
    """A registry process."""

    def __init__(self, name: str, root: Path, names: int) -> None:
        self.name = name
        self.port = free_port()
        self.root = root / name
        self.root.mkdir()
        if name == OURS:
            seed_ours(self.root, names)
            argv = [sys.executable, "-m", "wherry.cli.main", "registry", "serve", "--root", str(self.root)]
            argv += ["--open", "--listen", f"127.0.0.1:{self.port}"]
        else:
            seed_theirs(self.root, names)
            config = root / "docker-registry.yml"
            config.write_text(CONFIG.format(root=self.root, port=self.port))
            argv = [THEIRS, "serve", str(config)]
        quiet = {**os.environ, "WHERRY_LOG_LEVEL": "ERROR", "OTEL_TRACES_EXPORTER": "none"}
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=quiet)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            machine.pause(0.05)
        raise SystemExit(f"{name} does not answer")

    def cpu_s(self) -> float:
        """Seconds of CPU that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory_mib(self) -> float:
        """Most resident memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def seed_ours(root: Path, names: int) -> None:
    """Write `names` repositories, and as many tags of one, into our records."""
    from wherry.registry.sqlite import SqliteRecords, Tx

    def work(db: Tx) -> None:
        db.executemany(
            "INSERT INTO repositories (name, created) VALUES (?, 0)", [(f"many/r{n:06}",) for n in range(names)]
        )
        digest = digest_of(b"x")
        db.execute("INSERT INTO repositories (name, created) VALUES ('tagged', 0)")
        db.executemany("INSERT INTO tags VALUES ('tagged', ?, ?, 0)", [(f"t{n:06}", digest) for n in range(names)])

    async def seed() -> None:
        database = SqliteRecords(root / "registry" / "registry.db")
        await database.write(work)
        await database.close()

    asyncio.run(seed())


def seed_theirs(root: Path, names: int) -> None:
    """The same as docker-registry's directories."""
    base = root / "docker/registry/v2/repositories"
    for number in range(names):
        (base / f"many/r{number:06}/_layers").mkdir(parents=True)
        tag = base / f"tagged/_manifests/tags/t{number:06}/current"
        tag.mkdir(parents=True)
        (tag / "link").write_text(digest_of(b"x"))
    (base / "tagged/_layers").mkdir()


def push(peer: Peer, name: str, data: bytes) -> None:
    """Push a blob with a plain socket: begin, then all of it at once."""
    with socket.create_connection(("127.0.0.1", peer.port)) as connection:
        connection.sendall(f"POST /v2/{name}/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        location = header(answer_of(connection), "location")
        target = "/" + location.partition("//")[2].partition("/")[2] if "//" in location else location
        target += ("&" if "?" in target else "?") + "digest=" + DIGESTS[id(data)]
        head = f"PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        head += "Content-Type: application/octet-stream\r\n\r\n"
        connection.sendall(head.encode())
        connection.sendall(data)
        said = answer_of(connection)
        if b" 201 " not in said.partition(b"\r\n")[0]:
            raise SystemExit(f"push: {said[:200]!r}")


def answer_of(connection: socket.socket) -> bytes:
    """The head of an answer without a body worth reading."""
    head = b""
    while b"\r\n\r\n" not in head:
        got = connection.recv(65536)
        if not got:
            break
        head += got
    return head


def header(head: bytes, name: str) -> str:
    """One field of a head."""
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.decode().lower() == name:
            return value.decode().strip()
    return ""


DIGESTS: dict[int, str] = {}


async def put_blob(client: HttpClient, name: str, data: bytes, digest: str) -> None:
    """One blob by a client."""
    begun = await client.request("POST", f"/v2/{name}/blobs/uploads/")
    await begun.read()
    location = begun.headers["location"]
    location = location.partition("//")[2].partition("/")[2] if "//" in location else location[1:]
    path, _, query = location.partition("?")
    fields = [field.partition("=")[::2] for field in query.split("&") if field]
    from urllib.parse import unquote

    decoded = [(key, unquote(value)) for key, value in fields]
    done = await client.request(
        "PUT", f"/{path}", [*decoded, ("digest", digest)], {"Content-Type": "application/octet-stream"}, data
    )
    said = await done.read()
    if done.status != 201:
        raise SystemExit(f"push: {done.status} {said[:200]!r}")


def drain(peer: Peer, target: str) -> int:
    """GET with a plain socket and count the bytes of the body."""
    with socket.create_connection(("127.0.0.1", peer.port)) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        buffer = bytearray(1 << 20)
        total = 0
        while got := connection.recv_into(buffer):
            total += got
        return total


def in_threads(works: list[Callable[[], object]]) -> float:
    """Run all at once; return the seconds."""
    threads = [threading.Thread(target=work) for work in works]
    begun = machine.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return machine.monotonic() - begun


class Asker(asyncio.Protocol):
    """Asks the same thing again and again on one connection, until told to stop."""

    def __init__(self, question: bytes, head: bool) -> None:
        self.question, self.head = question, head
        self.count, self.wanted, self.got = 0, 0, 0
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask first."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.question)

    def data_received(self, data: bytes) -> None:
        """Count an answer when it is whole, and ask again."""
        if not self.wanted:
            self.buffer += data
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = 0
            if not self.head:
                said = self.buffer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                if not said:  # in chunks: it is whole with its last one
                    if not self.buffer.endswith(b"0\r\n\r\n"):
                        return
                    said = b"%d" % (len(self.buffer) - end - 4)
                length = int(said)
            self.wanted = end + 4 + length
            data, self.got, self.buffer = self.buffer, 0, b""
        self.got += len(data)
        if self.got >= self.wanted:
            self.count += 1
            self.wanted = 0
            self.transport.write(self.question)


async def ask_for(port: int, method: str, target: str, seconds: float, connections: int = 16) -> float:
    """Requests per second."""
    question = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: {OCI_MANIFEST}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    askers: list[Asker] = []
    for _ in range(connections):
        _, asker = await loop.create_connection(lambda: Asker(question, method == "HEAD"), "127.0.0.1", port)
        askers.append(asker)
    begun = machine.monotonic()
    await machine.sleep(seconds)
    rate = sum(asker.count for asker in askers) / (machine.monotonic() - begun)
    for asker in askers:
        asker.transport.abort()
    return rate


async def small_images(peer: Peer, count: int, tag: str) -> float:
    """Push images of a config and a layer, 16 at a time; return images per second."""
    gate = asyncio.Semaphore(16)
    async with HttpClient(Endpoint.parse(f"http://127.0.0.1:{peer.port}")) as client:

        async def one(number: int) -> None:
            async with gate:
                name = f"small/{number % 20}"
                parts = [f"{{{tag!r}: {number}}}".encode(), f"layer {tag} {number} ".encode() * 100]
                entries: list[dict[str, object]] = []
                for data in parts:
                    digest = digest_of(data)
                    await put_blob(client, name, data, digest)
                    entries.append({"mediaType": "application/octet-stream", "digest": digest, "size": len(data)})
                manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entries[0], "layers": entries[1:]}
                done = await client.request(
                    "PUT", f"/v2/{name}/manifests/{tag}-{number}", (), {"Content-Type": OCI_MANIFEST},
                    json.dumps(manifest).encode(),
                )  # fmt: skip
                await done.read()
                if done.status != 201:
                    raise SystemExit(f"manifest: {done.status}")

        begun = machine.monotonic()
        await asyncio.gather(*(one(number) for number in range(count)))
        return count / (machine.monotonic() - begun)


def floors(mib: int, folder: Path) -> dict[str, float]:
    """What the machine does by itself, in MiB/s."""
    data = os.urandom(1 << 20)
    begun = machine.monotonic()
    state = hashlib.sha256()
    for _ in range(mib):
        state.update(data)
    found = {SHA: mib / (machine.monotonic() - begun)}
    file = folder / "floor"
    begun = machine.monotonic()
    with file.open("wb", buffering=0) as target:
        for _ in range(mib):
            target.write(data)
        os.fsync(target.fileno())
    found[SYNCED] = mib / (machine.monotonic() - begun)
    for name in (LOOPBACK, SENDFILE):
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def send(name: str = name, listener: socket.socket = listener) -> None:
                connection, _ = listener.accept()
                with connection, file.open("rb") as source:
                    if name == SENDFILE:
                        connection.sendfile(source)
                    else:
                        for _ in range(mib):
                            connection.sendall(data)

            def receive(listener: socket.socket = listener) -> None:
                buffer = bytearray(1 << 20)
                with socket.create_connection(listener.getsockname()) as connection:
                    while connection.recv_into(buffer):
                        pass

            found[name] = mib / in_threads([send, receive])
    file.unlink()
    return found


async def bare(seconds: float) -> float:
    """Requests per second of a bare asyncio answer, in a process of its own."""
    code = (
        "import asyncio,sys\nclass P(asyncio.Protocol):\n def connection_made(s,t): s.t=t\n"
        " def data_received(s,d): s.t.write(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}')\n"
        "async def m():\n v=await asyncio.get_running_loop().create_server(P,'127.0.0.1',int(sys.argv[1]))\n"
        " await v.serve_forever()\nasyncio.run(m())"
    )
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(port))
    try:
        async with machine.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await machine.sleep(0.05)
        return await ask_for(port, "GET", "/", seconds)
    finally:
        process.terminate()
        await process.wait()


Row = dict[str, list[tuple[float, float]]]
"""For each peer the value and the CPU of each round."""


async def measure(
    peer: Peer, args: argparse.Namespace, round: int, show: Callable[[str, float, float, str], None]
) -> None:
    """All rows of one peer in one round."""

    async def cost(row: str, work: Awaitable[float], unit: str, per: Callable[[float, float], float]) -> None:
        before = peer.cpu_s()
        value = await work
        show(row, value, per(peer.cpu_s() - before, value), unit)

    mib = args.mib
    for streams in (1, 4):
        parts = [os.urandom(1 << 20) * (mib // streams) for _ in range(streams)]
        for data in parts:
            DIGESTS[id(data)] = digest_of(data)

        async def pushes(parts: list[bytes] = parts) -> float:
            works: list[Callable[[], object]] = [lambda one=one: push(peer, "big", one) for one in parts]
            return mib / await asyncio.to_thread(in_threads, works)

        await cost(f"push {mib} MiB, {streams} streams", pushes(), "MiB/s", lambda cpu, _: cpu * 1024 / mib)
        targets = [f"/v2/big/blobs/{DIGESTS[id(data)]}" for data in parts]

        async def pulls(targets: list[str] = targets) -> float:
            works: list[Callable[[], object]] = [lambda one=one: drain(peer, one) for one in targets]
            return mib / await asyncio.to_thread(in_threads, works)

        await cost(f"pull {mib} MiB, {streams} streams", pulls(), "MiB/s", lambda cpu, _: cpu * 1024 / mib)
    images = args.images
    await cost(
        "small images, 16 at a time",
        small_images(peer, images, f"v{round}"),
        "images/s",
        lambda cpu, _: cpu * 1e6 / (images * 5),
    )
    layer = digest_of(f"layer v{round} 0 ".encode() * 100)
    s = args.seconds
    for row, method, target in (
        ("manifest GET", "GET", f"/v2/small/0/manifests/v{round}-0"),
        ("blob HEAD", "HEAD", f"/v2/small/0/blobs/{layer}"),
        ("tags, first page of 100", "GET", "/v2/tagged/tags/list?n=100"),
        ("tags, last page of 100", "GET", f"/v2/tagged/tags/list?n=100&last=t{args.names - 101:06}"),
        ("tags, all at once", "GET", f"/v2/tagged/tags/list?n={args.names}"),
        ("catalogue, first page of 100", "GET", "/v2/_catalog?n=100"),
        ("catalogue, last page of 100", "GET", f"/v2/_catalog?n=100&last=many/r{args.names - 101:06}"),
    ):
        await cost(
            row, ask_for(peer.port, method, target, s), "req/s", lambda cpu, rate: cpu * 1e6 / max(1.0, rate * s)
        )


async def run(args: argparse.Namespace, folder: Path) -> None:
    """Measure and print."""
    names = [OURS, THEIRS] if shutil.which(THEIRS) else [OURS]
    peers = [await asyncio.to_thread(Peer, name, folder, args.names) for name in names]
    rows: dict[str, tuple[str, Row]] = {}
    bases: dict[str, list[float]] = {}
    try:
        for round in range(args.rounds):
            for name, value in (await asyncio.to_thread(floors, args.mib, folder)).items():
                bases.setdefault(name, []).append(value)
            bases.setdefault(BARE, []).append(await bare(args.seconds))
            for peer in peers if round % 2 == 0 else reversed(peers):

                def show(row: str, value: float, cpu: float, unit: str, peer: Peer = peer) -> None:
                    rows.setdefault(row, (unit, {}))[1].setdefault(peer.name, []).append((value, cpu))

                await measure(peer, args, round, show)
        for name, values in bases.items():
            unit = "req/s" if name == BARE else "MiB/s"
            print(f"{'floor: ' + name:<34} {max(values):8.0f} {unit} ({', '.join(f'{each:.0f}' for each in values)})")
        print(f"\n{'':<34} {'':>9}" + "".join(f"{peer.name:>18}{'CPU':>12}" for peer in peers))
        for row, (unit, values) in rows.items():
            cost = "s/GiB" if unit == "MiB/s" else "us"
            best = {peer.name: max(values[peer.name]) for peer in peers}
            cells = "".join(
                f"{best[p.name][0]:>18.0f}{best[p.name][1]:>8.{2 if cost == 's/GiB' else 0}f} {cost:<5}" for p in peers
            )
            print(f"{row:<34} {unit:>9}{cells}")
        print(f"{'most memory':<34} {'MiB':>9}" + "".join(f"{peer.memory_mib():>18.0f}{'':>14}" for peer in peers))
        judge(args, rows, bases)
    finally:
        for peer in peers:
            peer.stop()


def judge(args: argparse.Namespace, rows: dict[str, tuple[str, Row]], bases: dict[str, list[float]]) -> None:
    """Hold the rounds against the aims."""

    def said(what: str, ratios: list[float], holds: Callable[[float], bool]) -> None:
        middle = statistics.median(ratios)
        spread = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{'held' if holds(middle) else 'MISSED':<7} {what}: {middle:.2f} ({spread})")

    print()
    for streams in (1, 4):
        pushed = rows[f"push {args.mib} MiB, {streams} streams"][1][OURS]
        pulled = rows[f"pull {args.mib} MiB, {streams} streams"][1][OURS]
        ratios = [base / value for base, (value, _) in zip(bases[SHA], pushed, strict=True)]
        said(f"push, {streams} streams, at most 1.15 of one core's sha256", ratios, lambda ratio: ratio <= 1.15)
        ratios = [value / base for base, (value, _) in zip(bases[SENDFILE], pulled, strict=True)]
        said(f"pull, {streams} streams, at least 0.8 of sendfile", ratios, lambda ratio: ratio >= 0.8)
    for row, (unit, values) in rows.items():
        if THEIRS in values:
            pairs = list(zip(values[OURS], values[THEIRS], strict=True))
            said(
                f"{row}, ahead",
                [ours[0] / theirs[0] for ours, theirs in pairs if theirs[0]] or [math.inf],
                lambda ratio: ratio >= 1,
            )
            if unit != "MiB/s":
                ratios = [ours[1] / theirs[1] for ours, theirs in pairs if theirs[1]]
                said(f"{row}, CPU at most 0.25", ratios or [0.0], lambda ratio: ratio <= 0.25)
    for what in ("tags", "catalogue"):
        first, last = (rows[f"{what}, {which} page of 100"][1][OURS] for which in ("first", "last"))
        ratios = [one[0] / other[0] for one, other in zip(first, last, strict=True)]
        said(f"{what}, first page as quick as the last", ratios, lambda ratio: 0.5 <= ratio <= 2)


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--names", type=int, default=10_000)
    with tempfile.TemporaryDirectory(prefix="registry-bench-") as folder:
        asyncio.run(run(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
