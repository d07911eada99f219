"""Probes of a running container: one task each, which turns answers into a verdict by thresholds."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from wherry.clock import Clock, machine
from wherry.errors import Invalid, WherryError
from wherry.node.pods import ContainerDef, Handler, Pod, Probe
from wherry.node.runtime import PodRuntime

log = logging.getLogger(__name__)

EAGER_FIRST_S = 0.02
"""The first pause of an eager probe; each next one is twice as long, up to the period."""


@dataclass(frozen=True, slots=True)
class Target:
    """One container of a pod, to be probed."""

    pod: Pod
    definition: ContainerDef
    container_id: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What one try said."""

    good: bool
    words: str


class Verdict:
    """Counts answers in a row and says when the verdict changes."""

    def __init__(self, probe: Probe, *, good: bool) -> None:
        self._probe = probe
        self._row = 0
        self._last: bool | None = None
        self.good = good

    def take(self, good: bool) -> bool:
        """Take one answer; return whether the threshold of its kind is reached now."""
        self._row = self._row + 1 if self._last is good else 1
        self._last = good
        needed = self._probe.success_threshold if good else self._probe.failure_threshold
        if self._row < needed:
            return False
        self.good = good
        return True


def port_number(definition: ContainerDef, port: int | str) -> int:
    """Find a port by number or by the name that the container gives it. Raises Invalid."""
    if isinstance(port, int):
        return port
    for each in definition.ports:
        if each.name == port:
            return each.container_port
    if port.isdigit():
        return int(port)
    raise Invalid(f"container {definition.name}: no port named {port!r}")


async def perform(runtime: PodRuntime, target: Target, handler: Handler, timeout_s: float) -> Answer:
    """Do what a probe or hook says, once."""
    uid = target.pod.uid
    try:
        async with machine.timeout(timeout_s + 0.5):
            if handler.http_get is not None:
                action = handler.http_get
                status = await runtime.probe_http(
                    uid,
                    scheme=action.scheme.lower(),
                    port=port_number(target.definition, action.port),
                    path=action.path or "/",
                    host=action.host,
                    headers=[(each.name, each.value) for each in action.http_headers],
                    timeout_s=timeout_s,
                )
                return Answer(200 <= status < 400, f"HTTP probe failed with statuscode: {status}")
            if handler.tcp_socket is not None:
                action = handler.tcp_socket
                port = port_number(target.definition, action.port)
                await runtime.probe_tcp(uid, port=port, host=action.host, timeout_s=timeout_s)
                return Answer(True, "")
            if handler.exec is not None:
                return await _command(runtime, target, handler.exec.command, timeout_s)
            if handler.sleep is not None:
                await machine.sleep(handler.sleep.seconds)
            return Answer(True, "")
    except TimeoutError:
        return Answer(False, f"no answer within {timeout_s:g} s")
    except WherryError as error:
        return Answer(False, error.message)


async def _command(runtime: PodRuntime, target: Target, argv: list[str], timeout_s: float) -> Answer:
    session = await runtime.exec(target.pod.uid, target.container_id, argv, tty=False, stdin=False)
    said = bytearray()
    try:
        async with machine.timeout(timeout_s):
            async for _, data in session.output():
                if len(said) < 4096:
                    said += data
            code = await session.wait()
    finally:
        await session.close()
    return Answer(code == 0, f"command exited with {code}: {bytes(said).decode(errors='replace').strip()}")


async def watch(
    runtime: PodRuntime,
    target: Target,
    probe: Probe,
    clock: Clock,
    *,
    good: bool,
    eager: bool,
    changed: Callable[[bool, str], Awaitable[None]],
    failed: Callable[[str], None],
) -> None:
    """Probe until cancelled. `changed(verdict, words)` at each verdict by threshold; `failed(words)` at each bad answer.

    Periods are cluster time: a moved clock moves them too. `eager` is for readiness: until the first good answer it asks
    more often than the period, so that a container that starts in milliseconds is ready in milliseconds.
    """
    verdict = Verdict(probe, good=good)
    known: bool | None = None
    pause_s = EAGER_FIRST_S
    await clock.sleep(probe.initial_delay_seconds)
    while True:
        answer = await perform(runtime, target, probe, float(probe.timeout_seconds))
        if not answer.good:
            failed(answer.words)
        if verdict.take(answer.good) and verdict.good is not known:
            known = verdict.good
            await changed(verdict.good, answer.words)
        if eager and known is not True and pause_s < probe.period_seconds:
            await clock.sleep(pause_s)
            pause_s *= 2
        else:
            await clock.sleep(float(max(1, probe.period_seconds)))
