"""Device nodes of the machine for containers: all of them for a privileged one, else those that were asked for."""

import os
import re
import stat
from collections.abc import Sequence
from typing import Any

from wherry.engine.spec import Device
from wherry.engine.types import DeviceMap, Limits
from wherry.errors import Invalid

_OWN_FOLDERS = ("pts", "shm", "mqueue", "fd", "hugepages")
_OWN_NODES = ("/dev/console", "/dev/ptmx", "/dev/tty")
_RULE = re.compile(r"([abc]) (\d+|\*):(\d+|\*) ([rwm]{1,3})")


def host_devices() -> Sequence[Device]:
    """List the machine's device nodes, for a privileged container; terminals and shared memory are its own."""
    return _below("/dev", "/dev", "rwm")


def chosen_devices(maps: Sequence[DeviceMap]) -> Sequence[Device]:
    """Find the device nodes that were asked for; a directory stands for all below it. Raises Invalid."""
    found: list[Device] = []
    for each in maps:
        if not each.rights or set(each.rights) - set("rwm"):
            raise Invalid(f"device {each.source}: rights {each.rights!r}: use some of r, w and m")
        place = os.path.realpath(each.source)
        if os.path.isdir(place):
            found += _below(place, each.target, each.rights)
            continue
        try:
            found.append(_device(place, each.target, each.rights, os.stat(place)))
        except OSError as error:
            words = "no such file or directory" if isinstance(error, FileNotFoundError) else error.strerror
            raise Invalid(
                f'error gathering device information while adding custom device "{each.source}": {words}'
            ) from None
    return found


def device_rules(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Read rules such as `c 189:* rwm`. Raises Invalid."""
    rules: list[dict[str, Any]] = []
    for text in texts:
        match = _RULE.fullmatch(text)
        if match is None:
            raise Invalid(f"invalid device cgroup rule format: '{text}'")
        rule: dict[str, Any] = {"allow": True, "type": match[1], "access": match[4]}
        for name, value in (("major", match[2]), ("minor", match[3])):
            if value != "*":
                rule[name] = int(value)
        rules.append(rule)
    return rules


def block_io(limits: Limits, *, with_weights: bool = True) -> dict[str, Any]:
    """Turn limits of reading and writing into `linux.resources.blockIO`. Raises Invalid for what is no device."""
    weights = _by_numbers(limits.io_weights, "weight")
    made: dict[str, Any] = {}
    if with_weights and limits.blkio_weight is not None:
        made["weight"] = limits.blkio_weight
    if with_weights and weights:
        made["weightDevice"] = weights
    for kind, rates in limits.io_rates.items():
        made[f"throttle{kind}Device"] = _by_numbers(rates, "rate")
    return made


def _by_numbers(rows: Sequence[tuple[str, int]], name: str) -> list[dict[str, int]]:
    found: list[dict[str, int]] = []
    for path, value in rows:
        try:
            seen = os.stat(path)
        except OSError as error:
            raise Invalid(f"no such device: {path!r}: {error.strerror}") from None
        if not stat.S_ISBLK(seen.st_mode):
            raise Invalid(f"no such device: {path!r}: it is not a block device")
        found.append({"major": os.major(seen.st_rdev), "minor": os.minor(seen.st_rdev), name: value})
    return found


def _below(directory: str, target: str, rights: str) -> list[Device]:
    found: list[Device] = []
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if folder != "/dev" or name not in _OWN_FOLDERS]
        for name in names:
            path = f"{folder}/{name}"
            try:
                seen = os.lstat(path)
            except FileNotFoundError:
                continue
            if path not in _OWN_NODES and (stat.S_ISCHR(seen.st_mode) or stat.S_ISBLK(seen.st_mode)):
                found.append(_device(path, target + path[len(directory) :], rights, seen))
    return found


def _device(path: str, target: str, rights: str, seen: os.stat_result) -> Device:
    if not stat.S_ISCHR(seen.st_mode) and not stat.S_ISBLK(seen.st_mode):
        raise Invalid(f'error gathering device information while adding custom device "{path}": not a device node')
    kind = "c" if stat.S_ISCHR(seen.st_mode) else "b"
    numbers = (os.major(seen.st_rdev), os.minor(seen.st_rdev))
    return Device(target, kind, *numbers, stat.S_IMODE(seen.st_mode), rights, seen.st_uid, seen.st_gid)
