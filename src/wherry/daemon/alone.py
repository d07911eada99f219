"""An engine that stands alone: containers, images, builds, networks and volumes behind a Docker socket, and no cluster.

One process, in the foreground, under systemd or a shell; no warden, no API server, no scheduler. Containers live under
conmon: they outlive the process however it ends, and the next start takes them up. `wherry down` ends it with all of them.
"""

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import msgspec

from wherry.clock import Clock, RealClock
from wherry.daemon import networks
from wherry.daemon.engine import Doorway, RunningEngine, engine_role
from wherry.daemon.instance import Instance, NodePlan, Plan
from wherry.daemon.phases import Phases
from wherry.errors import AlreadyExists, Conflict, Invalid, NotFound, Unauthorized
from wherry.host import processes
from wherry.host.processes import Identity
from wherry.network.dns import DnsServer
from wherry.network.zone import Zone

log = logging.getLogger(__name__)

NODE = "engine"
SETTLE_S, TRIM_S = 1.0, 60.0
_M_ARENA_MAX = -8
STOP_S = 30.0
PLAIN_PORT = 2375
"""Docker's port for TCP without TLS: who names it most likely wants what we refuse."""


@dataclass(frozen=True, slots=True)
class Options:
    """How it runs. `sockets` are more unix sockets, `tcp` is HOST:PORT for mutual TLS, "" for none; `tls_names` are more
    names that clients call this machine by; `group` owns the sockets ("": `wherry`, where there is one).
    """

    root: Path
    publish_address: str = "0.0.0.0"
    userns_remap: str = ""
    sockets: Sequence[str] = ()
    group: str = ""
    tcp: str = ""
    tls_names: Sequence[str] = ()


class Record(msgspec.Struct, frozen=True):
    """The process that runs the engine, and where it answers; `RUN/engine.json`."""

    boot_id: str
    pid: int
    start_ticks: int
    addresses: tuple[str, ...]
    sockets: tuple[str, ...] = ()

    @property
    def identity(self) -> Identity:
        """The process, for ever."""
        return Identity(self.boot_id, self.pid, self.start_ticks)


@asynccontextmanager
async def engine_alone(
    options: Options, clock: Clock, phases: Phases | None = None
) -> AsyncGenerator[tuple[RunningEngine, Sequence[str]]]:
    """Run it; gives the engine and the addresses of its Docker API.

    Raises Unauthorized without root, Conflict for a root that holds a cluster, AlreadyExists where an engine runs on it.
    """
    if os.geteuid() != 0:
        raise Unauthorized("an engine needs root: its containers are made of namespaces, mounts and nftables")
    phases = phases or Phases()
    address = _listening(options.tcp)
    instance = Instance.at(options.root)
    lock = instance.lock()
    async with AsyncExitStack() as stack:
        try:
            if (before := record_of(instance)) is not None and processes.is_alive(before.identity):
                raise AlreadyExists(f"{instance.root}: an engine runs on it already (process {before.pid})")
            for path in before.sockets if before is not None else ():
                with suppress(OSError):  # of an engine that was killed; where it is wanted again, it is made anew
                    os.unlink(path)
            plan = decide(instance, options)
            _make_places(instance, plan)
            await networks.prepare(instance, plan)
            phases.mark("plan")
            context = None
            if address is not None:
                from wherry.daemon.doorkeys import DoorCertificate, names_of_machine

                named = [each for each in (address[0],) if each not in ("", "0.0.0.0", "::")]
                certificate = DoorCertificate(instance.engine_pki, names_of_machine([*options.tls_names, *named]))
                context = await certificate.start()
                keeping = asyncio.create_task(certificate.keep(context), name="certificate")
                stack.push_async_callback(_end, keeping)
                phases.mark("tls")
            doorway = Doorway([Path(each) for each in options.sockets], options.group, address, context, _host_name())
            running_engine = await stack.enter_async_context(
                engine_role(instance, plan, plan.nodes[0], clock, doorway=doorway, mark=phases.mark)
            )
            zone = Zone("invalid")  # no names of our own here: all is asked of the machine's resolvers
            await stack.enter_async_context(DnsServer([running_engine.network.gateway], zone=zone))
            phases.mark("dns")
            _remember(instance, options, running_engine.addresses)
        finally:
            os.close(lock)
        yield running_engine, running_engine.addresses


async def serve(options: Options) -> None:
    """Run until SIGTERM or SIGINT; print the addresses when it answers. Containers go on running afterwards."""
    gc.disable()  # start-up makes much and drops little
    _one_arena()
    phases = Phases()
    phases.mark("imports")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(143)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    os.umask(0o022)
    async with engine_alone(options, RealClock(), phases) as (_, addresses):
        log.info("engine: ready %s", phases)
        print("\n".join(f"engine: {each}" for each in addresses), flush=True)
        _tell_systemd("READY=1")
        loop.call_later(SETTLE_S, _settle)
        await stop.wait()
        _tell_systemd("STOPPING=1")
        log.info("engine: stopping; containers go on")


def decide(instance: Instance, options: Options) -> Plan:
    """Read the plan, or make it: what was decided once stays. Raises Conflict for a cluster's root, Invalid."""
    try:
        published = str(ip_address(options.publish_address))
    except ValueError:
        raise Invalid(
            f"publish-address {options.publish_address!r}: an address of this machine, or 0.0.0.0 for all"
        ) from None
    try:
        plan = instance.load()
    except NotFound:
        subnets = networks.claim(instance, real=True)
        cidr = networks.node_range(subnets.pods, 1)
        plan = Plan(
            id=instance.id,
            profile="default",
            nodes=(),
            service_cidr=subnets.services,
            pod_cidr=subnets.pods,
            server_uid=0,
            api_port=0,
            registry_port=0,
            kind="engine",
        )
        address = networks.node_address(instance, plan, 1, cidr, apart=False)
        node = NodePlan(name=NODE, index=1, real=True, apart=False, pod_cidr=cidr, address=address)
        plan = msgspec.structs.replace(plan, nodes=(node,))
    else:
        if plan.kind != "engine":
            raise Conflict(
                f"{instance.root} holds a cluster, whose nodes have engines of their own (wherry up); "
                "choose another --root for an engine that stands alone"
            )
        networks.claim_again(instance, plan)
    plan = msgspec.structs.replace(plan, publish_address=published, userns_remap=options.userns_remap)
    instance.save(plan)
    return plan


def record_of(instance: Instance) -> Record | None:
    """What the last engine of a root said of itself; None where there was none since the boot."""
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(instance.engine_record.read_bytes(), type=Record)
    return None


def running_record(instance: Instance) -> Record | None:
    """The engine that runs on a root now."""
    found = record_of(instance)
    return found if found is not None and processes.is_alive(found.identity) else None


def stop(instance: Instance) -> None:
    """End the engine of a root, and its sockets elsewhere; its containers go on. Raises Broken when it does not end."""
    found = record_of(instance)
    if found is None:
        return
    asyncio.run(processes.end(found.identity, grace_s=STOP_S))
    for path in found.sockets:
        with suppress(OSError):
            os.unlink(path)


def _remember(instance: Instance, options: Options, addresses: Sequence[str]) -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    record = Record(me.boot_id, me.pid, me.start_ticks, tuple(addresses), tuple(map(os.path.abspath, options.sockets)))
    temporary = instance.engine_record.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(record))
    temporary.rename(instance.engine_record)


def _make_places(instance: Instance, plan: Plan) -> None:
    for place in (instance.run, instance.content, instance.node_root(plan.nodes[0]), instance.node_run(NODE)):
        place.mkdir(parents=True, exist_ok=True)


def _listening(text: str) -> tuple[str, int] | None:
    """Read --tcp. Raises Invalid; plain TCP is refused by its name."""
    if not text:
        return None
    from wherry.daemon.registry import split_address

    host, port = split_address(text.removeprefix("tcp://"), "tcp")
    if port == PLAIN_PORT:
        raise Invalid(
            f"tcp {text!r}: port {PLAIN_PORT} is Docker's for TCP without TLS, which wherry does not offer: whoever "
            "reaches it would be root. Use 2376: clients show a certificate (wherry engine client DIR)"
        )
    return host, port


def _host_name() -> str:
    return socket.gethostname()


def _tell_systemd(text: str) -> None:
    """Say how we are to who started us and asks for it. Source: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] in ("/", "@"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.sendto(text.encode(), "\0" + path[1:] if path[0] == "@" else path)


def _settle() -> None:
    """What was made at start stays: keep the collector from walking over it, and give back what was needed only then."""
    gc.collect()
    gc.freeze()
    gc.enable()
    _trim()


def _trim() -> None:
    """Give free memory back to the machine, now and then: a look at a large ruleset takes 13 MB for a moment."""
    with suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    asyncio.get_running_loop().call_later(TRIM_S, _trim)


def _one_arena() -> None:
    """Have all threads share one heap: each of them would keep its own for ever. Source: mallopt(3)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
