"""Commands about images, in docker's words: images, pull, push, tag, rmi."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

from wherry.cli.args import Option, Spec, Usage, pair, parse
from wherry.cli.building import MORE_OPTIONS, ask_for_build, more_of, outputs_of, secrets_of, write_output
from wherry.cli.containers import table
from wherry.cli.engine import Refused, call, fetch, part, show_progress
from wherry.cli.names import auth_header, split_name

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
        for name in each["RepoTags"] or ("<none>:<none>",):
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
