"""One process of an instance: the roles named on its command line, until SIGTERM.

`python -m wherry.daemon.main ROOT ROLE... [--node=NAME] [--run=DIR]` with the roles `server`, `registry`, `engine`, `agent`.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from wherry.clock import RealClock
from wherry.daemon.instance import Instance, Plan
from wherry.daemon.phases import Phases
from wherry.errors import Invalid, WherryError

log = logging.getLogger("wherry")

SETTLE_S = 1.0
"""After being ready: the first requests come before the collector does."""


async def run(instance: Instance, plan: Plan, roles: list[str], node: str, phases: Phases) -> None:
    """Run the roles until a signal says stop; the first SIGTERM ends in order, a second at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(143)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    clock = RealClock()
    async with AsyncExitStack() as stack:
        if "server" in roles:
            from wherry.daemon.server import server_role

            phases.mark("imports")
            server = await stack.enter_async_context(server_role(instance, plan, clock, mark=phases.mark))
            simulated = [each for each in plan.nodes if not each.real]
            if simulated:
                from wherry.daemon.simulated import simulated_nodes

                await stack.enter_async_context(simulated_nodes(instance, plan, server, clock))
        if "registry" in roles:
            from wherry.daemon.server import registry_role

            await stack.enter_async_context(registry_role(instance, plan, clock))
            phases.mark("registry")
        if "engine" in roles:
            from wherry.daemon.engine import engine_role

            chosen = next((each for each in plan.nodes if each.name == node), None)
            if chosen is None:
                raise Invalid(f"--node={node}: not a node of this instance")
            phases.mark("imports")
            engine = await stack.enter_async_context(engine_role(instance, plan, chosen, clock, mark=phases.mark))
            if "agent" in roles:
                from wherry.daemon.machine import agent_role

                await stack.enter_async_context(agent_role(instance, plan, chosen, engine, clock, mark=phases.mark))
        log.info("%s: ready %s", ", ".join(roles), phases)
        loop.call_later(SETTLE_S, _settle)
        await stop.wait()
        log.info("%s: stopping", ", ".join(roles))


def _settle() -> None:
    """What was made at start stays: keep the collector from walking over it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def main() -> None:
    """Read the command line, run, and exit: 0 in order, 1 for an error that restarting may cure."""
    gc.disable()  # start-up makes much and drops little
    phases = Phases()
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
    node = options.get("node", "")
    logging.basicConfig(
        stream=sys.stderr, level=os.environ.get("WHERRY_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s.%(msecs)03d %(levelname).1s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S",
    )  # fmt: skip
    instance = Instance.at(Path(words[0]), options.get("run"))
    os.umask(0o022)
    try:
        plan = instance.load()
        asyncio.run(run(instance, plan, words[1:], node, phases))
    except WherryError as error:
        log.error("%s", error.message)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
