"""Which platforms' programs the kernel runs: by itself, or by what is registered with binfmt_misc (made up here)."""

from pathlib import Path

import pytest

from wherry.content import oci
from wherry.content.oci import Platform
from wherry.engine import foreign
from wherry.errors import Invalid

HERE = oci.this_platform()
OTHER = Platform("s390x" if HERE.architecture != "s390x" else "amd64", "linux")


def test_who_runs_what(tmp_path: Path) -> None:
    def register(name: str, architecture: str, flags: str, *, on: bool = True) -> None:
        head = foreign.elf_head(architecture)
        mask = b"\xff" * 7 + b"\0" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
        text = f"{'enabled' if on else 'disabled'}\ninterpreter /usr/libexec/qemu\nflags: {flags}\noffset 0\n"
        (tmp_path / name).write_text(f"{text}magic {head.hex()}\nmask {mask.hex()}\n")

    assert foreign.can_run(HERE, tmp_path / "none")
    assert not foreign.can_run(OTHER, tmp_path / "none")
    (tmp_path / "status").write_text("enabled\n")
    (tmp_path / "register").write_text("")
    (tmp_path / "python3").write_text("enabled\ninterpreter /usr/bin/python3\nflags: \nextension .pyc\n")
    register("qemu-a", OTHER.architecture, "OC")  # its interpreter is not in the container
    assert not foreign.can_run(OTHER, tmp_path)
    register("qemu-b", OTHER.architecture, "F", on=False)
    assert not foreign.can_run(OTHER, tmp_path)
    register("qemu-c", OTHER.architecture, "OCF")
    assert foreign.can_run(OTHER, tmp_path)
    assert not foreign.can_run(Platform("riscv64", "linux"), tmp_path)
    assert not foreign.can_run(Platform(HERE.architecture, "windows"), tmp_path)
    with pytest.raises(Invalid, match="binfmt_misc"):
        foreign.check(Platform("riscv64", "linux"), "x", tmp_path)
    (tmp_path / "status").write_text("disabled\n")
    assert not foreign.can_run(OTHER, tmp_path)
