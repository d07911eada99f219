"""The simulated runtime keeps the contract, and its script."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.node.contract import RuntimeContract, container, sandbox
from wherry.clock import RealClock, VirtualClock
from wherry.errors import Invalid, Unavailable
from wherry.node.runtime import Phase
from wherry.node.simulated import ANNOTATION, SimulatedRuntime


class TestContract(RuntimeContract):
    @pytest.fixture
    async def runtime(self) -> AsyncIterator[SimulatedRuntime]:
        made = SimulatedRuntime(RealClock())
        yield made
        await made.close()


def scripted(script: str):
    return replace(sandbox("u"), labels={ANNOTATION: script})


async def test_a_script_says_when_a_container_runs_and_how_it_ends() -> None:
    clock = VirtualClock()
    runtime = SimulatedRuntime(clock)
    await runtime.ensure_sandbox("u", "default", "web", scripted('{"start_s": 2, "run_s": 10, "exit": 7}'))
    starting = asyncio.create_task(runtime.start("u", "app", 0, container("u", "i")))
    await asyncio.sleep(0)
    assert not starting.done()
    await clock.advance(2)
    assert (await starting).phase is Phase.RUNNING
    await asyncio.sleep(0)
    await clock.advance(10)
    found = await runtime.pod("u")
    assert found is not None
    assert found.containers[0].exit is not None
    assert found.containers[0].exit.code == 7
    await runtime.close()


async def test_a_script_says_what_probes_find() -> None:
    runtime = SimulatedRuntime(VirtualClock())
    await runtime.ensure_sandbox("u", "default", "web", scripted('{"ready": false}'))
    assert await runtime.probe_http("u", scheme="http", port=1, path="/", host="", headers=(), timeout_s=1) == 503
    with pytest.raises(Unavailable):
        await runtime.probe_tcp("u", port=1, host="", timeout_s=1)


async def test_a_script_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(Invalid, match=r"wherry\.dev/simulate"):
        await SimulatedRuntime(VirtualClock()).ensure_sandbox("u", "d", "w", scripted('{"speed": 3}'))


async def test_addresses_run_out_and_come_back() -> None:
    runtime = SimulatedRuntime(VirtualClock(), pod_cidr="10.1.0.0/29")
    for index in range(5):
        await runtime.ensure_sandbox(f"u{index}", "d", "w", sandbox(f"u{index}"))
    with pytest.raises(Unavailable, match="no address is left"):
        await runtime.ensure_sandbox("more", "d", "w", sandbox("more"))
    await runtime.remove("u3")
    assert (await runtime.ensure_sandbox("more", "d", "w", sandbox("more"))).address == "10.1.0.5"
