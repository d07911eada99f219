"""The child process that unpacks a hostile layer, and how it is started.

Before it reads a byte it is in a root of its own (the target), in its own network, IPC and UTS namespaces, is nobody
(65534), cannot gain rights, and keeps the six that making files needs. It answers with one JSON document.
"""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from wherry import errors
from wherry.content import inflate
from wherry.content.unpack import Unpacked, extract, mark_opaque
from wherry.errors import Broken, Damaged, WherryError
from wherry.host import kernel

NOBODY = 65534
UNPACK_S = 1800.0
_WHOLE = 1 << 63
_KEPT = (0, 1, 3, 4, 27, 31)
"""CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP. Source: linux/capability.h."""
_ENTRY = "import sys; sys.path[:0] = sys.argv[6:]; from wherry.content.unpack_child import main; main()"

_PR_CAPBSET_DROP, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 24, 8, 38
_SYS = {"x86_64": (157, 126), "aarch64": (167, 91)}
_CLONE_NEWNET, _CLONE_NEWIPC, _CLONE_NEWUTS = 0x40000000, 0x08000000, 0x04000000


async def unpack(
    blob: Path, target: Path, *, name: str = "layer", layer: bool = True, timeout_s: float = UNPACK_S, feed: int = -1
) -> Unpacked:
    """Unpack a layer file into the directory `target` in a confined child; opaque marks are set when it has ended.

    `layer` False takes a plain archive (a build context): no whiteouts, no owners, no devices. `feed` is the end to read
    of a pipe that tells how much of a file that still grows is there (see `told`).

    Raises Invalid, Damaged or Unsupported for the layer, Broken for the disk, DeadlineExceeded. What a failure leaves
    in `target` is the caller's to remove.
    """
    from wherry.host import spawn  # the child does without it, and without asyncio

    source = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        argv = [
            sys.executable,
            "-IS",
            "-c",
            _ENTRY,
            str(source),
            str(root),
            name,
            "layer" if layer else "",
            str(feed),
            *_import_paths(),
        ]
        fds = (source, root, *([feed] if feed >= 0 else []))
        done = await spawn.plain.run(argv, timeout_s=timeout_s, pass_fds=fds, env={}, limit_bytes=64 << 20)
        unpacked = _answer(done.out, done.err, done.code, name)
        mark_opaque(root, unpacked.opaque)
        return unpacked
    finally:
        os.close(root)
        os.close(source)


def main() -> None:
    """Be the child: argv is the entry, the layer's descriptor, the target's, a name, "layer" or "", the feed, import paths."""
    source, root, name, layer = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], bool(sys.argv[4])
    feed = int(sys.argv[5])
    answer: Mapping[str, object]
    try:
        inflate.prepare(source)
        is_root = os.geteuid() == 0
        if is_root:
            confine(root)
        read = Growing(source, feed, name).read if feed >= 0 else None
        done = extract(source, root, name=name, owners=is_root and layer, layer=layer, read=read)
        answer = {
            "diff_id": done.diff_id, "size": done.size_bytes, "entries": done.entries, "opaque": done.opaque,
            "files": done.file_bytes,
        }  # fmt: skip
    except WherryError as error:
        answer = {"error": type(error).__name__, "message": error.message}
    json.dump(answer, sys.stdout)


def told(size_bytes: int, *, whole: bool) -> bytes:
    """What goes into a feed: so many bytes are in the file, and whether that is all of it."""
    return (size_bytes | (_WHOLE if whole else 0)).to_bytes(8, "little")


class Growing:
    """A file that somebody else still writes, read as far as its feed says."""

    def __init__(self, source: int, feed: int, name: str) -> None:
        self._source = source
        self._feed = feed
        self._name = name
        self._position = self._have = 0
        self._is_whole = False

    def read(self, most: int) -> bytes:
        """Give the next bytes, once they are there; b"" at the end. Raises Damaged when the feed ends before."""
        while self._position >= self._have:
            if self._is_whole:
                return b""
            words = os.read(self._feed, 4096)
            if not words:
                raise Damaged(f"{self._name}: it stopped coming after {self._have} bytes")
            for start in range(0, len(words), 8):
                word = int.from_bytes(words[start : start + 8], "little")
                self._have = max(self._have, word & ~_WHOLE)
                self._is_whole = self._is_whole or bool(word & _WHOLE)
        data = os.pread(self._source, min(most, self._have - self._position), self._position)
        self._position += len(data)
        return data


def confine(root: int) -> None:
    """Give up everything but making files below the open directory `root`. Only in a process of its own."""
    numbers = _SYS.get(os.uname().machine)
    if numbers is None:
        raise Broken(
            f"unpacking: the system calls of {os.uname().machine} are not known, so a child cannot be confined"
        )
    prctl, capset = numbers
    with suppress(Broken):  # already in a container that may not: the rest still holds
        kernel.unshare(_CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS)
    os.fchdir(root)
    os.chroot(".")
    for capability in range(64):
        if capability not in _KEPT:
            try:
                kernel.call(prctl, _PR_CAPBSET_DROP, capability, 0, 0, 0, what="prctl(PR_CAPBSET_DROP)")
            except Broken:
                break  # past the last one that this kernel knows
    kernel.call(prctl, _PR_SET_KEEPCAPS, 1, 0, 0, 0, what="prctl(PR_SET_KEEPCAPS)")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    kept = sum(1 << capability for capability in _KEPT)
    header = (0x20080522).to_bytes(4, "little") + (0).to_bytes(4, "little")
    low = kept.to_bytes(4, "little")  # effective, permitted, inheritable: 32 bits each, then the upper halves
    kernel.call(capset, header, low + low + bytes(4) + bytes(12), what="capset")
    kernel.call(prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, what="prctl(PR_SET_NO_NEW_PRIVS)")


def _import_paths() -> list[str]:
    paths = [str(Path(errors.__file__).parents[1])]
    for package in ("isal", "zstandard"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            paths.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(paths))


def _answer(out: bytes, err: bytes, code: int, name: str) -> Unpacked:
    try:
        answer = json.loads(out)
    except ValueError:
        words = err.decode(errors="replace").strip()[-1000:] or "it said nothing"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        raise Broken(f"{name}: the unpacking child {how}: {words}") from None
    if "error" in answer:
        kind = getattr(errors, str(answer["error"]), Broken)
        raise kind(str(answer["message"]))
    return Unpacked(answer["diff_id"], answer["size"], answer["entries"], list(answer["opaque"]), answer["files"])
