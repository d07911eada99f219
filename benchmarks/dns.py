"""How quickly names of containers are answered under load, beside an asyncio server that only sends datagrams back.

Run: `python benchmarks/dns.py [ROUNDS]`. Each round sends 1,000 questions, 50 at a time, each from a socket of its own as
resolvers do, to both servers in turns; each server is alone in a process. Container names: 200 endpoints on one network.
Needs no root. The last line is the ratio of the medians.
"""

import asyncio
import os
import socket
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

from wherry.clock import machine
from wherry.engine.names import Names
from wherry.network import dns_wire
from wherry.network.dns import DnsServer

QUESTIONS, AT_ONCE, CONTAINERS = 1000, 50, 200
HERE = "127.0.0.1"


class Echo(asyncio.DatagramProtocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Send it back."""
        self._transport.sendto(data, addr)


async def echo(told: int) -> None:
    """Serve until the process is ended."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=(HERE, 0))
    os.write(told, str(transport.get_extra_info("sockname")[1]).encode())
    await asyncio.Event().wait()


async def names(told: int) -> None:
    """Serve until the process is ended: what each asker may know is found anew for each question, as in the engine."""
    endpoints = {f"web-{number}": [f"10.9.{number // 250}.{number % 250 + 2}"] for number in range(CONTAINERS)}

    def find(name: str) -> Sequence[str]:
        return [address for known, found in endpoints.items() if name in (known, f"{known}.front") for address in found]

    server = DnsServer(
        [HERE], port=0, zone_of=lambda client: Names(find, lambda address: "", inside=True), upstreams=()
    )
    async with server:
        os.write(told, str(server.port).encode())
        await asyncio.Event().wait()


def start(serve: Callable[[int], Any]) -> tuple[int, int]:
    """Start a server in a process of its own; return (pid, port)."""
    heard, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        asyncio.run(serve(told))
        os._exit(0)
    port = int(os.read(heard, 10))
    for fd in (heard, told):
        os.close(fd)
    return pid, port


async def ask(port: int) -> tuple[float, list[float]]:
    """Ask all questions; return (questions per second, the seconds that each took)."""
    loop = asyncio.get_running_loop()
    numbers = iter(range(QUESTIONS))
    took: list[float] = []

    async def client() -> None:
        for number in numbers:
            head = number.to_bytes(2, "big") + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
            question = head + dns_wire.encode_name(f"web-{number % CONTAINERS}") + b"\x00\x01\x00\x01"
            began = machine.monotonic()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asker:
                asker.connect((HERE, port))
                asker.send(question)
                answer = await loop.sock_recv(asker, 1500)
            took.append(machine.monotonic() - began)
            assert answer[:2] == head[:2]

    began = machine.monotonic()
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return QUESTIONS / (machine.monotonic() - began), took


async def main(rounds: int, ports: dict[str, int]) -> None:
    """Measure and print a table."""
    rates: dict[str, list[float]] = {name: [] for name in ports}
    times: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(rounds + 1):
        for name, port in ports.items():
            rate, took = await ask(port)
            if number:  # the first is to warm up
                rates[name].append(rate)
                times[name] += took
    print(f"{'':12} {'questions/s':>12} {'p50 ms':>8} {'p99 ms':>8} {'most ms':>8}")
    for name in ports:
        ordered = sorted(times[name])
        p50, p99 = (ordered[int(len(ordered) * part)] * 1000 for part in (0.5, 0.99))
        print(f"{name:12} {statistics.median(rates[name]):12.0f} {p50:8.2f} {p99:8.2f} {ordered[-1] * 1000:8.2f}")
    print(f"ratio of the medians: {statistics.median(rates['names']) / statistics.median(rates['echo']):.2f}")


if __name__ == "__main__":
    servers = {name: start(serve) for name, serve in (("names", names), ("echo", echo))}
    try:
        asyncio.run(
            main(int(sys.argv[1]) if len(sys.argv) > 1 else 10, {name: at for name, (_, at) in servers.items()})
        )
    finally:
        for pid, _ in servers.values():
            os.kill(pid, 9)
            os.waitpid(pid, 0)
