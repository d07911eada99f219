"""`wherry build`: docker's and buildx's words."""

import os
import sys
from collections.abc import Sequence

from wherry.cli.args import Option, Parsed, Spec, Usage, pair, parse
from wherry.cli.building import (
    MORE_OPTIONS,
    around_of,
    ask_for_build,
    more_of,
    outputs_of,
    platforms_of,
    secrets_of,
    write_output,
)
from wherry.cli.contexts import context_of, is_address
from wherry.cli.engine import call, fetch, part, show_progress
from wherry.cli.lending import agents_of
from wherry.cli.names import all_auths, auth_header, split_name

BUILD = Spec(
    "build",
    "Build an image from a Dockerfile. It can be run at once, on every node of the cluster: there is no push or load step.",
    "[OPTIONS] PATH | URL | -",
    (
        Option("file", "the Dockerfile; - is the standard input", "f", default="", metavar="PATH"),
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
    examples=(
        "wherry build -t web:1 .",
        "wherry build -t web:2 --build-arg VERSION=2 -f app/Dockerfile .",
        "wherry build -t web:3 https://git.example/web.git#main:app",
        "wherry build -t web:4 --platform linux/amd64,linux/arm64 --sbom true --push .",
    ),
)


def build_command(argv: Sequence[str]) -> int:
    """`wherry build`."""
    args = parse(BUILD, argv)
    import json

    outputs = outputs_of(args)
    several = len(platforms_of(args)) > 1
    if several and any(each["type"] in ("tar", "local") for each in outputs):
        raise Usage("build", "--output of files is of one platform: build each by itself")
    pushes = args.flag("push") or any(each["type"] == "registry" for each in outputs)
    if pushes and not args.many("tag"):
        raise Usage("build", "--push needs a name: -t REGISTRY/NAME:TAG")
    piped = any(each["dest"] == "-" and each["type"] not in ("image", "registry") for each in outputs)
    quiet = args.flag("quiet") or args.text("progress") == "quiet"
    shown = _progress(args, quiet=quiet or piped)
    more = more_of(args, outputs)
    if shown in ("tty", "rawjson") and not args.flag("check"):
        more["events"] = True
    query: dict[str, object] = {
        "t": args.many("tag"),
        "buildargs": json.dumps(dict(_pair(each) for each in args.many("build-arg"))),
        "labels": json.dumps(dict(pair(each) for each in args.many("label"))),
        "target": args["target"],
        "nocache": int(args.flag("no-cache")),
        **around_of(args),
    }
    headers = {"Content-Type": "application/x-tar", **secrets_of(args), **all_auths()}
    with agents_of(args.many("ssh")) as agents:
        if agents:
            more["agents"] = agents
        aux = _ask(args, query, more, headers, shown)
    id = str(aux.get("ID", ""))
    for output in outputs:
        write_output(id, output, args.many("tag"))
    if pushes:
        for tag in args.many("tag"):
            _push(tag, quiet=quiet or piped)
    _write_files(args, id)
    if quiet and not piped:
        sys.stdout.write(id + "\n")
    return 0


def _ask(
    args: Parsed, query: dict[str, object], more: dict[str, object], headers: dict[str, str], shown: str
) -> dict[str, object]:
    """Have it built; return what the engine says of the image. Raises Usage, Refused."""
    import json

    place, dockerfile = args.words[0], args.text("file")
    query["wherry"] = json.dumps(more)
    if is_address(place):
        if dockerfile == "-":
            raise Usage("build", "-f -: a context from an address has its own Dockerfile")
        query |= {"remote": place, "dockerfile": dockerfile or "Dockerfile"}
        answer = call("POST", "/build", query=query, headers=headers, timeout_s=None)
    else:
        tar, query["dockerfile"], as_it_is = context_of(place, dockerfile)
        answer = ask_for_build(query, headers, tar, place if as_it_is else "")
    if shown in ("tty", "rawjson"):
        from wherry.cli.showing import show

        return show(answer, raw=shown == "rawjson")
    return show_progress(answer, quiet=shown == "quiet")


def _progress(args: Parsed, *, quiet: bool) -> str:
    if quiet:
        return "quiet"
    wanted = args.text("progress")
    if wanted == "auto":
        return "tty" if sys.stderr.isatty() and sys.stdout.isatty() else "plain"
    return wanted


def _push(tag: str, *, quiet: bool) -> None:
    name, version = split_name(tag)
    answer = call(
        "POST", f"/images/{part(name)}/push", query={"tag": version}, headers=auth_header(name), timeout_s=None
    )
    show_progress(answer, quiet=quiet)


def _write_files(args: Parsed, id: str) -> None:
    """Write --iidfile and --metadata-file. Raises Refused."""
    import json

    from wherry.cli.engine import Refused

    texts: dict[str, str] = {}
    if args.text("iidfile"):
        texts[args.text("iidfile")] = id
    if args.text("metadata-file") and id:
        image = fetch("GET", f"/images/{part(id)}/json")
        found = {
            "containerimage.config.digest": id,
            "containerimage.digest": (image.get("Descriptor") or {}).get("digest", ""),
        }
        found["image.name"] = ",".join(args.many("tag"))
        texts[args.text("metadata-file")] = (
            json.dumps({key: value for key, value in found.items() if value}, indent=2) + "\n"
        )
    for path, text in texts.items():
        try:
            with open(path, "w") as file:
                file.write(text)
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}", 0) from None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name, value) if equals else (name, os.environ.get(name, ""))
