"""Commands about images, in docker's words: images, pull, push, tag, rmi."""

import sys
from collections.abc import Sequence

from wherry.cli.args import Option, Parsed, Spec, Usage, parse
from wherry.cli.containers import table
from wherry.cli.engine import Refused, call, fetch, part, show_progress
from wherry.cli.names import auth_header, split_name, whole_name

IMAGES = Spec(
    "images", "List images.", "[-q] [-f KEY=VALUE]... [NAME]",
    (
        Option("quiet", "ids only", "q", "flag"),
        Option("no-trunc", "whole ids", shape="flag"),
        Option("digests", "a column for digests", shape="flag"),
        Option("filter", "label, before, since, until, reference, dangling", "f", "many", metavar="KEY=VALUE"),
        Option("format", "json, or table", default="table", choices=("table", "json")),
    ),
    most=1, examples=("wherry images", "wherry images -q web", "wherry images -f dangling=true"),
)  # fmt: skip
QUIET = Option("quiet", "no progress", "q", "flag")
ALL_TAGS = Option("all-tags", "all tags of the repository", "a", "flag")
PULL = Spec(
    "pull", "Get an image from a registry.", "[-q] [--platform OS/ARCH] [-a NAME | NAME[:TAG|@DIGEST]]",
    (QUIET, ALL_TAGS, Option("platform", "the image for this platform", metavar="OS/ARCH[/VARIANT]")), 1, 1,
    examples=("wherry pull docker.io/library/busybox:1", "wherry pull --platform linux/arm64 busybox:1"),
)  # fmt: skip
PUSH = Spec(
    "push", "Send an image to a registry.", "[-q] [--platform OS/ARCH] [-a NAME | NAME[:TAG]]",
    (QUIET, ALL_TAGS, Option("platform", "of several only this platform's image", metavar="OS/ARCH[/VARIANT]")), 1, 1,
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

    filters: dict[str, list[str]] = {"reference": list(args.words)} if args.words else {}
    for text in args.many("filter"):
        key, equals, value = text.partition("=")
        if not equals:
            raise Usage(IMAGES.name, f"--filter {text}: write KEY=VALUE")
        filters.setdefault(key, []).append(value)
    found = fetch("GET", "/images/json", query={"filters": json.dumps(filters) if filters else None})
    if args.text("format") == "json":
        sys.stdout.write("".join(json.dumps(each) + "\n" for each in found))
        return 0

    def short(id: str) -> str:
        return id if args.flag("no-trunc") else id.removeprefix("sha256:")[:12]

    if args.flag("quiet"):
        sys.stdout.write("".join(short(each["Id"]) + "\n" for each in found))
        return 0
    with_digests = args.flag("digests")
    rows = [("REPOSITORY", "TAG", *(["DIGEST"] if with_digests else []), "IMAGE ID", "SIZE")]
    for each in found:
        of = {name.partition("@")[0]: name.partition("@")[2] for name in each["RepoDigests"] or ()}
        for name in each["RepoTags"] or ("<none>:<none>",):
            repository, _, tag = name.rpartition(":")
            digest = [of.get(repository, "<none>")] if with_digests else []
            rows.append((repository, tag, *digest, short(each["Id"]), human(each["Size"])))
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
    name, tag = _named(PULL, args)
    query = {"fromImage": name, "tag": tag, "platform": args.text("platform") or None}
    answer = call("POST", "/images/create", query=query, headers=auth_header(name), timeout_s=None)
    show_progress(answer, quiet=args.flag("quiet"))
    if args.flag("quiet"):
        sys.stdout.write(f"{whole_name(name)}{'' if tag is None else f'@{tag}' if ':' in tag else f':{tag}'}\n")
    return 0


def _named(spec: Spec, args: Parsed) -> tuple[str, str | None]:
    """The name and the tag that are asked for; no tag means all of them. Raises Usage."""
    text = args.words[0]
    if not args.flag("all-tags"):
        return split_name(text)
    if "@" in text or ":" in text.rpartition("/")[2]:
        raise Usage(spec.name, "tag can't be used with --all-tags/-a")
    return text, None


def push_command(argv: Sequence[str]) -> int:
    """`wherry push`."""
    args = parse(PUSH, argv)
    name, tag = _named(PUSH, args)
    query = {"tag": tag, "platform": args.text("platform") or None}
    answer = call("POST", f"/images/{part(name)}/push", query=query, headers=auth_header(name), timeout_s=None)
    show_progress(answer, quiet=args.flag("quiet"))
    if args.flag("quiet"):
        sys.stdout.write(f"{whole_name(name)}{'' if tag is None else f':{tag}'}\n")
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
