"""Logs, exec and attach: authorised here, done by the agent of the pod's node, whose answer passes through."""

from collections.abc import Sequence
from urllib.parse import quote

import msgspec

from wherry.api.cache import Meta
from wherry.api.core import Core
from wherry.api.target import Target
from wherry.errors import BadRequest
from wherry.model.kinds import PODS
from wherry.wire.http import Request, Response

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_DROPPED = ("authorization", "cookie")


class _Container(msgspec.Struct, frozen=True):
    name: str = ""


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str = ""
    containers: tuple[_Container, ...] = ()
    init_containers: tuple[_Container, ...] | None = None
    ephemeral_containers: tuple[_Container, ...] | None = None


class _State(msgspec.Struct, frozen=True):
    running: dict[str, object] | None = None  # a union with Raw would take null alone


class _ContainerStatus(msgspec.Struct, frozen=True):
    name: str
    state: _State = _State()


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    container_statuses: tuple[_ContainerStatus, ...] = ()
    init_container_statuses: tuple[_ContainerStatus, ...] = ()


class _Pod(msgspec.Struct, frozen=True):
    metadata: Meta
    spec: _Spec
    status: _Status = _Status()


async def logs(core: Core, target: Target, request: Request) -> Response:
    """GET pods/NAME/log: what a container wrote, plain text, perhaps without end (follow)."""
    return await _pass(core, target, request, "containerLogs")


async def stream(core: Core, target: Target, request: Request) -> Response:
    """GET pods/NAME/exec or attach as a WebSocket. Raises BadRequest for SPDY and for no upgrade at all."""
    upgrade = request.upgrade
    if upgrade.startswith("spdy"):
        await _check_running(
            core, target, request
        )  # kubectl comes here after a WebSocket was refused: say the true reason
        raise BadRequest(
            f"{target.resource} over SPDY/3.1 is not supported: use a client that speaks WebSocket (kubectl 1.30 or later)"
        )
    if upgrade != "websocket":
        raise BadRequest(f"{target.resource}: unable to upgrade: the request asks for no WebSocket")
    return await _pass(core, target, request, target.subresource)


async def _check_running(core: Core, target: Target, request: Request) -> None:
    """Raises BadRequest when the container meant does not run."""
    await core.cache.present()
    item = core.find(PODS, target.namespace, target.name)
    if item is None:
        raise target.missing()
    pod = item.view(_Pod)
    container = _container(pod, request.first("container"))
    known = {one.name: one for one in (*pod.status.container_statuses, *pod.status.init_container_statuses)}
    if known and (container not in known or known[container].state.running is None):
        raise BadRequest(f'container "{container}" in pod "{target.name}" is not running')


async def _pass(core: Core, target: Target, request: Request, verb: str) -> Response:
    await core.cache.present()
    item = core.find(PODS, target.namespace, target.name)
    if item is None:
        raise target.missing()
    pod = item.view(_Pod)
    container = _container(pod, request.first("container"))
    if not pod.spec.node_name:
        raise BadRequest(f"pod {target.name} does not have a host assigned: it is not scheduled yet")
    path = f"/{verb}/{target.namespace}/{target.name}/{container}"
    # The node sees who we are, never the credentials of who asked us.
    for name, _ in list(request.headers.items()):
        if name.lower() in _DROPPED or name.lower().startswith("impersonate-"):
            request.headers.remove(name)
    request.path = path
    request.target = quote(path) + (f"?{request.raw_query}" if request.raw_query else "")
    return await core.nodes(pod.spec.node_name, request)


def _container(pod: _Pod, asked: str | None) -> str:
    """The container meant: the one named, the pod's only one, or the one its annotation names. Raises BadRequest."""
    spec = pod.spec
    names: Sequence[str] = [one.name for one in spec.containers]
    others = [one.name for group in (spec.init_containers, spec.ephemeral_containers) for one in group or ()]
    if asked:
        if asked not in (*names, *others):
            raise BadRequest(f"container {asked} is not valid for pod {pod.metadata.name}; it has {', '.join(names)}")
        return asked
    if len(names) == 1:
        return names[0]
    marked = (pod.metadata.annotations or {}).get(_DEFAULT_CONTAINER, "")
    if marked in names:
        return marked
    told = f"a container name must be specified for pod {pod.metadata.name}, choose one of: [{' '.join(names)}]"
    raise BadRequest(told + (f" or one of the init containers: [{' '.join(others)}]" if others else ""))
