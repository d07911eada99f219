"""A pod's volumes as directories of this machine: made before its sandbox, refreshed while it runs, removed with it.

Files made from objects are swapped in whole: `..data` is a link to a directory named by its content, and each file a link
through it, so that a reader sees all of one version or all of the next.
"""

import base64
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wherry.engine.types import Mount
from wherry.errors import Invalid
from wherry.node.plans import expand, field_value, resource_value, safe_relative
from wherry.node.pods import (
    ConfigMapVolume,
    ContainerDef,
    DownwardVolume,
    HostPath,
    Item,
    Pod,
    SecretVolume,
    TokenProjection,
    Volume,
)

Files = dict[str, tuple[bytes, int]]
"""Path inside the volume -> (content, mode)."""

Keys = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the content of volumes comes from.

    `keys(kind, name)` reads a ConfigMap or Secret of the pod's namespace (None: not there); `token(audience, seconds)`
    makes a service-account token bound to the pod.
    """

    keys: Callable[[str, str], Awaitable[Keys | None]]
    token: Callable[[str, int], Awaitable[str]]
    address: str
    host_address: str
    capacity: Mapping[str, str]


async def render(pod: Pod, volume: Volume, sources: Sources) -> Files:
    """Compute the files of a volume that is made from objects. Raises Invalid naming what is missing."""
    files: Files = {}
    if volume.config_map is not None:
        await _add_keys(files, "ConfigMap", volume.config_map.name, volume.config_map, 0o644, sources)
    elif volume.secret is not None:
        await _add_keys(files, "Secret", volume.secret.secret_name, volume.secret, 0o644, sources)
    elif volume.downward_api is not None:
        _add_fields(files, pod, volume.downward_api, 0o644, sources)
    elif volume.projected is not None:
        mode = volume.projected.default_mode if volume.projected.default_mode is not None else 0o644
        for source in volume.projected.sources:
            if source.config_map is not None:
                await _add_keys(files, "ConfigMap", source.config_map.name, source.config_map, mode, sources)
            if source.secret is not None:
                await _add_keys(files, "Secret", source.secret.name, source.secret, mode, sources)
            if source.downward_api is not None:
                _add_fields(files, pod, source.downward_api, mode, sources)
            if source.service_account_token is not None:
                await _add_token(files, source.service_account_token, pod, mode, sources)
    return files


async def _add_keys(
    files: Files, kind: str, name: str, volume: ConfigMapVolume | SecretVolume, mode: int, sources: Sources
) -> None:
    keys = await sources.keys(kind, name)
    if keys is None:
        if volume.optional:
            return
        raise Invalid(f'{kind.lower()} "{name}" not found')
    if volume.default_mode is not None:
        mode = volume.default_mode
    items = volume.items or [Item(key=key, path=key) for key in keys]
    for item in items:
        if item.key not in keys:
            if volume.optional:
                continue
            raise Invalid(f'{kind.lower()} "{name}": key {item.key!r} not found')
        path = str(safe_relative(item.path))
        files[path] = (keys[item.key], mode if item.mode is None else item.mode)


def _add_fields(files: Files, pod: Pod, volume: DownwardVolume, mode: int, sources: Sources) -> None:
    if volume.default_mode is not None:
        mode = volume.default_mode
    for item in volume.items:
        path = str(safe_relative(item.path))
        if item.field_ref is not None:
            text = field_value(pod, item.field_ref, sources.address, sources.host_address)
        elif item.resource_field_ref is not None:
            text = resource_value(pod, pod.spec.containers[0], item.resource_field_ref, sources.capacity)
        else:
            text = ""
        files[path] = (text.encode(), mode if item.mode is None else item.mode)


async def _add_token(files: Files, token: TokenProjection, pod: Pod, mode: int, sources: Sources) -> None:
    text = await sources.token(token.audience, token.expiration_seconds)
    private = pod.spec.security_context.fs_group is None and pod.spec.security_context.run_as_user is not None
    files[str(safe_relative(token.path))] = (text.encode(), 0o600 if private else mode)


def is_from_objects(volume: Volume) -> bool:
    """Whether a volume's files are made from objects, and so may change while the pod runs."""
    return bool(volume.config_map or volume.secret or volume.downward_api or volume.projected)


def write_files(directory: Path, files: Files, *, uid: int | None, gid: int | None) -> bool:
    """Make `directory` show exactly `files`; return whether anything changed."""
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    version = f"..{digest}"
    link = directory / "..data"
    directory.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and os.readlink(link) == version:
        return False
    target = directory / version
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o755)
    for path, (content, mode) in files.items():
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            if os.geteuid() == 0 and (uid is not None or gid is not None):
                os.fchown(fd, -1 if uid is None else uid, -1 if gid is None else gid)
            os.fchmod(fd, mode | (0o040 if gid is not None else 0))
    temporary = directory / "..data_new"
    with suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(version)
    temporary.rename(link)
    tops = {path.split("/")[0] for path in files}
    for name in tops:
        top = directory / name
        if not top.is_symlink():
            top.symlink_to(f"..data/{name}")
    for entry in directory.iterdir():
        if entry.name.startswith(".."):
            if entry.name not in (version, "..data"):
                shutil.rmtree(entry, ignore_errors=True)
        elif entry.name not in tops:
            entry.unlink()
    return True


def prepare_directory(directory: Path, gid: int | None) -> None:
    """Make the directory of an emptyDir: writable for all, and for the pod's fsGroup by its bit."""
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0 and gid is not None:
        os.chown(directory, 0, gid)
        directory.chmod(0o2777)
    else:
        directory.chmod(0o777)


def check_host_path(volume: HostPath) -> str:
    """Check (and, where asked, make) a path of the machine; return it. Raises Invalid in kubelet's words."""
    path, kind = Path(volume.path), volume.type
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
    elif kind == "FileOrCreate" and not path.exists():
        path.touch(mode=0o644)
    tests: dict[str, tuple[Callable[[], bool], str]] = {
        "Directory": (path.is_dir, "a directory"),
        "DirectoryOrCreate": (path.is_dir, "a directory"),
        "File": (path.is_file, "a file"),
        "FileOrCreate": (path.is_file, "a file"),
        "Socket": (path.is_socket, "a socket"),
        "CharDevice": (path.is_char_device, "a character device"),
        "BlockDevice": (path.is_block_device, "a block device"),
    }
    if kind:
        test, words = tests[kind]
        if not test():
            raise Invalid(f"hostPath type check failed: {volume.path} is not {words}")
    elif not path.exists():
        path.mkdir(parents=True, mode=0o755)
    return volume.path


def mounts_of(pod: Pod, definition: ContainerDef, places: Mapping[str, str], env: Mapping[str, str]) -> Sequence[Mount]:
    """Plan the mounts of a container from the places of the pod's volumes. Raises Invalid for a volume or sub-path."""
    volumes = {each.name: each for each in pod.spec.volumes}
    result: list[Mount] = []
    for mount in definition.volume_mounts:
        volume, place = volumes.get(mount.name), places.get(mount.name)
        if volume is None or place is None:
            raise Invalid(f"container {definition.name}: no volume {mount.name!r} in the pod")
        read_only = mount.read_only or is_from_objects(volume)
        inside = expand(mount.sub_path_expr, env) if mount.sub_path_expr else mount.sub_path
        if inside:
            place = str(_inside(Path(place), inside, make=volume.empty_dir is not None))
        result.append(Mount(target=mount.mount_path, source=place, kind="bind", read_only=read_only))
    return result


def _inside(root: Path, sub_path: str, *, make: bool) -> Path:
    """Find a path inside a volume, following only the links that we made ourselves."""
    relative = safe_relative(sub_path)
    place = root / relative
    if make and not place.exists():
        place.mkdir(parents=True, exist_ok=True, mode=0o777)
    real = Path(os.path.realpath(place))
    if real != Path(os.path.realpath(root)) and Path(os.path.realpath(root)) not in real.parents:
        raise Invalid(f"subPath {sub_path!r} leads out of the volume")
    if not real.exists():
        raise Invalid(f"subPath {sub_path!r} is not in the volume")
    return real


def decode_keys(obj: Mapping[str, object], kind: str) -> dict[str, bytes]:
    """The keys of a ConfigMap or Secret as bytes."""
    result: dict[str, bytes] = {}
    data, binary = obj.get("data"), obj.get("binaryData")
    if isinstance(data, dict):
        for key, value in data.items():
            result[str(key)] = base64.b64decode(str(value)) if kind == "Secret" else str(value).encode()
    if isinstance(binary, dict):
        for key, value in binary.items():
            result[str(key)] = base64.b64decode(str(value))
    return result
