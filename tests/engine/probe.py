"""What a container tries against the kernel, run inside by the machine's Python: prints one JSON object of answers.

Every call has arguments that do nothing where it is let through (null pointers, wrong magic numbers), so the same probe
runs without its guards, to show that it would notice.
"""

import ctypes
import errno
import json
import os
import socket
import sys

CALLS = {
    "x86_64": {
        "acct": (163, 1), "add_key": (248, 0, 0, 0, 0, 0), "bpf": (321, 0, 0, 0), "clock_settime": (227, 0, 1),
        "clone(NEWUSER)": (56, 0x10000000, 0, 0, 0, 0), "clone3": (435, 0, 0), "delete_module": (176, 1, 0),
        "finit_module": (313, -1, 0, 0), "fsopen": (430, 1, 0), "init_module": (175, 0, 0, 0), "ioperm": (173, 0, 1, 0),
        "io_uring_setup": (425, 0, 0), "kexec_file_load": (320, -1, -1, 0, 0, 0), "kexec_load": (246, 0, 0, 0, 0),
        "keyctl": (250, 0, -1, 0), "mount": (165, 1, 1, 1, 0, 0), "mount_setattr": (442, -1, 1, 0, 0, 0),
        "move_mount": (429, -1, 1, -1, 1, 0), "open_by_handle_at": (304, -1, 0, 0), "open_tree": (428, -1, 1, 1),
        "perf_event_open": (298, 0, 0, 0, 0, 0), "personality": (135, 0x40000), "pivot_root": (155, 1, 1),
        "quotactl": (179, 0, 1, 0, 0), "pidfd_getfd": (438, -1, 0, 0),
        "reboot": (169, 0, 0, 0), "request_key": (249, 0, 0, 0, 0),
        "setdomainname": (171, 1, 1), "sethostname": (170, 1, 1), "set_mempolicy": (238, 99, 0, 0), "setns": (308, -1, 0x20000),
        "socket(VSOCK)": (41, 40, 1, 0), "settimeofday": (164, 1, 1),
        "swapoff": (168, 1), "swapon": (167, 1, 0), "syslog": (103, 2, 0, 0), "umount2": (166, 1, 0),
        "unshare(NEWUSER)": (272, 0x10000000), "userfaultfd": (323, 0),
    },
    "aarch64": {
        "add_key": (217, 0, 0, 0, 0, 0), "bpf": (280, 0, 0, 0), "clone3": (435, 0, 0), "fsopen": (430, 1, 0),
        "init_module": (105, 0, 0, 0), "io_uring_setup": (425, 0, 0), "kexec_load": (104, 0, 0, 0, 0),
        "keyctl": (219, 0, -1, 0), "mount": (40, 1, 1, 1, 0, 0), "open_by_handle_at": (265, -1, 0, 0),
        "perf_event_open": (241, 0, 0, 0, 0, 0), "reboot": (142, 0, 0, 0), "setns": (268, -1, 0x20000),
        "umount2": (39, 1, 0), "unshare(NEWUSER)": (97, 0x10000000), "userfaultfd": (282, 0),
    },
}  # fmt: skip


def calls() -> dict[str, str]:
    """Say how the kernel answers each call."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: dict[str, str] = {}
    for name, (number, *arguments) in CALLS[os.uname().machine].items():
        ctypes.set_errno(0)
        done = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(word) for word in arguments])
        if name.startswith("clone(") and done == 0:
            os._exit(0)
        found[name] = errno.errorcode.get(ctypes.get_errno(), "?") if done < 0 else "done"
    return found


def writable(*places: str) -> list[str]:
    """List the files below places that can be opened for writing; nothing is written."""
    found: list[str] = []
    for place in places:
        for folder, _, names in [("", [], [place])] if os.path.isfile(place) else os.walk(place):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
                except OSError:
                    continue
                found.append(path)
    return found


def abstract(name: str) -> str:
    """Connect to a unix socket that has no file."""
    with socket.socket(socket.AF_UNIX) as peer:
        try:
            peer.connect("\0" + name)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "connected"


def others(pid: int) -> dict[str, str]:
    """Reach for another process: its memory, files and root."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 101, "aarch64": 117}[os.uname().machine]
    done = libc.syscall(ctypes.c_long(number), ctypes.c_long(0x4206), ctypes.c_long(pid), 0, 0)  # PTRACE_SEIZE
    found = {"ptrace": "done" if done == 0 else errno.errorcode[ctypes.get_errno()]}
    for name in ("environ", "mem"):
        try:
            os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    for name in ("root", "cwd", "fd/0"):
        try:
            os.stat(f"/proc/{pid}/{name}")
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    return found


if __name__ == "__main__":
    chosen, *words = sys.argv[1:]
    match chosen:
        case "calls":
            print(json.dumps(calls()))
        case "writable":
            print(json.dumps(writable(*words)))
        case "abstract":
            print(json.dumps(abstract(words[0])))
        case "others":
            print(json.dumps(others(int(words[0]))))
        case _:
            raise SystemExit(chosen)
