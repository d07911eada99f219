"""Take an instance down, and look for what is left: also the sweep that the warden runs when its owner has died.

`python -m wherry.daemon.down ROOT [RUN] [--purge]` sweeps: nothing is asked, everything of the instance on this machine goes;
its state stays, unless --purge is given.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress

from wherry.clock import machine
from wherry.daemon import networks
from wherry.daemon.instance import Instance, NodePlan, Plan, ask
from wherry.errors import NotFound, WherryError
from wherry.wire.blocking import request

Say = Callable[[str], None]

STOP_S = 30.0


def down(instance: Instance, *, purge: bool, say: Say) -> list[str]:
    """Stop everything and remove what the instance has on this machine; return what is left, in words (hopefully none)."""
    instance.load()
    lock = instance.lock()
    try:
        end(instance)
        if purge:
            purge_state(instance)
        left = leftovers(instance)
        if purge and instance.root.exists():
            left.append(f"directory {instance.root}")
        if not left:
            say(f"{instance.root}: down; no process, mount, namespace, link, table or cgroup of it is left")
        return left
    finally:
        os.close(lock)


def purge_state(instance: Instance) -> None:
    """Remove the state of an instance that is down, and give its ranges back."""
    shutil.rmtree(instance.root, ignore_errors=True)
    networks.give_up(instance)


def end(instance: Instance) -> None:
    """Stop the roles in order and sweep; for who holds the instance's lock."""
    _stop_roles(instance)
    sweep(instance)


def _stop_roles(instance: Instance) -> None:
    """Let the warden end the roles in order, and wait until it has gone; or end the engine that stands alone."""
    if instance.engine_record.exists():
        from wherry.daemon import alone

        alone.stop(instance)
        return
    try:
        pid = int(ask(instance.warden_socket, {"op": "status"})["pid"])
        ask(instance.warden_socket, {"op": "stop"})
    except NotFound:
        return
    deadline = machine.monotonic() + STOP_S
    while machine.monotonic() < deadline:
        try:
            ask(instance.warden_socket, {"op": "status"})
        except (NotFound, OSError):
            if not _lives(pid):
                return
        machine.pause(0.01)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def sweep(instance: Instance) -> None:
    """Remove everything of an instance from this machine but its state. It may be repeated."""
    plan: Plan | None = None
    with suppress(WherryError):
        plan = instance.load()
    networks.kill_cgroups(instance)
    networks.unmount(instance, plan)
    asyncio.run(networks.remove_all(instance, plan))
    networks.remove_cgroups(instance)
    shutil.rmtree(instance.run, ignore_errors=True)


def sweep_leftovers(instance: Instance, say: Say) -> None:
    """Before a start: remove what an instance that died without its warden has left."""
    if leftovers(instance):
        say(f"{instance.root}: removing what an instance that was killed has left")
        sweep(instance)


def leftovers(instance: Instance) -> list[str]:
    """Name what of this instance is still on the machine."""
    found = networks.leftovers(instance)
    if instance.run.exists() and any(instance.run.iterdir()):
        found.append(f"directory {instance.run}")
    return found


def remove_node(instance: Instance, plan: Plan, node: NodePlan) -> None:
    """Remove what one node has on this machine, its state too."""
    networks.kill_cgroups(instance, node.name)
    networks.unmount(instance, plan, node)
    asyncio.run(networks.remove_node(instance, plan, node))
    networks.remove_cgroups(instance, node.name)
    shutil.rmtree(instance.node_root(node), ignore_errors=True)
    shutil.rmtree(instance.node_run(node.name), ignore_errors=True)


def delete_node_object(instance: Instance, name: str) -> None:
    """Delete the Node, so that the cluster forgets it."""
    with suppress(WherryError):
        request(str(instance.api_socket), "DELETE", f"/api/v1/nodes/{name}").close()


if __name__ == "__main__":
    swept = Instance.at(*[word for word in sys.argv[1:] if word != "--purge"])
    sweep(swept)
    if "--purge" in sys.argv:
        purge_state(swept)
