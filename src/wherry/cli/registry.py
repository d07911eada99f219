"""`wherry registry ...`: run a registry alone, and administer one by its unix socket."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from wherry.cli.args import Option, Parsed, Spec, Usage, help_text, parse
from wherry.cli.containers import table
from wherry.cli.instances import ROOT
from wherry.errors import WherryError
from wherry.wire.blocking import request

API = "/api/registry/v1"
OUTPUT = Option("output", "form of the answer", "o", default="table", choices=("table", "json"))


class Refused(WherryError):
    """The registry said no, in its words."""


@dataclass(frozen=True)
class Verb:
    """One subcommand: a request, made of the words (`{0}` in the path), and how its answer is shown.

    `rows` names the list in the answer and the columns of the table; "" shows the answer's own fields.
    """

    summary: str
    usage: str
    method: str
    path: str
    options: Sequence[Option] = ()
    least: int = 0
    most: int = 0
    query: Sequence[str] = ()
    body: Callable[[Parsed], Any] | None = None
    rows: str = ""
    columns: Sequence[str] = ()


def _settings(args: Parsed) -> Any:
    current = json.loads(Path(args.words[1]).read_text()) if len(args.words) > 1 else {}
    return {"settings": current, "description": args.text("description")}


def _file(index: int) -> Callable[[Parsed], Any]:
    return lambda args: json.loads(Path(args.words[index]).read_text())


def _person(args: Parsed) -> Any:
    password = sys.stdin.readline().rstrip("\n") if args.flag("password-stdin") else ""
    kind = "robot" if args.flag("robot") else "user"
    return {"name": args.words[0], "kind": kind, "password": password, "admin": args.flag("admin")}


def _token(args: Parsed) -> Any:
    scope = {"actions": args.many("action") or ["*"], "repositories": args.many("repository") or ["*"]}
    days = args.text("days")
    return {"name": args.words[1], "scope": scope, "seconds": float(days) * 86400 if days else 0}


def _upstream(args: Parsed) -> Any:
    password = sys.stdin.readline().rstrip("\n") if args.flag("password-stdin") else ""
    body = {"url": args.words[1], "username": args.text("username"), "password": password}
    return {**body, "revalidate_s": _number(args, "revalidate")}


def _rule(args: Parsed) -> Any:
    password = sys.stdin.readline().rstrip("\n") if args.flag("password-stdin") else ""
    names = ("repositories", "tags", "prefix", "username")
    body = {"url": args.words[0], "password": password, **{name: args.text(name) for name in names}}
    return {**body, "deletions": args.flag("deletions")}


def _number(args: Parsed, name: str) -> float:
    try:
        return float(args.text(name))
    except ValueError:
        raise Usage("registry", f"--{name} {args.text(name)!r}: not a number") from None


def _hook(args: Parsed) -> Any:
    body: dict[str, Any] = {"url": args.words[0], "shape": args.text("shape")}
    if args.many("action"):
        body["actions"] = args.many("action")
    if args.text("repositories"):
        body["repositories"] = args.text("repositories")
    return body


ACTION = Option("action", "what it is about; may be given several times", shape="many")
VERBS: dict[str, Verb] = {
    "repositories": Verb("list repositories", "", "GET", "/repositories", rows="repositories",
                         columns=("name", "visibility", "used_bytes", "created")),
    "show": Verb("show a repository", "NAME", "GET", "/repositories/{0}", least=1, most=1),
    "configure": Verb("set what a repository says: immutable, protected, lifecycle, visibility (JSON file)",
                      "NAME FILE [--description TEXT]", "PUT", "/repositories/{0}",
                      (Option("description", "a line for people"),), 2, 2, body=_settings),
    "delete": Verb("delete a repository with all its images", "NAME", "DELETE", "/repositories/{0}", least=1, most=1),
    "images": Verb("list the images of a repository", "NAME", "GET", "/images/{0}", least=1, most=1, rows="images",
                   columns=("digest", "tags", "size_bytes", "pushed", "pulled")),
    "lifecycle": Verb("show what the rules would take now", "NAME", "GET", "/lifecycle/{0}", least=1, most=1,
                      rows="expiring", columns=("digest", "tags", "rule", "reason")),
    "expire": Verb("take it", "NAME", "POST", "/lifecycle/{0}", least=1, most=1, rows="expired",
                   columns=("digest", "tags", "rule", "reason")),
    "gc": Verb("collect what nobody needs, while everybody pushes and pulls", "[--dry-run] [--untagged] [--lifecycle]",
               "POST", "/collection",
               (Option("dry-run", "only say what would go", shape="flag"),
                Option("untagged", "images that no tag reaches too", shape="flag"),
                Option("lifecycle", "run the rules of all repositories first", shape="flag")),
               query=("dry-run", "untagged", "lifecycle")),
    "scrub": Verb("read every blob and put damaged ones aside", "[--report]", "POST", "/scrub",
                  (Option("report", "leave them where they are", shape="flag"),), query=("report",),
                  rows="findings", columns=("digest", "problem", "repositories", "put_aside")),
    "people": Verb("list accounts", "", "GET", "/people", rows="people", columns=("name", "kind", "admin", "disabled")),
    "add": Verb("make an account", "NAME [--robot] [--admin] [--password-stdin]", "POST", "/people",
                (Option("robot", "for a machine: it signs in with tokens", shape="flag"),
                 Option("admin", "an administrator", shape="flag"),
                 Option("password-stdin", "read the password from standard input", shape="flag")), 1, 1, body=_person),
    "remove": Verb("delete an account", "NAME", "DELETE", "/people/{0}", least=1, most=1),
    "tokens": Verb("list an account's tokens", "NAME", "GET", "/people/{0}/tokens", least=1, most=1, rows="tokens",
                   columns=("id", "name", "expires", "used")),
    "token": Verb("make a token; its secret is shown once", "NAME LABEL [--action A] [--repository R] [--days N]", "POST",
                  "/people/{0}/tokens",
                  (ACTION, Option("repository", "where, by pattern; may be given several times", shape="many"),
                   Option("days", "how long it holds; for ever without it")), 2, 2, body=_token),
    "revoke": Verb("end a token", "NAME ID", "DELETE", "/people/{0}/tokens/{1}", least=2, most=2),
    "teams": Verb("list teams with their members", "", "GET", "/teams"),
    "join": Verb("put an account into a team", "TEAM NAME", "PUT", "/teams/{0}/members/{1}", least=2, most=2),
    "leave": Verb("take an account out of a team", "TEAM NAME", "DELETE", "/teams/{0}/members/{1}", least=2, most=2),
    "policies": Verb("list policies", "", "GET", "/policies", rows="policies", columns=("target", "name", "document")),
    "policy": Verb("set a policy of registry, repository/R, user/U, robot/R or team/T (JSON file in IAM's form)",
                   "TARGET NAME FILE", "PUT", "/policies/{1}/of/{0}", least=3, most=3, body=_file(2)),
    "unpolicy": Verb("delete a policy", "TARGET NAME", "DELETE", "/policies/{1}/of/{0}", least=2, most=2),
    "quotas": Verb("list quotas", "", "GET", "/quotas", rows="quotas", columns=("scope", "bytes", "used")),
    "quota": Verb("set a quota of a repository or of NAMESPACE/", "SCOPE BYTES", "PUT", "/quotas/{0}", least=2, most=2,
                  body=lambda args: {"bytes": int(args.words[1])}),
    "unquota": Verb("delete a quota", "SCOPE", "DELETE", "/quotas/{0}", least=1, most=1),
    "templates": Verb("list templates of new repositories", "", "GET", "/templates", rows="templates",
                      columns=("prefix", "settings")),
    "template": Verb("set what new repositories below a prefix say (JSON file)", "PREFIX FILE", "PUT", "/templates/{0}",
                     least=2, most=2, body=_file(1)),
    "upstreams": Verb("list registries that prefixes stand for", "", "GET", "/upstreams", rows="upstreams",
                      columns=("prefix", "url", "username", "revalidate_s")),
    "upstream": Verb("let repositories below PREFIX/ stand for those of another registry, fetched when they are pulled",
                     "PREFIX/ URL [--username NAME --password-stdin] [--revalidate SECONDS]", "PUT", "/upstreams/{0}",
                     (Option("username", "who we are there"),
                      Option("password-stdin", "read the password from standard input", shape="flag"),
                      Option("revalidate", "how long a tag is believed", default="60", metavar="SECONDS")), 2, 2,
                     body=_upstream),
    "unupstream": Verb("end it; what was fetched stays", "PREFIX/", "DELETE", "/upstreams/{0}", least=1, most=1),
    "replications": Verb("list rules of replication", "", "GET", "/replications", rows="replications",
                         columns=("id", "url", "repositories", "tags", "prefix", "deletions")),
    "replicate": Verb("copy what is pushed from now on to another registry",
                      "URL [--repositories PATTERN] [--tags PATTERN] [--prefix NAME/] [--deletions] [--username NAME "
                      "--password-stdin]", "POST", "/replications",
                      (Option("repositories", "which, by pattern", default="*"),
                       Option("tags", "which, by pattern", default="*"),
                       Option("prefix", "goes before the names there", default=""),
                       Option("deletions", "delete there what is deleted here", shape="flag"),
                       Option("username", "who we are there"),
                       Option("password-stdin", "read the password from standard input", shape="flag")), 1, 1, body=_rule),
    "unreplicate": Verb("delete a rule of replication", "ID", "DELETE", "/replications/{0}", least=1, most=1),
    "copies": Verb("what a rule copied, and what waits", "ID", "GET", "/replications/{0}/copies", least=1, most=1,
                   rows="copies", columns=("id", "action", "repository", "reference", "attempts", "state", "answer")),
    "copy-all": Verb("copy all that is here too", "ID", "POST", "/replications/{0}/copies", least=1, most=1),
    "events": Verb("search the audit log", "[--actor A] [--repository R] [--action A] [-n N]", "GET", "/events",
                   (Option("actor", "who"), Option("repository", "where"), Option("action", "what"),
                    Option("number", "how many", "n")), query=("actor", "repository", "action", "number:n"),
                   rows="events", columns=("at", "actor", "action", "repository", "reference", "outcome", "detail")),
    "usage": Verb("bytes and pulls by repository and day", "[--since DAY] [--until DAY]", "GET", "/usage",
                  (Option("since", "first day"), Option("until", "the day after the last")), query=("since", "until"),
                  rows="usage",
                  columns=("day", "repository", "pulls", "pushes", "bytes_out", "bytes_in", "bytes_stored")),
    "hooks": Verb("list webhooks", "", "GET", "/webhooks", rows="webhooks", columns=("id", "hook")),
    "hook": Verb("make a webhook; its secret is shown once", "URL [--action A] [--repositories PATTERN] [--shape S]", "POST",
                 "/webhooks",
                 (ACTION, Option("repositories", "which, by pattern"),
                  Option("shape", "form of the message", default="cloudevents", choices=("cloudevents", "docker"))),
                 1, 1, body=_hook),
    "unhook": Verb("delete a webhook", "ID", "DELETE", "/webhooks/{0}", least=1, most=1),
    "deliveries": Verb("what a webhook sent and was answered", "ID", "GET", "/webhooks/{0}/deliveries", least=1, most=1,
                       rows="deliveries", columns=("id", "event", "attempts", "state", "status", "answer")),
    "resend": Verb("send a delivery again", "ID", "POST", "/deliveries/{0}/resend", least=1, most=1),
}  # fmt: skip
SERVE = Spec(
    "registry serve",
    "Run a registry alone, in the foreground, without root.",
    "[--root DIR] [--listen HOST:PORT] [--public] [--metrics HOST:PORT] [--certificate FILE --key FILE]"
    " [--database URL [--storage URL]]",
    (
        ROOT,
        Option("listen", "address for clients", default="127.0.0.1:5000", metavar="HOST:PORT"),
        Option("metrics", "address for Prometheus and administrators", metavar="HOST:PORT"),
        Option("public", "everybody may pull, unless a repository says otherwise", shape="flag"),
        Option("open", "everybody may do everything: for closed networks", shape="flag"),
        Option("certificate", "PEM file for TLS", metavar="FILE"),
        Option("key", "PEM file of its key", metavar="FILE"),
        Option("database", "records in PostgreSQL, as postgresql://... (or WHERRY_REGISTRY_DATABASE)", metavar="URL"),
        Option("storage", "blobs in a bucket, as s3://BUCKET/PREFIX (or WHERRY_REGISTRY_STORAGE)", metavar="URL"),
    ),
    examples=("wherry registry serve --root ./registry --listen 0.0.0.0:5000 --certificate c.pem --key k.pem",),
)


_SUMMARIES = tuple((name, verb.summary) for name, verb in VERBS.items())
REGISTRY = Spec(
    "registry",
    "Run a registry alone, or administer the one of a root. 'wherry registry COMMAND --help' says more.\n\nCommands:\n"
    + "\n".join(f"  {name:<13} {summary}" for name, summary in (("serve", SERVE.summary), *_SUMMARIES)),
    "COMMAND ... [--root DIR] [-o json]",
    (ROOT, OUTPUT),
    examples=(
        "wherry registry serve --root ./registry",
        "wherry registry add ci --robot",
        "wherry registry gc --dry-run",
    ),
)


def registry_command(argv: Sequence[str]) -> int:
    """`wherry registry`."""
    if not argv or argv[0] in ("--help", "-h"):
        sys.stdout.write(help_text(REGISTRY))
        return 0 if argv else 2
    if argv[0] == "serve":
        return _serve(argv[1:])
    verb = VERBS.get(argv[0])
    if verb is None:
        from difflib import get_close_matches

        close = get_close_matches(argv[0], ["serve", *VERBS], n=1)
        raise Usage("registry", f"no subcommand {argv[0]!r}" + (f"; did you mean {close[0]}?" if close else ""))
    spec = Spec(
        f"registry {argv[0]}", verb.summary, verb.usage, (ROOT, OUTPUT, *verb.options), least=verb.least, most=verb.most
    )
    args = parse(spec, argv[1:])
    words = [quote(word, safe="/") for word in args.words]
    path = API + verb.path.format(*words)
    query = {_parameter(name): _value(args, name) for name in verb.query if _value(args, name)}
    answer = _ask(args.text("root"), verb.method, path, query, verb.body(args) if verb.body else None)
    if args.text("output") == "json":
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        sys.stdout.write(_shown(answer, verb))
    return 1 if argv[0] == "scrub" and answer["findings"] else 0


def socket_of(root: str) -> str:
    """The registry's unix socket below a root: of one that runs alone, else of an instance. Raises Refused."""
    alone = Path(root) / "registry.sock"
    if alone.exists():
        return str(alone)
    from wherry.daemon.instance import Instance

    found = Instance.at(root).registry_socket
    if not found.exists():
        raise Refused(
            f"no registry runs on {root}: start one with 'wherry registry serve --root {root}' or 'wherry up'"
        )
    return str(found)


def _serve(argv: Sequence[str]) -> int:
    args = parse(SERVE, argv)
    import asyncio
    import logging

    from wherry.daemon.registry import Options, serve

    level = os.environ.get("WHERRY_LOG_LEVEL", "INFO").upper()
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    options = Options(
        Path(args.text("root")), args.text("listen"), args.text("metrics"), args.flag("public"), args.flag("open"),
        args.text("certificate"), args.text("key"),
        args.text("database") or os.environ.get("WHERRY_REGISTRY_DATABASE", ""),
        args.text("storage") or os.environ.get("WHERRY_REGISTRY_STORAGE", ""),
    )  # fmt: skip
    asyncio.run(serve(options))
    return 0


def _ask(root: str, method: str, path: str, query: dict[str, str], body: Any) -> Any:
    target = path + (f"?{urlencode(query)}" if query else "")
    data = b"" if body is None else json.dumps(body).encode()
    answer = request(
        socket_of(root), method, target, headers={"Content-Type": "application/json"}, body=data, timeout_s=None
    )
    try:
        decoded = json.loads(answer.read())
    finally:
        answer.close()
    if answer.status >= 400:
        raise Refused("; ".join(str(error["message"]) for error in decoded["errors"]))
    return decoded


def _parameter(name: str) -> str:
    own, _, given = name.partition(":")
    head, *rest = own.split("-")
    return given or head + "".join(part.capitalize() for part in rest)


def _value(args: Parsed, name: str) -> str:
    value = args[name.partition(":")[0]]
    return "true" if value is True else "" if value is False or value is None else str(value)


def _shown(answer: Any, verb: Verb) -> str:
    rows = [[column.replace("_", " ").upper() for column in verb.columns]]
    if not verb.rows:
        return "".join(f"{key}: {_cell(key, value)}\n" for key, value in answer.items())
    rows += [[_cell(column, each.get(column)) for column in verb.columns] for each in answer[verb.rows]]
    return table(rows)


def _cell(column: str, value: Any) -> str:
    if column in ("at", "created", "pushed", "pulled", "expires", "used", "tagged"):
        from wherry.clock import rfc3339

        return rfc3339(value) if value else "never"
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ",".join(value)
    if isinstance(value, dict | list):
        return json.dumps(value)
    return "" if value is None else str(value)
