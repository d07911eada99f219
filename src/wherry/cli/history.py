"""Commands about the past: get (also as of a time), fork."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from wherry.cli.args import Option, Spec, Usage, parse
from wherry.cli.containers import table
from wherry.cli.instances import ROOT, say
from wherry.daemon.instance import DEFAULT_ROOT, Instance
from wherry.wire.blocking import request

GET = Spec(
    "get",
    "Read objects as they were: `--at` takes a time before now (-5m, -2h), a time (RFC 3339) or a revision.",
    "KIND [NAME] [--at WHEN] [-n NAMESPACE | -A] [-o FORM] [--revisions]",
    (
        ROOT,
        Option("at", "the moment; now without it", metavar="WHEN"),
        Option("namespace", "whose objects", "n", default="default"),
        Option("all-namespaces", "of all namespaces", "A", "flag"),
        Option("selector", "labels", "l"),
        Option("output", "form", "o", default="table", choices=("table", "json", "yaml", "name")),
        Option("revisions", "list the writes of one object: when, who, what", shape="flag"),
    ),
    least=1,
    most=2,
    examples=(
        "wherry get pods --at -5m",
        "wherry get deployment web --at -1h -o yaml",
        "wherry get deployment web --revisions",
    ),
)
FORK = Spec(
    "fork",
    "Start a copy of this cluster, as it is or was, in a directory of its own, on simulated nodes, with its own certificates.",
    "DIR [--at WHEN] [--detach]",
    (
        ROOT,
        Option("at", "the moment; now without it", metavar="WHEN"),
        Option("detach", "return when it is ready", "d", "flag"),
    ),
    least=1,
    most=1,
    examples=("wherry fork ./before --at -2m --detach", "eval $(wherry env --root ./before)"),
)


class Refused(Exception):
    """The server said no, in its words."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def _ask(socket: str, method: str, path: str, query: dict[str, Any] | None = None, body: Any = None) -> Any:
    target = quote(path)
    filled = {key: value for key, value in (query or {}).items() if value}
    if filled:
        target += "?" + urlencode(filled)
    data = b"" if body is None else json.dumps(body).encode()
    answer = request(socket, method, target, headers={"Content-Type": "application/json"}, body=data)
    try:
        text = answer.read()
    finally:
        answer.close()
    decoded = json.loads(text)
    if answer.status >= 400:
        raise Refused(str(decoded.get("message", decoded)))
    return decoded


def get_command(argv: Sequence[str]) -> int:
    """`wherry get`."""
    args = parse(GET, argv)
    from wherry.model.kinds import KINDS

    word = args.words[0].lower()
    kind = next(
        (each for each in KINDS if word in (each.plural, each.singular, each.kind.lower(), *each.short_names)), None
    )
    if kind is None:
        from difflib import get_close_matches

        close = get_close_matches(word, [each.plural for each in KINDS], n=1)
        raise Usage("get", f"no kind {word!r}" + (f"; did you mean {close[0]}?" if close else ""))
    name = args.words[1] if len(args.words) > 1 else ""
    if args.flag("revisions") and not name:
        raise Usage("get", "--revisions is about one object: name it")
    instance = Instance.at(args.text("root"))
    path = f"/wherry/history/{kind.group or 'core'}/{kind.version}/{kind.plural}"
    if kind.namespaced and not args.flag("all-namespaces"):
        path += f"/namespaces/{args.text('namespace')}"
    if name:
        path += f"/{name}"
    if args.flag("revisions"):
        path += "/revisions"
    query = {"at": args["at"], "labelSelector": args["selector"]}
    found = _ask(str(instance.api_socket), "GET", path, query)
    sys.stdout.write(_shown(found, args.text("output"), revisions=args.flag("revisions"), kind=kind.plural))
    return 0


def _shown(found: Any, form: str, *, revisions: bool, kind: str) -> str:
    items = found.get("items", [found])
    if form == "json":
        return json.dumps(found, indent=2) + "\n"
    if form == "yaml":
        import yaml

        return str(yaml.safe_dump(found, sort_keys=False))
    if revisions:
        rows = [("REVISION", "TIME", "ACTOR", "OPERATION")]
        for each in items:
            rows.append((str(each["revision"]), str(each["time"]), str(each["actor"]), str(each["operation"])))
        return table(rows)
    if form == "name":
        return "".join(f"{kind}/{each['metadata']['name']}\n" for each in items)
    rows = [("NAMESPACE", "NAME", "CREATED", "STATE")]
    for each in items:
        meta, status = each["metadata"], each.get("status") or {}
        state = status.get("phase") or ""
        if not state and "replicas" in (each.get("spec") or {}):
            state = f"{status.get('readyReplicas', 0)}/{each['spec']['replicas']} ready"
        rows.append((meta.get("namespace", ""), meta["name"], meta.get("creationTimestamp", ""), str(state)))
    return table(rows)


def fork_command(argv: Sequence[str]) -> int:
    """`wherry fork`."""
    args = parse(FORK, argv)
    import secrets

    from wherry.daemon import up

    instance = Instance.at(args.text("root") or os.environ.get("WHERRY_ROOT", DEFAULT_ROOT))
    target = Instance.at(args.words[0])
    if target.root.exists() and any(target.root.iterdir()):
        raise Refused(f"{target.root}: not empty; a fork gets a directory of its own")
    made = _ask(str(instance.api_socket), "POST", "/wherry/fork", {"at": args["at"]}, {"name": secrets.token_hex(6)})
    say(f"forked at revision {made['revision']}")
    plan = instance.load()
    up.adopt_fork(target, plan, made["path"])
    options = up.Options(
        root=str(target.root), nodes=0, simulated=0, profile=plan.profile, durability="full", timeout_s=60.0,
    )  # fmt: skip
    started = up.up(options, say)
    say(f"the fork is up: {started.summary}")
    say(f"  eval $(wherry env --root {target.root})")
    return 0 if args.flag("detach") else up.stay(started, say)
