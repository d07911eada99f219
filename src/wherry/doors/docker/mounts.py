"""`Binds`, `Mounts`, `Tmpfs`, `Volumes` and `VolumeDriver` of a new container as mounts of the engine, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from wherry.engine.types import Container, Mount
from wherry.errors import BadRequest, Unsupported

Json = Mapping[str, Any]

SPREADS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_IGNORED_MODES = ("z", "Z", "", "consistent", "cached", "delegated")
"""SELinux labels (there is none here) and macOS's consistency, which change nothing on this machine."""
_MOUNT = (
    "Type", "Source", "Target", "ReadOnly", "Consistency", "BindOptions", "VolumeOptions", "TmpfsOptions", "ImageOptions",
)  # fmt: skip
RECURSIVE = (1, 44)
"""The first version of the API whose read-only mounts are read-only all the way down."""
_CONSISTENCIES = ("", "default", "consistent", "cached", "delegated")
_TMPFS_FLAGS = frozenset((
    "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion", "lazytime", "loud", "mand",
    "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nolazytime", "nomand", "norelatime", "nostrictatime",
    "nosuid", "private", "rbind", "relatime", "remount", "ro", "rprivate", "rshared", "rslave", "runbindable", "rw",
    "shared", "silent", "slave", "strictatime", "suid", "sync", "unbindable",
))  # fmt: skip
_TMPFS_VALUES = ("mode", "uid", "gid", "size", "nr_inodes", "nr_blocks", "mpol")


def read_mounts(body: Json, host: Json, version: tuple[int, int] = RECURSIVE) -> Sequence[Mount]:
    """Read all mounts of `POST /containers/create`. Raises BadRequest, Unsupported."""
    below = version >= RECURSIVE
    driver = str(host.get("VolumeDriver") or "local")
    if driver != "local":
        raise Unsupported(f"HostConfig.VolumeDriver {driver!r} (--volume-driver): only local is supported by wherry")
    result = [_bind(str(bind), below=below) for bind in host.get("Binds") or ()]
    result += [_mount(mount, below=below) for mount in host.get("Mounts") or ()]
    for target, options in (host.get("Tmpfs") or {}).items():
        if not str(target).startswith("/") or str(target).strip("/") == "":
            raise BadRequest(f"invalid tmpfs mount destination: {target!r}: an absolute path that is not / is wanted")
        words = [each for each in str(options).split(",") if each]
        _check_tmpfs(words)
        result.append(
            Mount(str(target), "", "tmpfs", "ro" in words, [word for word in words if word not in ("ro", "rw")])
        )
    known = {mount.target.rstrip("/") for mount in result}
    for target in body.get("Volumes") or {}:
        if str(target).rstrip("/") not in known:
            result.append(Mount(str(target), "", "volume"))
    seen: set[str] = set()
    for mount in result:
        if mount.target.rstrip("/") in seen:
            raise BadRequest(f"Duplicate mount point: {mount.target}")
        seen.add(mount.target.rstrip("/"))
    return result


def borrowed(references: Sequence[str], containers: Mapping[str, Container], taken: Sequence[Mount]) -> Sequence[Mount]:
    """`--volumes-from`: the binds and volumes of other containers, where nothing is mounted yet. Raises BadRequest."""
    targets = {mount.target.rstrip("/") for mount in taken}
    result: list[Mount] = []
    for reference in references:
        name, _, mode = reference.partition(":")
        if mode not in ("", "ro", "rw", "z", "Z"):
            raise BadRequest(f"invalid volumes-from specification: {reference!r}")
        for mount in containers[name].spec.mounts:
            if mount.kind == "tmpfs" or mount.target.rstrip("/") in targets:
                continue
            targets.add(mount.target.rstrip("/"))
            result.append(
                Mount(
                    mount.target,
                    mount.source,
                    mount.kind,
                    mount.read_only or mode == "ro",
                    mount.options,
                    copy=mount.copy,
                    recursive=mount.recursive,
                    read_only_below=mount.read_only_below,
                    subpath=mount.subpath,
                )
            )
    return result


def show_mounts(container: Container) -> Sequence[Json]:
    """The `Mounts` list of a container."""
    result: list[Json] = []
    asked = container.spec.asked.get("HostConfig") or {}
    binds = [str(each).split(":") for each in asked.get("Binds") or ()]
    modes = {parts[1].rstrip("/"): parts[2] for parts in binds if len(parts) == 3}
    for mount in container.spec.mounts:
        if mount.kind == "tmpfs" and mount.target in (asked.get("Tmpfs") or {}):
            continue  # Docker shows those of --tmpfs only where they were asked for
        spread = next((word for word in mount.options if word in SPREADS), "rprivate" if mount.kind == "bind" else "")
        shown: dict[str, Any] = {"Type": mount.kind}
        if mount.kind == "volume":
            shown |= {"Name": mount.source, "Source": container.volumes.get(mount.source, ""), "Driver": "local"}
        else:
            shown["Source"] = mount.source
        mode = modes.get(mount.target.rstrip("/"), "")
        shown |= {"Destination": mount.target, "Mode": mode, "RW": not mount.read_only, "Propagation": spread}
        result.append(shown)
    return result


def _check_tmpfs(words: Sequence[str]) -> None:
    for word in words:
        name, sign, value = word.partition("=")
        known = name in _TMPFS_VALUES if sign else name in _TMPFS_FLAGS
        if not known or (sign and not value):
            raise BadRequest(f'invalid tmpfs option ["{word}"]')


def _bind(text: str, *, below: bool) -> Mount:
    parts = text.split(":")
    if len(parts) == 1 and text.startswith("/"):
        return Mount(text, "", "volume")
    if len(parts) not in (2, 3) or not parts[0] or not parts[1].startswith("/"):
        raise BadRequest(f"invalid volume specification: '{text}'")
    if parts[1].strip("/") == "":
        raise BadRequest(f"invalid volume specification: '{text}': destination can't be '/'")
    modes = parts[2].split(",") if len(parts) == 3 else []
    unknown = [mode for mode in modes if mode not in ("ro", "rw", "nocopy", *SPREADS, *_IGNORED_MODES)]
    if unknown:
        raise BadRequest(f"invalid mode: {unknown[0]} in '{text}'")
    spread = [mode for mode in modes if mode in SPREADS]
    is_bind = parts[0].startswith("/")
    if spread and not is_bind:
        raise BadRequest(f"invalid mode: {spread[0]} in '{text}': a volume has no propagation")
    kind = "bind" if is_bind else "volume"
    if len([mode for mode in modes if mode in ("ro", "rw")]) > 1 or len(spread) > 1:
        raise BadRequest(f"invalid mode: {parts[2]}")
    return Mount(
        parts[1], parts[0], kind, "ro" in modes, spread, copy="nocopy" not in modes, create=is_bind, read_only_below=below
    )  # fmt: skip


def _mount(mount: Json, *, below: bool) -> Mount:
    kind = str(mount.get("Type") or "")
    source, target = str(mount.get("Source") or ""), str(mount.get("Target") or "")
    _refuse("", mount, _MOUNT)
    if str(mount.get("Consistency") or "") not in _CONSISTENCIES:
        raise BadRequest(f"invalid mount config: unknown consistency {mount['Consistency']!r}")
    if kind not in ("bind", "volume", "tmpfs", "image"):
        raise Unsupported(f"HostConfig.Mounts: type {kind!r} is not supported by wherry")
    if not target.startswith("/"):
        raise BadRequest(
            f"invalid mount config for type {kind!r}: invalid mount target, must be an absolute path: {target!r}"
        )
    if target.strip("/") == "":
        raise BadRequest(f"invalid mount config for type {kind!r}: invalid specification: destination can't be '/'")
    bind, volume, tmpfs, image = (
        _part(mount, name) for name in ("BindOptions", "VolumeOptions", "TmpfsOptions", "ImageOptions")
    )
    for name, part, of in (
        ("ImageOptions", image, "image"),
        ("BindOptions", bind, "bind"),
        ("VolumeOptions", volume, "volume"),
        ("TmpfsOptions", tmpfs, "tmpfs"),
    ):
        if part and kind != of:
            raise BadRequest(f"invalid mount config for type {kind!r}: field {name} must not be specified")
    read_only = bool(mount.get("ReadOnly"))
    match kind:
        case "bind":
            if not source.startswith("/"):
                raise BadRequest(
                    f'invalid mount config for type "bind": invalid mount source, must be an absolute path: {source!r}'
                )
            known = (
                "Propagation",
                "NonRecursive",
                "CreateMountpoint",
                "ReadOnlyNonRecursive",
                "ReadOnlyForceRecursive",
            )
            _refuse("BindOptions.", bind, known)
            forced = bool(bind.get("ReadOnlyForceRecursive"))
            for field in ("ReadOnlyNonRecursive", "ReadOnlyForceRecursive"):
                if bind.get(field) and not read_only:
                    raise BadRequest(f"mount source: {source!r}: {field} needs ReadOnly")
            if forced and (bind.get("ReadOnlyNonRecursive") or bind.get("NonRecursive")):
                raise BadRequest(
                    "BindOptions: ReadOnlyForceRecursive conflicts with the options that are not recursive"
                )
            if forced and bind.get("Propagation") not in ("rprivate",):
                raise BadRequest("BindOptions: ReadOnlyForceRecursive needs the propagation rprivate")
            spread = str(bind.get("Propagation") or "")
            if spread and spread not in SPREADS:
                raise BadRequest(f"invalid propagation mode: {spread!r}")
            return Mount(
                target, source, kind, read_only, [spread] if spread else [], create=bool(bind.get("CreateMountpoint")),
                recursive=not bind.get("NonRecursive"),
                read_only_below=forced or (below and not bind.get("ReadOnlyNonRecursive")),
            )  # fmt: skip
        case "tmpfs":
            if source:
                raise BadRequest('invalid mount config for type "tmpfs": field Source must not be specified')
            _refuse("TmpfsOptions.", tmpfs, ("SizeBytes", "Mode", "Options"))
            size, mode = tmpfs.get("SizeBytes"), tmpfs.get("Mode")
            options = [f"size={int(size)}"] if size else []
            further = ["=".join(str(word) for word in pair) for pair in tmpfs.get("Options") or ()]
            _check_tmpfs(further)
            options += further
            return Mount(target, "", kind, read_only, options + ([f"mode={int(mode):o}"] if mode else []))
        case "image":
            if not source:
                raise BadRequest('invalid mount config for type "image": field Source must not be empty')
            _refuse("ImageOptions.", image, ("Subpath",))
            return Mount(target, source, kind, True, subpath=_subpath(image))
        case _:
            _refuse("VolumeOptions.", volume, ("NoCopy", "Labels", "DriverConfig", "Subpath"))
            subpath = _subpath(volume)
            if subpath and not source:
                raise BadRequest(
                    'invalid mount config for type "volume": must not set Subpath when using anonymous volumes'
                )
            driver = _part(volume, "DriverConfig")
            if driver.get("Name") not in (None, "", "local"):
                raise Unsupported(f"HostConfig.Mounts: volume driver {driver['Name']!r}: only local is supported")
            return Mount(
                target, source, kind, read_only, copy=not volume.get("NoCopy") and not subpath,
                labels=_words(volume, "Labels"), driver_options=_words(driver, "Options"), read_only_below=below,
                subpath=subpath,
            )  # fmt: skip


def _subpath(part: Json) -> str:
    path = str(part.get("Subpath") or "")
    if path.startswith("/") or ".." in path.split("/"):
        raise BadRequest(f"invalid mount config: Subpath {path!r}: a path within the volume or image is wanted")
    return path


def _part(whole: Json, name: str) -> Json:
    part = whole.get(name) or {}
    if not isinstance(part, dict):
        raise BadRequest(f"HostConfig.Mounts: {name}: an object is wanted")
    return part


def _words(whole: Json, name: str) -> dict[str, str]:
    return {str(key): str(value) for key, value in _part(whole, name).items()}


def _refuse(where: str, values: Json, known: Sequence[str]) -> None:
    for name, value in values.items():
        if name not in known and value:
            raise Unsupported(f"HostConfig.Mounts: {where}{name} is not supported by wherry: {value!r}; see SCOPE.md")
