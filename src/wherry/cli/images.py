"""Commands about images, in docker's words: build, images, pull, push, tag, rmi."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

from wherry.cli.args import Option, Spec, Usage, pair, parse
from wherry.cli.building import MORE_OPTIONS, more_of, outputs_of, secrets_of, write_output
from wherry.cli.containers import table
from wherry.cli.engine import Refused, call, fetch, part, show_progress
from wherry.cli.names import auth_header, split_name

BUILD = Spec(
    "build",
    "Build an image from a Dockerfile. It can be run at once, on every node of the cluster: there is no push or load step.",
    "[OPTIONS] PATH | -",
    (
        Option("file", "the Dockerfile", "f", default="", metavar="PATH"),
        Option("tag", "a name for the image", "t", "many"),
        Option("build-arg", "NAME=VALUE for ARG", shape="many"),
        Option("label", "KEY=VALUE", shape="many"),
        Option("target", "the stage to end with"),
        Option("no-cache", "run every step", shape="flag"),
        *MORE_OPTIONS,
        Option("quiet", "print only the image's id", "q", "flag"),
    ),
    least=1,
    most=1,
    examples=("wherry build -t web:1 .", "wherry build -t web:2 --build-arg VERSION=2 -f app/Dockerfile ."),
)
IMAGES = Spec(
    "images", "List images.", "[-q] [NAME]",
    (
        Option("quiet", "ids only", "q", "flag"),
        Option("no-trunc", "whole ids", shape="flag"),
        Option("format", "json, or table", default="table", choices=("table", "json")),
    ),
    most=1, examples=("wherry images", "wherry images -q web"),
)  # fmt: skip
QUIET = Option("quiet", "no progress", "q", "flag")
PULL = Spec(
    "pull", "Get an image from a registry.", "[-q] NAME[:TAG]", (QUIET,), 1, 1,
    examples=("wherry pull docker.io/library/busybox:1",),
)  # fmt: skip
PUSH = Spec(
    "push", "Send an image to a registry.", "[-q] NAME[:TAG]", (QUIET,), 1, 1,
    examples=("wherry push $WHERRY_REGISTRY/web:1",),
)  # fmt: skip
TAG = Spec(
    "tag", "Give an image one more name.", "IMAGE NAME[:TAG]", (), 2, 2, examples=("wherry tag web:1 web:stable",)
)
RMI = Spec(
    "rmi", "Remove images.", "[-f] IMAGE...", (Option("force", "all its names", "f", "flag"),), 1, None,
    examples=("wherry rmi web:1",),
)  # fmt: skip

CHUNK_BYTES = 256 * 1024


class _Pipe:
    """A file that tarfile writes to and we read from, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data, self.pieces = b"".join(self.pieces), []
        return data


def context_tar(root: str, dockerfile: str) -> Iterator[bytes]:
    """The directory as a tar stream; .dockerignore is applied by the builder, which gets it too."""
    import tarfile
    from typing import cast

    pipe = _Pipe()
    with tarfile.open(
        fileobj=cast("IO[bytes]", pipe), mode="w|", format=tarfile.GNU_FORMAT, bufsize=CHUNK_BYTES
    ) as archive:
        skip = _skipped(root)
        for folder, names, files in os.walk(root):
            relative = os.path.relpath(folder, root)
            names[:] = sorted(name for name in names if not skip(os.path.normpath(os.path.join(relative, name))))
            for name in [*names, *sorted(files)]:
                inside = os.path.normpath(os.path.join(relative, name))
                if not skip(inside):
                    for _ in _packed(archive, os.path.join(folder, name), inside):
                        yield pipe.take()
        if dockerfile:
            for _ in _packed(archive, dockerfile, ".wherry.Dockerfile"):
                yield pipe.take()
    yield pipe.take()


def _packed(archive: Any, path: str, inside: str) -> Iterator[None]:
    """Add one file, link or directory; stops after each piece, so that no file need fit into memory."""
    if _is_socket(path):
        return
    info = archive.gettarinfo(path, arcname=inside)
    archive.addfile(info)
    if not info.isreg():
        return
    with open(path, "rb") as file:
        left = info.size
        while left:
            data = file.read(min(CHUNK_BYTES, left))
            if not data:
                raise Refused(f"{path}: it has become shorter while it was sent", 0)
            left -= len(data)
            archive.fileobj.write(data)
            yield
    fill = -info.size % 512
    archive.fileobj.write(b"\0" * fill)
    archive.offset += info.size + fill


def _is_socket(path: str) -> bool:
    import stat

    return stat.S_ISSOCK(os.lstat(path).st_mode)


def _skipped(root: str) -> Any:
    """What need not be sent: whole directories that .dockerignore names plainly, so that large ones cost nothing."""
    plain: set[str] = set()
    try:
        with open(os.path.join(root, ".dockerignore")) as file:
            lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    except OSError:
        lines = []
    if not any(line.startswith("!") for line in lines):
        plain = {os.path.normpath(line.strip("/")) for line in lines if not set(line) & set("*?[\\")}
    plain -= {"Dockerfile", ".dockerignore"}
    return lambda path: path in plain


def build_command(argv: Sequence[str]) -> int:
    """`wherry build`."""
    args = parse(BUILD, argv)
    import json

    place = args.words[0]
    dockerfile, extra = args.text("file"), ""
    if place == "-":
        context: Iterator[bytes] = iter(lambda: sys.stdin.buffer.read(CHUNK_BYTES), b"")
    else:
        if not os.path.isdir(place):
            raise Usage("build", f"{place}: not a directory")
        if dockerfile:
            inside = os.path.relpath(os.path.abspath(dockerfile), os.path.abspath(place))
            if inside.startswith(".."):
                extra, dockerfile = dockerfile, ".wherry.Dockerfile"
            else:
                dockerfile = inside
            if not os.path.isfile(extra or os.path.join(place, dockerfile)):
                raise Refused(f"{args.text('file')}: no such Dockerfile", 0)
        elif not os.path.isfile(os.path.join(place, "Dockerfile")):
            raise Refused(f"{place}: no Dockerfile there; -f names another", 0)
        context = context_tar(place, extra)
    query = {
        "t": args.many("tag"),
        "dockerfile": dockerfile or "Dockerfile",
        "buildargs": json.dumps(dict(_pair(each) for each in args.many("build-arg"))),
        "labels": json.dumps(dict(pair(each) for each in args.many("label"))),
        "target": args["target"],
        "nocache": int(args.flag("no-cache")),
    }
    outputs = outputs_of(args)
    query["wherry"] = more_of(args, outputs)
    headers = {"Content-Type": "application/x-tar", **secrets_of(args)}
    answer = call("POST", "/build", query=query, data=context, headers=headers, timeout_s=None)
    piped = any(each["dest"] == "-" and each["type"] != "image" for each in outputs)
    aux = show_progress(answer, quiet=args.flag("quiet") or piped)
    for output in outputs:
        write_output(str(aux.get("ID", "")), output)
    if args.flag("quiet") and not piped:
        sys.stdout.write(str(aux.get("ID", "")) + "\n")
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name, value) if equals else (name, os.environ.get(name, ""))


def images_command(argv: Sequence[str]) -> int:
    """`wherry images`."""
    args = parse(IMAGES, argv)
    import json

    filters = json.dumps({"reference": [args.words[0]]}) if args.words else None
    found = fetch("GET", "/images/json", query={"filters": filters})
    if args.text("format") == "json":
        sys.stdout.write("".join(json.dumps(each) + "\n" for each in found))
        return 0

    def short(id: str) -> str:
        return id if args.flag("no-trunc") else id.removeprefix("sha256:")[:12]

    if args.flag("quiet"):
        sys.stdout.write("".join(short(each["Id"]) + "\n" for each in found))
        return 0
    rows = [("REPOSITORY", "TAG", "IMAGE ID", "SIZE")]
    for each in found:
        for name in each["RepoTags"]:
            repository, _, tag = name.rpartition(":")
            rows.append((repository, tag, short(each["Id"]), human(each["Size"])))
    sys.stdout.write(table(rows))
    return 0


def human(size: int) -> str:
    """A size as docker shows it: 1.23MB."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g}{units[0]}"


def pull_command(argv: Sequence[str]) -> int:
    """`wherry pull`."""
    args = parse(PULL, argv)
    name, tag = split_name(args.words[0])
    answer = call(
        "POST", "/images/create", query={"fromImage": name, "tag": tag}, headers=auth_header(name), timeout_s=None
    )
    show_progress(answer, quiet=args.flag("quiet"))
    return 0


def push_command(argv: Sequence[str]) -> int:
    """`wherry push`."""
    args = parse(PUSH, argv)
    name, tag = split_name(args.words[0])
    answer = call("POST", f"/images/{part(name)}/push", query={"tag": tag}, headers=auth_header(name), timeout_s=None)
    show_progress(answer, quiet=args.flag("quiet"))
    return 0


def tag_command(argv: Sequence[str]) -> int:
    """`wherry tag`."""
    args = parse(TAG, argv)
    repository, tag = split_name(args.words[1])
    call("POST", f"/images/{part(args.words[0])}/tag", query={"repo": repository, "tag": tag}).close()
    return 0


def rmi_command(argv: Sequence[str]) -> int:
    """`wherry rmi`."""
    args = parse(RMI, argv)
    code = 0
    for name in args.words:
        try:
            for line in fetch("DELETE", f"/images/{part(name)}", query={"force": int(args.flag("force"))}):
                sys.stdout.write("".join(f"{key}: {value}\n" for key, value in line.items()))
        except Refused as error:
            sys.stderr.write(f"wherry rmi: {error.message}\n")
            code = 1
    return code
