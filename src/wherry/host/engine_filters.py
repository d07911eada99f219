"""Seccomp filters compiled once, through libseccomp: crun would compile the same 400 rules for every container (15 ms)."""

import ctypes
import os
from collections.abc import Mapping
from typing import Any

from wherry.errors import Broken

_ACTIONS = {
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_OPTIMIZE, _AS_A_TREE = 8, 2
_UNKNOWN_CALL = -1
_EEXIST = 17


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def compile_filter(rules: Mapping[str, Any]) -> bytes | None:
    """Compile an OCI `linux.seccomp` to a BPF program; None where libseccomp is missing or a rule is beyond us.

    Calls that this libseccomp does not know are left out, as the OCI runtimes do. Raises Broken when it refuses a rule.
    """
    library = _load()
    if library is None:
        return None
    default = _action(rules["defaultAction"], rules.get("defaultErrnoRet"))
    if default is None:
        return None
    context = library.seccomp_init(default)
    if not context:
        raise Broken("libseccomp: seccomp_init failed")
    try:
        library.seccomp_attr_set(context, _OPTIMIZE, _AS_A_TREE)  # libseccomp 2.5; without it the filter is only slower
        for name in rules.get("architectures") or ():
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            done = library.seccomp_arch_add(context, token) if token else -1
            if done not in (0, -_EEXIST):
                raise Broken(f"libseccomp: cannot add the architecture {name} ({-done})")
        for rule in rules["syscalls"]:
            action = _action(rule["action"], rule.get("errnoRet"))
            if action is None:
                return None
            if action != default:
                _add(library, context, action, rule)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: int, action: int, rule: Mapping[str, Any]) -> None:
    wanted = rule.get("args") or ()
    comparisons = (_Comparison * len(wanted))(
        *(
            _Comparison(each["index"], _OPERATORS[each["op"]], each["value"], each.get("valueTwo") or 0)
            for each in wanted
        )
    )
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN_CALL:
            continue
        done = library.seccomp_rule_add_array(context, action, number, len(wanted), comparisons)
        if done < 0:
            raise Broken(f"libseccomp: cannot add a rule for {name}: {os.strerror(-done)}")


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("filter", os.MFD_CLOEXEC)
    try:
        done = library.seccomp_export_bpf(context, fd)
        if done < 0:
            raise Broken(f"libseccomp: cannot write the filter: {os.strerror(-done)}")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _action(name: str, number: int | None) -> int | None:
    base = _ACTIONS.get(name)
    if base is None:
        return None
    return base | ((number if number is not None else 1) & 0xFFFF) if name == "SCMP_ACT_ERRNO" else base


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library
