"""What a new container is to be: everything that can be known before anything is made."""

import posixpath
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from wherry.clock import machine
from wherry.engine import foreign, remaps, restarts
from wherry.engine import spec as specs
from wherry.engine.images import Images
from wherry.engine.lives import Lives
from wherry.engine.paths import Paths
from wherry.engine.records import ContainerRecord, ImageMount, Stage
from wherry.engine.sandboxes import Sandboxes
from wherry.engine.signals import signal_number
from wherry.engine.types import ContainerSpec, Mount, SandboxSpec
from wherry.engine.volumes import check_name
from wherry.errors import AlreadyExists, Conflict, Invalid

_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


async def intend(
    spec: ContainerSpec, images: Images, sandboxes: Sandboxes, lives: Lives, paths: Paths
) -> ContainerRecord:
    """Check a spec and return the first state of its row. Raises Invalid, AlreadyExists, NotFound, Conflict."""
    id = spec.id or secrets.token_hex(32)
    if _ID.fullmatch(id) is None:
        raise Invalid(f"container id {id!r}: 64 lower-case hex digits")
    name = spec.name.removeprefix("/") or id[:12]
    check_container_name(name)
    _check_free(lives, id, name)
    if spec.log_driver not in ("cri", "none"):
        raise Invalid(f"container {name}: log driver {spec.log_driver!r}: use cri or none")
    if ":" in spec.log_path or (spec.log_path and not spec.log_path.startswith("/")):
        raise Invalid(f"container {name}: log path {spec.log_path!r}: an absolute path without ':'")
    policy = restarts.parse(spec.restart)
    if spec.auto_remove and policy.name != "no":
        raise Invalid(f"container {name}: it cannot both be removed at its end and restart")
    if spec.on_unhealthy not in ("", "stop", "restart"):
        raise Invalid(f"container {name}: when it is unhealthy: {spec.on_unhealthy!r}: use stop or restart")
    if spec.auto_remove and spec.on_unhealthy == "restart":
        raise Invalid(f"container {name}: it cannot both be removed at its end and restart when it is unhealthy")
    image = await images.resolve(spec.image, spec.platform)
    foreign.check(image.platform, spec.image)
    argv = specs.command_line(spec, image.config)
    stop_signal = specs.stop_signal_of(spec, image.config)
    signal_number(stop_signal)
    specs.resources(spec.limits)
    mounts, anonymous = name_volumes(spec, image.config)
    mounted: list[ImageMount] = []
    for mount in mounts:
        if mount.kind == "image":
            known = await images.resolve(mount.source)
            mounted.append(ImageMount(mount.target, known.digest, [diff_id for _, diff_id in known.layers]))
    if spec.join and not spec.sandbox:
        spec = replace(spec, sandbox_spec=_joining(spec, id, lives, sandboxes))
    if not spec.sandbox:
        remaps.check(spec, own_sandbox(spec, id), sandboxes.remap)
    if spec.sandbox:
        sandbox = sandboxes.row(spec.sandbox)
        if not sandbox.ready:
            raise Conflict(f"sandbox {spec.sandbox}: it is not ready; create it again first")
    _check_free(lives, id, name)  # somebody may have been faster while we read the image
    return ContainerRecord(
        id=id,
        name=name,
        spec=replace(spec, mounts=mounts) if mounts else spec,
        stage=Stage.INTENT,
        sandbox=spec.sandbox or own_sandbox(spec, id).id,
        owns_sandbox=not spec.sandbox,
        image_digest=image.digest,
        image_id=image.id,
        layers=[diff_id for _, diff_id in image.layers],
        argv=argv,
        created=machine.now(),
        log_path=spec.log_path or str(paths.container(id) / "log" / "container.log"),
        stop_signal=stop_signal,
        anonymous=anonymous,
        image_mounts=mounted,
    )


def check_container_name(name: str) -> None:
    """Raise Invalid for what cannot be a container's name."""
    if _NAME.fullmatch(name) is None:
        raise Invalid(f"container name {name!r}: letters, digits, '_', '.' and '-', beginning with a letter or digit")


def own_sandbox(spec: ContainerSpec, id: str) -> SandboxSpec:
    """Say what a container's own sandbox is."""
    if spec.sandbox_spec is None:
        return SandboxSpec(id=id, hostname=id[:12])
    own = spec.sandbox_spec
    hostname = own.hostname or ("" if own.network == "host" or own.host_uts else id[:12])
    return replace(own, id=own.id or id, hostname=hostname)


def _joining(spec: ContainerSpec, id: str, lives: Lives, sandboxes: Sandboxes) -> SandboxSpec:
    """Have the user namespace of the container whose network or processes it joins: the one owns the other."""
    own = own_sandbox(spec, id)
    others = {lives.find(ref).record.sandbox for ref in spec.join.values()}
    remapped = {other for other in others if sandboxes.row(other).ids is not None}
    if len(remapped) > 1 or (remapped and others != remapped):
        raise Invalid(f"container {spec.name}: the containers that it joins are in different user namespaces")
    return replace(own, userns=f"{remaps.OF}{remapped.pop()}" if remapped else remaps.HOST)


def name_volumes(spec: ContainerSpec, image: Mapping[str, Any]) -> tuple[Sequence[Mount], Sequence[str]]:
    """Give anonymous volumes their names, those of the image too: (all mounts, the names). Raises Invalid."""
    mounts: list[Mount] = []
    anonymous: list[str] = []
    wanted = list(spec.mounts)
    if spec.image_volumes:
        taken = {posixpath.normpath(mount.target) for mount in wanted}
        for target in (image.get("config") or {}).get("Volumes") or {}:
            if posixpath.normpath(target) not in taken:
                wanted.append(Mount(target, kind="volume"))
    for mount in wanted:
        if mount.kind == "volume" and not mount.source:
            mount = replace(mount, source=secrets.token_hex(32))
            anonymous.append(mount.source)
        elif mount.kind == "volume":
            check_name(mount.source)
        mounts.append(mount)
    return mounts, anonymous


def _check_free(lives: Lives, id: str, name: str) -> None:
    if lives.has(id) or lives.has(name):
        raise AlreadyExists(f"container name {name!r} is taken: remove that container, or use another name")
