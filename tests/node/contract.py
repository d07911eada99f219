"""What every PodRuntime keeps. A backend's test module subclasses `RuntimeContract` and gives `runtime` and `image`."""

import asyncio
import uuid
from contextlib import aclosing

import pytest

from wherry.clock import machine
from wherry.engine.types import ContainerSpec, SandboxSpec
from wherry.errors import NotFound
from wherry.node.plans import sandbox_id
from wherry.node.runtime import ContainerState, Phase, PodRuntime

LONG_S = 20.0


def sandbox(uid: str) -> SandboxSpec:
    labels = {
        "io.kubernetes.pod.uid": uid,
        "io.kubernetes.pod.name": "web",
        "io.kubernetes.pod.namespace": "default",
    }
    return SandboxSpec(id=sandbox_id(uid), hostname="web", labels=labels, cgroup=f"pods/{uid}")


def container(uid: str, image: str, *command: str, attempt: int = 0, log_path: str = "") -> ContainerSpec:
    return ContainerSpec(
        name=f"k8s_app_web_default_{uid}_{attempt}",
        image=image,
        entrypoint=list(command) or None,
        sandbox=sandbox_id(uid),
        labels={
            "io.kubernetes.pod.uid": uid,
            "io.kubernetes.container.name": "app",
            "io.kubernetes.container.attempt": str(attempt),
        },
        log_path=log_path,
    )


class RuntimeContract:
    """The suite."""

    image = "web:1"
    forever: tuple[str, ...] = ()

    @pytest.fixture
    def uid(self) -> str:
        return str(uuid.uuid4())

    async def started(self, runtime: PodRuntime, uid: str, log_path: str = "") -> ContainerState:
        await runtime.ensure_sandbox(uid, "default", "web", sandbox(uid))
        image = await runtime.ensure_image(self.image, "IfNotPresent")
        return await runtime.start(uid, "app", 0, container(uid, image.id, *self.forever, log_path=log_path))

    async def test_a_sandbox_is_made_once_and_found_again(self, runtime: PodRuntime, uid: str) -> None:
        first = await runtime.ensure_sandbox(uid, "default", "web", sandbox(uid))
        again = await runtime.ensure_sandbox(uid, "default", "web", sandbox(uid))
        assert first.address == again.address
        assert [each.uid for each in await runtime.pods()] == [uid]
        await runtime.remove(uid)
        await runtime.remove(uid)
        assert await runtime.pod(uid) is None

    async def test_a_container_runs_until_it_is_stopped(self, runtime: PodRuntime, uid: str) -> None:
        made = await self.started(runtime, uid)
        assert made.phase is Phase.RUNNING
        await runtime.stop(uid, made.id, 5.0)
        found = await runtime.pod(uid)
        assert found is not None
        assert [each.phase for each in found.containers] == [Phase.TERMINATED]
        assert found.containers[0].exit is not None
        assert found.containers[0].exit.code in (137, 143)
        await runtime.stop(uid, made.id, 5.0)
        await runtime.remove(uid)

    async def test_its_end_is_told(self, runtime: PodRuntime, uid: str) -> None:
        made = await self.started(runtime, uid)
        async with aclosing(runtime.changes()) as changes:  # type: ignore[type-var] # every implementation is a generator
            told = asyncio.ensure_future(anext(changes))
            await machine.sleep(0)
            await runtime.stop(uid, made.id, 5.0)
            async with machine.timeout(LONG_S):
                assert await told == uid
        await runtime.remove(uid)

    async def test_an_attempt_can_be_removed_alone(self, runtime: PodRuntime, uid: str) -> None:
        made = await self.started(runtime, uid)
        await runtime.stop(uid, made.id, 0.0)
        await runtime.remove_container(uid, made.id)
        await runtime.remove_container(uid, made.id)
        found = await runtime.pod(uid)
        assert found is not None
        assert list(found.containers) == []
        await runtime.remove(uid)

    async def test_an_image_that_is_not_there_is_named(self, runtime: PodRuntime) -> None:
        with pytest.raises(NotFound, match="missing"):
            await runtime.ensure_image("missing-image:1", "Never")
