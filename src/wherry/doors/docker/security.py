"""`SecurityOpt` of a new container: seccomp, no-new-privileges, AppArmor, SELinux labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from wherry.engine import seccomp
from wherry.errors import BadRequest, Invalid, Unsupported

APPARMOR = "/sys/module/apparmor/parameters/enabled"
SELINUX = "/sys/fs/selinux/enforce"


@dataclass(frozen=True, slots=True)
class Security:
    """What they ask for. `warnings`: what this machine has not, and Docker discards where it is not."""

    no_new_privileges: bool = False
    seccomp: str = "default"
    apparmor: str = ""
    warnings: Sequence[str] = ()


def read_security(options: Sequence[object]) -> Security:
    """Read `SecurityOpt`. Raises BadRequest, Unsupported."""
    no_new_privileges, filter, profile = False, "default", ""
    warnings: list[str] = []
    for option in options:
        text = str(option)
        name, sign, value = text.partition("=" if "=" in text else ":")
        if text == "no-new-privileges":
            no_new_privileges = True
            continue
        if not sign:
            raise BadRequest(f"invalid --security-opt 1: {text!r}")
        match name:
            case "no-new-privileges":
                if value.lower() not in ("true", "false", "1", "0"):
                    raise BadRequest(f"invalid --security-opt 2: {text!r}")
                no_new_privileges = value.lower() in ("true", "1")
            case "seccomp":
                filter = "default" if value == "builtin" else value
                _check_profile(filter)
            case "apparmor":
                if value == "unconfined":
                    continue
                if not _has(APPARMOR, "Y"):
                    warnings.append(f"Your kernel does not support AppArmor: the profile {value} is discarded.")
                    continue
                profile = value
            case "label":
                if value == "disable":
                    continue
                if os.path.exists(SELINUX):
                    raise Unsupported(f"HostConfig.SecurityOpt {text!r}: SELinux labels are not supported by wherry")
                warnings.append(f"SELinux is not enabled on this machine: {text} is discarded.")
            case _:
                raise BadRequest(f"invalid --security-opt 2: {text!r}")
    return Security(no_new_privileges, filter, profile, warnings)


def _check_profile(text: str) -> None:
    if text in ("default", "unconfined"):
        return
    try:
        seccomp.parse(text)
    except Invalid as error:
        raise BadRequest(f"opening seccomp profile failed: {error.message}") from None


def _has(path: str, word: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().startswith(word)
    except OSError:
        return False
