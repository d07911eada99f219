"""Commands that move files and images in and out, in docker's words: cp, commit, export, import, save, load."""

import base64
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

from wherry.cli.args import Option, Spec, parse
from wherry.cli.engine import Refused, call, fetch, part, show_progress
from wherry.cli.names import split_name

CP = Spec(
    "cp", "Copy files between a container, running or not, and this machine; '-' is a tar on our own input or output.",
    "[-a] CONTAINER:PATH DEST | SOURCE CONTAINER:PATH",
    (Option("archive", "keep owners as they are", "a", "flag"),), 2, 2,
    examples=("wherry cp web:/etc/hosts .", "wherry cp ./site web:/www", "wherry cp web:/var/log - | tar -t"),
)  # fmt: skip
COMMIT = Spec(
    "commit", "Make an image of a container as it is.", "[OPTIONS] CONTAINER [NAME[:TAG]]",
    (
        Option("message", "what it is", "m"), Option("author", "who made it", "a"),
        Option("change", "a Dockerfile instruction, such as 'CMD [\"sh\"]'", "c", "many"),
        Option("no-pause", "do not hold its processes meanwhile", shape="flag"),
    ), 1, 2, examples=("wherry commit -c 'CMD [\"sh\"]' web web:2",),
)  # fmt: skip
EXPORT = Spec(
    "export", "Write all files of a container as a tar.", "[-o FILE] CONTAINER",
    (Option("output", "the file, in place of our output", "o", metavar="FILE"),), 1, 1,
    examples=("wherry export -o web.tar web",),
)  # fmt: skip
IMPORT = Spec(
    "import", "Make an image of one layer out of a tar of files.", "[OPTIONS] FILE|- [NAME[:TAG]]",
    (Option("message", "what it is", "m"), Option("change", "a Dockerfile instruction", "c", "many")), 1, 2,
    examples=("wherry import root.tar base:1",),
)  # fmt: skip
PLATFORM = Option("platform", "of several only this platform's image", metavar="OS/ARCH[/VARIANT]")
SAVE = Spec(
    "save", "Write images as a tar, for 'wherry load' or 'docker load'.", "[-o FILE] [--platform OS/ARCH] IMAGE...",
    (Option("output", "the file, in place of our output", "o", metavar="FILE"), PLATFORM), 1, None,
    examples=("wherry save -o web.tar web:1",),
)  # fmt: skip
LOAD = Spec(
    "load", "Read images out of a tar ('docker save', or an OCI layout).", "[-i FILE] [-q] [--platform OS/ARCH]",
    (
        Option("input", "the file, in place of our input", "i", metavar="FILE"),
        Option("quiet", "no progress", "q", "flag"),
        PLATFORM,
    ),
    examples=("wherry load -i web.tar",),
)  # fmt: skip

CHUNK_BYTES = 1 << 20
IS_DIRECTORY = 1 << 31
"""Of the modes that Docker's API tells: Go's, whose kinds are in the high bits."""


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while data := file.read(CHUNK_BYTES):
        yield data


def _opened(path: str, mode: str) -> IO[bytes]:
    try:
        return cast("IO[bytes]", open(path, mode))
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", 0) from None


def _written(chunks: Iterator[bytes], path: str) -> None:
    """Write a stream to a file, or to our output, unless that is a terminal."""
    if path and path != "-":
        with _opened(path, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        return
    if sys.stdout.isatty():
        raise Refused("a tar is not for a terminal: give -o FILE, or send it on by a pipe", 0)
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _place(word: str) -> tuple[str, str] | None:
    """Read CONTAINER:PATH; None for a path of this machine."""
    name, colon, path = word.partition(":")
    return (name, path) if colon and name and "/" not in name and not name.startswith(".") else None


def cp_command(argv: Sequence[str]) -> int:
    """`wherry cp`."""
    args = parse(CP, argv)
    source, target = args.words
    out, into = _place(source), _place(target)
    if (out is None) == (into is None):
        raise Refused("one of the two must be in a container: CONTAINER:PATH", 0)
    if out is not None:
        _copy_out(out[0], out[1], target)
    elif into is not None:
        _copy_in(source, into[0], into[1], keep=args.flag("archive"))
    return 0


def _copy_out(name: str, path: str, target: str) -> None:
    answer = call("GET", f"/containers/{part(name)}/archive", query={"path": path or "/"}, timeout_s=None)
    if target == "-":
        _written(answer.chunks(), "-")
        return
    from wherry.cli.building import unpack

    contents = path.endswith("/.") or path in (".", "")
    what = f"{name}:{path}"
    if os.path.isdir(target) or contents:
        unpack(answer.chunks(), target, what)
        return
    folder = os.path.dirname(target) or "."
    if target.endswith("/") or not os.path.isdir(folder):
        raise Refused(f"{target if target.endswith('/') else folder}: no such directory", 0)
    import tempfile

    with tempfile.TemporaryDirectory(prefix=".wherry-cp-", dir=folder) as beside:
        unpack(answer.chunks(), beside, what)
        for each in os.listdir(beside):  # one: what was asked for, by its own name
            os.replace(os.path.join(beside, each), target)


def _copy_in(source: str, name: str, path: str, *, keep: bool) -> None:
    query: dict[str, Any] = {"noOverwriteDirNonDir": 1, **({"copyUIDGID": 1} if keep else {})}
    where = f"/containers/{part(name)}/archive"
    if source == "-":
        call("PUT", where, query={**query, "path": path}, data=_pieces(sys.stdin.buffer), timeout_s=None).close()
        return
    if not os.path.lexists(source):
        raise Refused(f"{source}: no such file or directory", 0)
    contents = source.endswith("/.") or source == "."
    folder, called = path or "/", os.path.basename(os.path.abspath(source))
    if not _is_directory(where, folder):
        if path.endswith("/"):
            raise Refused(f"{name}:{path}: no such directory", 0)
        folder, called = os.path.dirname(path) or "/", os.path.basename(path)
    elif contents:
        called = "."
    import tarfile
    import tempfile

    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(source.removesuffix("/.") or ".", arcname=called)
        file.seek(0)
        call("PUT", where, query={**query, "path": folder}, data=_pieces(file), timeout_s=None).close()


def _is_directory(where: str, path: str) -> bool:
    try:
        answer = call("HEAD", where, query={"path": path})
    except Refused as error:
        if error.status == 404:
            return False
        raise
    answer.close()
    found = json.loads(base64.b64decode(answer.headers["x-docker-container-path-stat"]))
    target = found.get("linkTarget")
    return bool(found["mode"] & IS_DIRECTORY) or (bool(target) and target != path and _is_directory(where, target))


def commit_command(argv: Sequence[str]) -> int:
    """`wherry commit`."""
    args = parse(COMMIT, argv)
    name, tag = split_name(args.words[1]) if len(args.words) > 1 else ("", "")
    query = {
        "container": args.words[0], "repo": name or None, "tag": tag or None, "comment": args["message"],
        "author": args["author"],
        "changes": args.many("change"), "pause": int(not args.flag("no-pause")),
    }  # fmt: skip
    sys.stdout.write(fetch("POST", "/commit", query=query, body={}, timeout_s=None)["Id"] + "\n")
    return 0


def export_command(argv: Sequence[str]) -> int:
    """`wherry export`."""
    args = parse(EXPORT, argv)
    _written(call("GET", f"/containers/{part(args.words[0])}/export", timeout_s=None).chunks(), args.text("output"))
    return 0


def import_command(argv: Sequence[str]) -> int:
    """`wherry import`."""
    args = parse(IMPORT, argv)
    name, tag = split_name(args.words[1]) if len(args.words) > 1 else ("", "")
    query = {
        "fromSrc": "-", "repo": name or None, "tag": tag or None, "message": args["message"], "changes": args.many("change"),
    }  # fmt: skip
    file = sys.stdin.buffer if args.words[0] == "-" else _opened(args.words[0], "rb")
    with file:
        show_progress(call("POST", "/images/create", query=query, data=_pieces(file), timeout_s=None))
    return 0


def save_command(argv: Sequence[str]) -> int:
    """`wherry save`."""
    args = parse(SAVE, argv)
    query = {"names": args.words, "platform": args.text("platform") or None}
    _written(call("GET", "/images/get", query=query, timeout_s=None).chunks(), args.text("output"))
    return 0


def load_command(argv: Sequence[str]) -> int:
    """`wherry load`."""
    args = parse(LOAD, argv)
    if not args.text("input") and sys.stdin.isatty():
        raise Refused("a tar is read from standard input: give -i FILE, or send one by a pipe", 0)
    file = _opened(args.text("input"), "rb") if args["input"] else sys.stdin.buffer
    with file:
        headers = {"Content-Type": "application/x-tar"}
        query = {"platform": args.text("platform") or None}
        answer = call("POST", "/images/load", query=query, data=_pieces(file), headers=headers, timeout_s=None)
        show_progress(answer, quiet=args.flag("quiet"))
    return 0
