"""Images for other processors: whether this machine's kernel can run them (binfmt_misc, as qemu-user registers itself).

Source: Linux, Documentation/admin-guide/binfmt-misc.rst; ELF header (e_ident, e_machine).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from wherry.content.oci import Platform, this_platform
from wherry.errors import Invalid

BINFMT = Path("/proc/sys/fs/binfmt_misc")
_MACHINES = {
    "386": (3, 1, "little"), "amd64": (62, 2, "little"), "arm": (40, 1, "little"), "arm64": (183, 2, "little"),
    "riscv64": (243, 2, "little"), "ppc64le": (21, 2, "little"), "s390x": (22, 2, "big"), "loong64": (258, 2, "little"),
    "mips64le": (8, 2, "little"),
}  # fmt: skip
"""e_machine, class (1: 32 bits, 2: 64) and byte order, by Go's name of an architecture."""
_NATIVE = {"amd64": ("amd64", "386"), "arm64": ("arm64", "arm")}
"""What a processor runs by itself."""


@dataclass(frozen=True, slots=True)
class Handler:
    """One registration. `fixed`: its interpreter is open already, so that it works in every container."""

    name: str
    interpreter: str
    magic: bytes
    mask: bytes
    offset: int
    fixed: bool


def check(platform: Platform, what: str, directory: Path = BINFMT) -> None:
    """Raise Invalid when no container of this platform can run here."""
    own = this_platform()
    if not can_run(platform, directory):
        raise Invalid(
            f"image {what} is for {platform}, and this machine is {own}: exec format error; register an emulator with "
            "binfmt_misc, with its flag F (Debian's package qemu-user-static does)"
        )


def can_run(platform: Platform, directory: Path = BINFMT) -> bool:
    """Say whether programs of a platform run here: by the processor itself, or by a registered emulator."""
    own = this_platform()
    if platform.os not in ("", "linux"):
        return False
    if platform.architecture in ("", *_NATIVE.get(own.architecture, (own.architecture,))):
        return True
    head = elf_head(platform.architecture)
    return bool(head) and any(each.fixed and _fits(each, head) for each in handlers(directory))


def elf_head(architecture: str) -> bytes:
    """The first 20 bytes of a program for an architecture; b"" when we do not know it."""
    found = _MACHINES.get(architecture)
    if found is None:
        return b""
    machine, bits, order = found
    little = order == "little"
    ident = b"\x7fELF" + bytes([bits, 1 if little else 2, 1]) + bytes(9)
    return ident + (2).to_bytes(2, "little" if little else "big") + machine.to_bytes(2, "little" if little else "big")


def handlers(directory: Path = BINFMT) -> list[Handler]:
    """Read what is registered and enabled; nothing where binfmt_misc is not mounted, or off."""
    found: list[Handler] = []
    try:
        if (directory / "status").read_text().strip() != "enabled":
            return []
        names = sorted(entry.name for entry in os.scandir(directory) if entry.name not in ("register", "status"))
    except OSError:
        return []
    for name in names:
        try:
            text = (directory / name).read_text()
        except OSError:
            continue  # unregistered meanwhile
        handler = parse(name, text)
        if handler is not None:
            found.append(handler)
    return found


def parse(name: str, text: str) -> Handler | None:
    """Read one registration, as the kernel shows it; None for one that is off, or goes by a file's extension."""
    lines = text.splitlines()
    words: dict[str, str] = {}
    for line in lines[1:]:
        key, _, value = line.partition(" ")
        words[key] = value
    if not lines or lines[0] != "enabled" or "magic" not in words:
        return None
    try:
        magic = bytes.fromhex(words["magic"].strip())
        mask = bytes.fromhex(words["mask"].strip()) if "mask" in words else b"\xff" * len(magic)
        offset = int(words.get("offset", "0"))
    except ValueError:
        return None
    flags = re.search(r"^flags:\s*(\S*)", text, re.MULTILINE)
    return Handler(name, words.get("interpreter", "").strip(), magic, mask, offset, "F" in (flags[1] if flags else ""))


def _fits(handler: Handler, head: bytes) -> bool:
    part = head[handler.offset : handler.offset + len(handler.magic)].ljust(len(handler.magic), b"\0")
    pairs = zip(part, handler.magic, handler.mask, strict=False)
    return all((have & mask) == (magic & mask) for have, magic, mask in pairs)
