"""Bring an instance up: decide (once), make its places, start the warden, wait until all is ready."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec

from wherry.clock import machine
from wherry.daemon import down, networks
from wherry.daemon.instance import (
    DEFAULT_ROOT,
    Instance,
    NodePlan,
    Plan,
    Profile,
    ask,
    environment,
    reachable_by,
    unprivileged_uid,
)
from wherry.daemon.profiles import TIMES
from wherry.daemon.status import is_ready
from wherry.engine import remaps
from wherry.errors import AlreadyExists, Conflict, DeadlineExceeded, Invalid, NotFound
from wherry.model import schema

Say = Callable[[str], None]

API_PORT, REGISTRY_PORT = 6443, 5000
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Options:
    """What `wherry up` was asked for. `owner_fd`: a pipe whose end ends the instance, and its state where it is `temporary`."""

    root: str
    nodes: int
    simulated: int
    profile: str
    durability: str
    timeout_s: float
    owner_fd: int | None = None
    temporary: bool = False
    publish_address: str = "0.0.0.0"
    userns_remap: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """An instance that is ready; `phases` are (name, seconds) of what it took."""

    instance: Instance
    plan: Plan
    phases: Sequence[tuple[str, float]]

    @property
    def summary(self) -> str:
        """One line for people."""
        total = sum(seconds for _, seconds in self.phases)
        real = sum(node.real for node in self.plan.nodes)
        kinds = [f"{real} nodes" if real != 1 else "1 node"] if real else []
        simulated = len(self.plan.nodes) - real
        if simulated:
            kinds.append(f"{simulated} simulated nodes (their pods only seem to run)")
        return f"{' and '.join(kinds)}, profile {self.plan.profile}, ready in {total:.2f} s"


def up(options: Options, say: Say) -> Started:
    """Start the instance of `options.root`, or say that it is up already.

    Raises Conflict when another command is at work on it, DeadlineExceeded with what was still awaited.
    """
    instance = Instance.at(options.root)
    lock = instance.lock()
    try:
        begun = machine.monotonic()
        with suppress(NotFound):
            ask(instance.warden_socket, {"op": "status"})
            raise AlreadyExists(f"{instance.root}: the instance is up already (wherry status; wherry down)")
        _check_kind(instance)
        down.sweep_leftovers(instance, say)
        plan = _decide(instance, options)
        _make_places(instance, plan)
        planned = machine.monotonic()
        asyncio.run(networks.prepare(instance, plan))
        networked = machine.monotonic()
        _start_warden(instance, plan, options.owner_fd, temporary=options.temporary)
        try:
            _wait_ready(instance, plan, options.timeout_s)
        except KeyboardInterrupt:
            say("interrupted: removing what was started")
            down.end(instance)
            raise
        ready = machine.monotonic()
        phases = (
            ("plan", planned - begun), ("node namespaces", networked - planned), ("processes", ready - networked),
        )  # fmt: skip
        return Started(instance, plan, phases)
    finally:
        os.close(lock)


def _check_kind(instance: Instance) -> None:
    """Raise Conflict for the root of an engine that stands alone: it may run, and is not to be swept away."""
    with suppress(NotFound):
        if instance.load().kind == "engine":
            raise Conflict(
                f"{instance.root} holds an engine that stands alone (wherry engine serve): choose another --root, or give it "
                "up with `wherry down --purge`"
            )


def _decide(instance: Instance, options: Options) -> Plan:
    """Read the plan, or make it: what was decided once stays, so that addresses and ports are the same after a restart."""
    publish_address = _address(options.publish_address)
    remaps.read(options.userns_remap)
    try:
        plan = instance.load()
    except NotFound:
        subnets = networks.claim(instance, real=options.nodes > 0)
        api_port, registry_port = _ports(instance, options)
        plan = Plan(
            id=instance.id,
            profile=_profile(options.profile),
            nodes=(),
            service_cidr=subnets.services,
            pod_cidr=subnets.pods,
            server_uid=unprivileged_uid(instance.id) if os.geteuid() == 0 else os.geteuid(),
            api_port=api_port,
            registry_port=registry_port,
            durability="test" if options.durability == "test" else "full",
        )
    else:
        networks.claim_again(instance, plan)
        _check_ports(plan)
    kept = {node.name: node for node in plan.nodes}
    names = [f"node-{number}" for number in range(1, options.nodes + 1)]
    simulated = [f"sim-{number}" for number in range(1, options.simulated + 1)]
    nodes = list(kept.values())
    for name in (*names, *simulated):
        if name not in kept:
            nodes.append(plan_node(instance, plan, nodes, name, simulated=name in simulated))
    plan = msgspec.structs.replace(
        plan,
        nodes=tuple(nodes),
        profile=_profile(options.profile),
        publish_address=publish_address,
        userns_remap=options.userns_remap,
    )
    instance.save(plan)
    return plan


def plan_node(instance: Instance, plan: Plan, nodes: Sequence[NodePlan], name: str, *, simulated: bool) -> NodePlan:
    """Choose a node's subnet: the first index that no node has. Real nodes after the first stand apart."""
    if not name or not all(c.isalnum() or c in "-." for c in name) or name != name.lower() or len(name) > 40:
        raise Invalid(f"node name {name!r}: lower-case letters, digits, '-' and '.', at most 40")
    used = {node.index for node in nodes}
    index = next(number for number in range(1, 255) if number not in used)
    apart = not simulated and any(node.real for node in nodes)
    cidr = networks.node_range(plan.pod_cidr, index)
    address = networks.node_address(instance, plan, index, cidr, apart=apart)
    return NodePlan(name=name, index=index, real=not simulated, apart=apart, pod_cidr=cidr, address=address)


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise Invalid(f"publish-address {text!r}: an address of this machine, or 0.0.0.0 for all") from None


def _profile(text: str) -> Profile:
    return "fast-failover" if text == "fast-failover" else "default"


def _ports(instance: Instance, options: Options) -> tuple[int, int]:
    """Choose the ports of the API and the registry; real instances claim theirs, so that two starts never meet.

    Simulated ones may have no right to claim: each looks in another place first.
    """
    if options.nodes and os.geteuid() == 0:
        first, second = networks.claim_ports(instance, (API_PORT, REGISTRY_PORT))
        return first, second
    apart = 0 if str(instance.root) == DEFAULT_ROOT else 100 + int(instance.id, 16) % 1000
    return _free_port(API_PORT + apart, ()), _free_port(REGISTRY_PORT + apart, ())


def _check_ports(plan: Plan) -> None:
    """Raise Conflict when another program has taken a port that this instance was given: its address may not change."""
    for what, port in (("API", plan.api_port), ("registry", plan.registry_port)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise Conflict(
                    f"port {port}, the {what}'s of this instance, is taken by another program ({error.strerror}): end that "
                    "(ss -ltnp shows it), or give this instance up with `wherry down --purge`"
                ) from None


def _free_port(first: int, taken: Sequence[int]) -> int:
    """Find a TCP port that nobody listens on, from `first` upwards."""
    for port in range(first, first + 2000):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            with suppress(OSError):
                probe.bind(("0.0.0.0", port))
                if port not in taken:
                    return port
    raise Conflict(f"no free port between {first} and {first + 2000}")


def _make_places(instance: Instance, plan: Plan) -> None:
    """Make the directories, those of the server for its own user; and the schema, which that user could not write."""
    if not schema.PATH.exists():
        schema.load()
    instance.root.mkdir(parents=True, exist_ok=True)
    for place in (instance.root / "log", instance.run, instance.run / "nodes"):
        place.mkdir(parents=True, exist_ok=True)
    for place in (instance.server, instance.api_socket.parent):
        place.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(place, plan.server_uid, plan.server_uid)
        place.chmod(0o711 if place == instance.api_socket.parent else 0o700)
    instance.content.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(instance.content, plan.server_uid, plan.server_uid)
    for node in plan.nodes:
        instance.node_root(node).mkdir(parents=True, exist_ok=True)
        run = instance.node_run(node.name)
        run.mkdir(parents=True, exist_ok=True)
        if not node.real and os.geteuid() == 0:
            os.chown(run, plan.server_uid, plan.server_uid)


def server_user(instance: Instance, plan: Plan) -> tuple[int, int]:
    """The (uid, gid) of the server's process, (0, 0) for ours: when the interpreter cannot be reached by another."""
    import wherry

    if os.geteuid() != 0:
        return (0, 0)
    needed = (sys.executable, sys.prefix, sys.base_prefix, Path(wherry.__file__), instance.root)
    if all(reachable_by(plan.server_uid, path) for path in needed):
        return (plan.server_uid, plan.server_uid)
    return (0, 0)


def roles_of(instance: Instance, plan: Plan) -> list[dict[str, Any]]:
    """The processes of an instance: the server, and one for each real node. Simulated nodes live in the server's."""
    uid, gid = server_user(instance, plan)
    roles = [_role(instance, "server", ["server", "registry"], uid=uid, gid=gid)]
    roles += [node_role(instance, plan, node) for node in plan.nodes if node.real]
    return roles


def node_role(instance: Instance, plan: Plan, node: NodePlan) -> dict[str, Any]:
    """The process of one real node: its engine and its agent."""
    role = _role(instance, node.name, ["engine", "agent", f"--node={node.name}"])
    fence_s = TIMES[plan.profile].fence_s
    role["netns"] = networks.namespace_path(instance, node) if node.apart else ""
    role["heartbeat"] = str(instance.heartbeat(node.name))
    role["fence_s"] = fence_s
    return role


def _role(instance: Instance, name: str, words: Sequence[str], *, uid: int = 0, gid: int = 0) -> dict[str, Any]:
    cgroup = networks.role_cgroup(instance, name)
    return {
        "name": name,
        "argv": [sys.executable, "-m", "wherry.daemon.main", str(instance.root), f"--run={instance.run}", *words],
        "env": environment(),
        "uid": uid,
        "gid": gid,
        "netns": "",
        "cgroup": cgroup,
        "log": str(instance.log(name)),
        "heartbeat": "",
        "fence_s": 0,
    }


def _start_warden(instance: Instance, plan: Plan, owner_fd: int | None, *, temporary: bool = False) -> None:
    """Start the warden as a session of its own; it starts the roles."""
    purge = ["--purge"] if temporary else []
    document = {
        "id": instance.id,
        "run": str(instance.run),
        "owner_fd": owner_fd,
        "sweep": [sys.executable, "-m", "wherry.daemon.down", str(instance.root), str(instance.run), *purge],
        "roles": roles_of(instance, plan),
    }
    path = instance.run / "warden.json"
    path.write_bytes(msgspec.json.encode(document))
    warden = Path(__file__).with_name("warden.py")
    with instance.log("warden").open("ab") as output:
        warden_process = subprocess.Popen(
            [sys.executable, "-IS", str(warden), str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            pass_fds=(owner_fd,) if owner_fd is not None else (),
            start_new_session=True,
            cwd="/",
        )
    networks.hand_over(instance, plan, warden_process.pid)
    warden_process.returncode = 0  # it is nobody's child from now on: it outlives us


def _wait_ready(instance: Instance, plan: Plan, timeout_s: float) -> None:
    deadline = machine.monotonic() + timeout_s
    while not is_ready(instance, plan.nodes):
        if machine.monotonic() > deadline:
            raise DeadlineExceeded(
                f"not ready after {timeout_s:g} s; the logs are in {instance.root / 'log'} (wherry status, wherry doctor)"
            )
        machine.pause(POLL_S)


def stay(started: Started, say: Say) -> int:
    """Stay in front until Ctrl-C: the first ends everything in order, the second at once."""
    interrupts = 0

    def on_signal(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            with suppress(NotFound):
                ask(started.instance.warden_socket, {"op": "sweep"})
            os._exit(130)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    say("Ctrl-C stops everything in order; a second one at once.")
    try:
        while True:
            try:
                ask(started.instance.warden_socket, {"op": "status"})
            except NotFound:
                say("the instance was stopped by another command")
                return 0
            machine.pause(1.0)
    except KeyboardInterrupt:
        say("stopping ...")
        left = down.down(started.instance, purge=False, say=say)
        for each in left:
            say(f"left behind: {each}")
        return 1 if left else 0


def add_node(instance: Instance, name: str, *, say: Say) -> None:
    """Add a node to a running instance and wait until it is ready. Raises AlreadyExists, NotFound when it is not up."""
    lock = instance.lock()
    try:
        plan = instance.load()
        if any(node.name == name for node in plan.nodes):
            raise AlreadyExists(f"node {name} is already there")
        ask(instance.warden_socket, {"op": "status"})
        node = plan_node(instance, plan, plan.nodes, name, simulated=False)
        grown = msgspec.structs.replace(plan, nodes=(*plan.nodes, node))
        instance.save(grown)
        _make_places(instance, grown)
        asyncio.run(networks.prepare(instance, grown))
        ask(instance.warden_socket, {"op": "add", "role": node_role(instance, grown, node)})
        _wait_ready(instance, grown, 60.0)
        say(f"node {name} is ready")
    finally:
        os.close(lock)


def remove_node(instance: Instance, name: str, *, say: Say) -> None:
    """Take a node away: its process, its containers, its network, its Node object. Raises NotFound."""
    lock = instance.lock()
    try:
        plan = instance.load()
        node = next((each for each in plan.nodes if each.name == name), None)
        if node is None:
            raise NotFound(f"no node {name}; there are {', '.join(each.name for each in plan.nodes)}")
        if not node.real:
            raise Invalid("simulated nodes live in the server's process: `wherry down`, then `wherry up --simulated N`")
        with suppress(NotFound):
            ask(instance.warden_socket, {"op": "kill", "name": name, "all": True, "forever": True})
        remaining = tuple(each for each in plan.nodes if each.name != name)
        instance.save(msgspec.structs.replace(plan, nodes=remaining))
        down.remove_node(instance, plan, node)
        with suppress(NotFound):
            ask(instance.warden_socket, {"op": "remove", "name": name})
        down.delete_node_object(instance, name)
        say(f"node {name} is gone")
    finally:
        os.close(lock)


def kill_node(instance: Instance, name: str, *, say: Say) -> None:
    """Kill a node as a power cut would: every process in its cgroup and its links at once; nothing is told to the cluster."""
    plan = instance.load()
    node = next((each for each in plan.nodes if each.name == name and each.real), None)
    if node is None:
        raise NotFound(f"no real node {name}; there are {', '.join(each.name for each in plan.nodes if each.real)}")
    ask(instance.warden_socket, {"op": "kill", "name": name, "all": True, "forever": True})
    asyncio.run(networks.cut(instance, node))
    say(f"node {name} is dead: its processes and links are gone; `wherry node remove {name}` clears it away")


def adopt_fork(instance: Instance, parent: Plan, store: str) -> None:
    """Make a forked store the start of a new instance: the parent's nodes by name, simulated, and its address ranges.

    Its server runs as the parent's user, whom the files that both share belong to. Raises AlreadyExists where there is an
    instance.
    """
    if instance.plan_path.exists():
        raise AlreadyExists(f"{instance.root}: an instance is there already")
    instance.server.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(instance.server, parent.server_uid, parent.server_uid)
    shutil.move(store, instance.server / "store")
    nodes = tuple(msgspec.structs.replace(node, real=False, apart=False) for node in parent.nodes)
    ports = _free_port(API_PORT, (parent.api_port,)), _free_port(REGISTRY_PORT, (parent.registry_port,))
    instance.save(
        msgspec.structs.replace(parent, id=instance.id, nodes=nodes, api_port=ports[0], registry_port=ports[1])
    )
