"""Commands about containers, in docker's words: run, ps, logs, exec, stop, kill, rm."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from wherry.cli.args import Option, Parsed, Spec, Usage, pair, parse
from wherry.cli.engine import Refused, Terminal, call, demultiplex, fetch, join, part, show_progress
from wherry.cli.ports import bindings

UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}

RUN = Spec(
    "run",
    "Run a command in a new container.",
    "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    (
        Option("detach", "leave it running and print its id", "d", "flag"),
        Option("interactive", "keep stdin open", "i", "flag"),
        Option("tty", "give it a terminal", "t", "flag"),
        Option("rm", "remove it when it has ended", shape="flag"),
        Option("name", "its name"),
        Option("env", "NAME=VALUE, or NAME to pass ours on", "e", "many"),
        Option("env-file", "a file of NAME=VALUE lines", shape="many"),
        Option("volume", "SOURCE:TARGET[:ro]", "v", "many"),
        Option("mount", "type=bind,source=S,target=T[,readonly]", shape="many"),
        Option("tmpfs", "a path kept in memory", shape="many"),
        Option("workdir", "its working directory", "w"),
        Option("user", "name or uid[:gid]", "u"),
        Option("hostname", "its host name", "h"),
        Option("entrypoint", "in place of the image's"),
        Option("network", "bridge, host, none, or a network's name", default="bridge"),
        Option("memory", "limit, such as 64m", "m"),
        Option("cpus", "limit in cores, such as 0.5"),
        Option("pids-limit", "limit of processes", shape="number"),
        Option("label", "KEY=VALUE", "l", "many"),
        Option("cap-add", "give a capability", shape="many"),
        Option("cap-drop", "take a capability, or ALL", shape="many"),
        Option("privileged", "no isolation but namespaces", shape="flag"),
        Option("read-only", "its root file system is read-only", shape="flag"),
        Option("security-opt", "no-new-privileges, seccomp=unconfined", shape="many"),
        Option("restart", "no, always, unless-stopped, on-failure[:N]", default="no"),
        Option("pull", "missing, always or never", default="missing", choices=("missing", "always", "never")),
        Option("stop-signal", "signal that ends it"),
        Option("stop-timeout", "seconds between that signal and SIGKILL", shape="number"),
        Option("add-host", "NAME:ADDRESS", shape="many"),
        Option("dns", "a resolver", shape="many"),
        Option("init", "a first process that passes signals on and reaps", shape="flag"),
        Option("network-alias", "one more name on its network", shape="many"),
        Option("ip", "its address on its network"),
        Option("publish", "[HOST:][PORT:]PORT[/udp]", "p", "many"),
        Option("publish-all", "publish what the image exposes, on any free ports", "P", "flag"),
        Option("expose", "PORT[/udp] that -P publishes", shape="many"),
    ),
    least=1,
    most=None,
    rest=True,
    examples=("wherry run --rm web:1 echo hello", "wherry run -d --name web -m 64m -p 8080:80 web:1"),
)
PS = Spec(
    "ps", "List containers.", "[-a] [-q] [--filter K=V] [--format json]",
    (
        Option("all", "also those that do not run", "a", "flag"),
        Option("quiet", "ids only", "q", "flag"),
        Option("no-trunc", "whole ids", shape="flag"),
        Option("filter", "such as name=web, status=exited, label=a=b", "f", "many"),
        Option("format", "json, or table", default="table", choices=("table", "json")),
    ),
    examples=("wherry ps -a", "wherry ps -q --filter label=app=web"),
)  # fmt: skip
LOGS = Spec(
    "logs", "Print the output of a container.", "[-f] [-n N] [-t] CONTAINER",
    (
        Option("follow", "go on until it ends", "f", "flag"),
        Option("tail", "lines from the end", "n", default="all"),
        Option("timestamps", "with the time of each line", "t", "flag"),
        Option("since", "seconds since 1970, or RFC 3339", metavar="TIME"),
    ),
    least=1, most=1, examples=("wherry logs -f web", "wherry logs -n 20 -t web"),
)  # fmt: skip
EXEC = Spec(
    "exec", "Run a command in a running container.", "[-i] [-t] CONTAINER COMMAND [ARG...]",
    (
        Option("interactive", "keep stdin open", "i", "flag"),
        Option("tty", "give it a terminal", "t", "flag"),
        Option("detach", "do not wait", "d", "flag"),
        Option("env", "NAME=VALUE", "e", "many"),
        Option("workdir", "its working directory", "w"),
        Option("user", "name or uid[:gid]", "u"),
        Option("privileged", "with all capabilities", shape="flag"),
    ),
    least=1, most=None, rest=True,
    examples=("wherry exec web ls /", "wherry exec -it web sh", "wherry exec -i web tar -x < files.tar"),
)  # fmt: skip
STOP = Spec(
    "stop", "Stop containers.", "[-t SECONDS] CONTAINER...",
    (Option("time", "seconds before SIGKILL", "t", "number"),), least=1, most=None,
    examples=("wherry stop -t 3 web",),
)  # fmt: skip
KILL = Spec(
    "kill", "Send a signal to containers.", "[-s SIGNAL] CONTAINER...",
    (Option("signal", "its name or number", "s", default="KILL"),), least=1, most=None,
    examples=("wherry kill -s HUP web",),
)  # fmt: skip
RM = Spec(
    "rm", "Remove containers.", "[-f] CONTAINER...",
    (Option("force", "kill it first", "f", "flag"), Option("volumes", "with its anonymous volumes", "v", "flag")),
    least=1, most=None, examples=("wherry rm -f web",),
)  # fmt: skip


def size_bytes(text: str) -> int:
    """Read docker's sizes: 64m, 1g, 512kb, 1.5gib, plain bytes."""
    import re

    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kmgt]?)(?:i?b)?", text.lower(), re.ASCII)
    if found is None:
        raise Usage("run", f"size {text!r}: such as 64m, 1g")
    return int(float(found[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}[found[2]])


def cores(text: str) -> int:
    """Read a number of cores as billionths, as Docker has it."""
    import re

    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?|\.[0-9]{1,9}", text, re.ASCII):
        raise Usage("run", f"--cpus {text!r}: a number of cores, such as 0.5")
    return round(float(text) * 1e9)


def restart_policy(text: str) -> dict[str, Any]:
    """Read --restart."""
    policy, colon, count = text.partition(":")
    if colon and not (policy == "on-failure" and count.isascii() and count.isdigit()):
        raise Usage("run", f"--restart {text!r}: no, always, unless-stopped, on-failure[:N]")
    return {"Name": policy, "MaximumRetryCount": int(count or 0)}


def _environment(args: Parsed) -> list[str]:
    result: list[str] = []
    for path in args.many("env-file"):
        try:
            with open(path) as file:
                lines = [line.strip() for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"--env-file {path}: {getattr(error, 'strerror', None) or 'not text'}", 0, 125) from None
        result += _passed_on([line for line in lines if line and not line.startswith("#")])
    return result + _passed_on(args.many("env"))


def _passed_on(words: Sequence[str]) -> list[str]:
    """NAME=VALUE as it is; NAME alone gets our own value, if we have one."""
    return [
        each if "=" in each else f"{each}={os.environ[each]}" for each in words if "=" in each or each in os.environ
    ]


def _mount(text: str) -> dict[str, Any]:
    fields = dict(pair(each) for each in text.split(","))
    names = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
    fields = {names.get(name, name): value for name, value in fields.items()}
    unknown = set(fields) - {"type", "source", "target", "readonly"}
    if unknown:
        raise Usage("run", f"--mount {text!r}: {', '.join(sorted(unknown))} is not supported")
    return {
        "Type": fields.get("type", "volume"),
        "Source": fields.get("source", ""),
        "Target": fields.get("target", ""),
        "ReadOnly": "readonly" in fields and fields["readonly"] not in ("false", "0"),
    }


def body_of(args: Parsed) -> dict[str, Any]:
    """The body of a request to make a container."""
    volumes = args.many("volume")
    entrypoint = args["entrypoint"]
    published = bindings(args.many("publish"))
    place = {"Aliases": args.many("network-alias"), "IPAMConfig": {"IPv4Address": args.text("ip")}}
    return {
        "Image": args.words[0],
        "Cmd": args.words[1:] or None,
        "Entrypoint": [entrypoint] if entrypoint else None,
        "Env": _environment(args),
        "WorkingDir": args.text("workdir"),
        "User": args.text("user"),
        "Hostname": args.text("hostname"),
        "Labels": dict(pair(each) for each in args.many("label")),
        "Volumes": {each: {} for each in volumes if ":" not in each},
        "Tty": args.flag("tty"),
        "OpenStdin": args.flag("interactive"),
        "StdinOnce": args.flag("interactive"),
        "StopSignal": args.text("stop-signal"),
        "StopTimeout": args["stop-timeout"],
        "ExposedPorts": {each: {} for each in (*bindings(args.many("expose")), *published)},
        "NetworkingConfig": {"EndpointsConfig": {args.text("network"): place}},
        "HostConfig": {
            "PortBindings": published,
            "PublishAllPorts": args.flag("publish-all"),
            "Binds": [_absolute(each) for each in volumes if ":" in each],
            "Mounts": [_mount(each) for each in args.many("mount")],
            "Tmpfs": {each.partition(":")[0]: each.partition(":")[2] for each in args.many("tmpfs")},
            "NetworkMode": args.text("network"),
            "AutoRemove": args.flag("rm"),
            **({"Init": True} if args.flag("init") else {}),
            "Memory": size_bytes(args.text("memory")) if args["memory"] else 0,
            "NanoCpus": cores(args.text("cpus")) if args["cpus"] else 0,
            "PidsLimit": args["pids-limit"],
            "CapAdd": args.many("cap-add"),
            "CapDrop": args.many("cap-drop"),
            "Privileged": args.flag("privileged"),
            "ReadonlyRootfs": args.flag("read-only"),
            "SecurityOpt": args.many("security-opt"),
            "RestartPolicy": restart_policy(args.text("restart")),
            "ExtraHosts": args.many("add-host"),
            "Dns": args.many("dns"),
        },
    }


def _absolute(bind: str) -> str:
    source, colon, rest = bind.partition(":")
    return f"{os.path.abspath(source)}{colon}{rest}" if source.startswith(".") else bind


def run_command(argv: Sequence[str]) -> int:
    """`wherry run`. Exit codes: the command's, 125 when the engine failed, 126/127 when the command cannot be run."""
    args = parse(RUN, argv)
    try:
        return _run(args)
    except Refused as error:
        sys.stderr.write(f"wherry run: {error.message}\n")
        return _start_code(error)


def _start_code(error: Refused) -> int:
    message = error.message.lower()
    if "executable file not found" in message:
        return 127
    return 126 if "permission denied" in message and "exec:" in message else 125


def _pull(image: str) -> None:
    from wherry.cli.names import auth_header, split_name

    name, tag = split_name(image)
    sys.stderr.write(f"pulling {image}\n")
    query = {"fromImage": name, "tag": tag}
    show_progress(call("POST", "/images/create", query=query, headers=auth_header(name), timeout_s=None), quiet=True)


def made_of(args: Parsed, body: dict[str, Any]) -> Any:
    """Make the container; its image is pulled where it is not here, or always."""
    query = {"name": args["name"]} if args["name"] else {}
    if args.text("pull") == "always":
        _pull(args.words[0])
    try:
        return fetch("POST", "/containers/create", query=query, body=body)
    except Refused as error:
        if error.status != 404 or "No such image" not in error.message or args.text("pull") == "never":
            raise
        _pull(args.words[0])
        return fetch("POST", "/containers/create", query=query, body=body)


def _run(args: Parsed) -> int:
    made = made_of(args, body_of(args))
    name = part(made["Id"])
    if args.flag("detach"):
        _begin(name, remove=args.flag("rm"))
        sys.stdout.write(made["Id"] + "\n")
        return 0
    stdin, tty = args.flag("interactive"), args.flag("tty")
    streams = {"stream": 1, "stdin": int(stdin), "stdout": 1, "stderr": 1}
    attached = call("POST", f"/containers/{name}/attach", query=streams, headers=UPGRADE, timeout_s=None)
    condition = "removed" if args.flag("rm") else "next-exit"
    waiting = call("POST", f"/containers/{name}/wait", query={"condition": condition}, timeout_s=None)
    _begin(name, remove=args.flag("rm"))

    def resize(rows: int, columns: int) -> None:
        call("POST", f"/containers/{name}/resize", query={"h": rows, "w": columns}).close()

    with _signals_passed_on(name):
        joined(attached, tty=tty, stdin=stdin, resize=resize)
        import json

        return int(json.loads(waiting.read())["StatusCode"])


def _begin(name: str, *, remove: bool) -> None:
    """Start it; where that fails and it was to be removed at its end, this is its end."""
    try:
        call("POST", f"/containers/{name}/start").close()
    except Refused:
        if remove:
            with suppress(Refused):  # the engine may have done so already
                call("DELETE", f"/containers/{name}", query={"force": 1}).close()
        raise


class _signals_passed_on:
    """While entered, the signals that would end us go to the container instead; we end when it does."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

    def __init__(self, name: str) -> None:
        self._name = name
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._pass_on) for number in self.NUMBERS}

    def _pass_on(self, number: int, _: object) -> None:
        try:
            call("POST", f"/containers/{self._name}/kill", query={"signal": signal.Signals(number).name}).close()
        except Refused:  # it has just ended
            return

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def joined(answer: Any, *, tty: bool, stdin: bool, resize: Any) -> None:
    """Join our streams to an attached container; our terminal is raw meanwhile."""
    if tty and sys.stdin.isatty():
        with Terminal(resize):
            join(answer, tty=True, stdin=stdin)
    else:
        join(answer, tty=tty, stdin=stdin)


def exec_command(argv: Sequence[str]) -> int:
    """`wherry exec`."""
    args = parse(EXEC, argv)
    stdin, tty = args.flag("interactive"), args.flag("tty")
    if len(args.words) < 2:
        raise Usage("exec", f"usage: wherry exec {EXEC.usage}")
    body = {
        "Cmd": args.words[1:], "AttachStdin": stdin, "AttachStdout": True, "AttachStderr": True, "Tty": tty,
        "Env": _passed_on(args.many("env")), "WorkingDir": args.text("workdir"), "User": args.text("user"),
        "Privileged": args.flag("privileged"),
    }  # fmt: skip
    try:
        made = fetch("POST", f"/containers/{part(args.words[0])}/exec", body=body)
        headers = {} if args.flag("detach") else UPGRADE
        started = call(
            "POST", f"/exec/{made['Id']}/start", body={"Detach": args.flag("detach"), "Tty": tty}, headers=headers,
            timeout_s=None,
        )  # fmt: skip
        if args.flag("detach"):
            started.close()
            return 0

        def resize(rows: int, columns: int) -> None:
            call("POST", f"/exec/{made['Id']}/resize", query={"h": rows, "w": columns}).close()

        joined(started, tty=tty, stdin=stdin, resize=resize)
        found = fetch("GET", f"/exec/{made['Id']}/json")
        return int(found["ExitCode"] or 0)
    except Refused as error:
        sys.stderr.write(f"wherry exec: {error.message}\n")
        return error.exit_code if error.status else 125


def ps_command(argv: Sequence[str]) -> int:
    """`wherry ps`."""
    args = parse(PS, argv)
    import json

    filters: dict[str, list[str]] = {}
    for each in args.many("filter"):
        name, _, value = each.partition("=")
        filters.setdefault(name, []).append(value)
    query = {"all": int(args.flag("all")), "filters": json.dumps(filters) if filters else None}
    found = fetch("GET", "/containers/json", query=query)
    if args.flag("quiet"):
        sys.stdout.write("".join(f"{each['Id'] if args.flag('no-trunc') else each['Id'][:12]}\n" for each in found))
        return 0
    if args.text("format") == "json":
        sys.stdout.write("".join(json.dumps(each) + "\n" for each in found))
        return 0
    cut = not args.flag("no-trunc")
    rows = [("CONTAINER ID", "IMAGE", "COMMAND", "STATUS", "NAMES")]
    for each in found:
        command = each["Command"]
        shown = f'"{command[:19] + "…" if cut and len(command) > 20 else command}"'
        name = ", ".join(one.lstrip("/") for one in each["Names"])
        rows.append((each["Id"][:12] if cut else each["Id"], each["Image"], shown, each["Status"], name))
    sys.stdout.write(table(rows))
    return 0


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, three spaces apart."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def logs_command(argv: Sequence[str]) -> int:
    """`wherry logs`."""
    args = parse(LOGS, argv)
    name = part(args.words[0])
    tty = bool(fetch("GET", f"/containers/{name}/json")["Config"]["Tty"])
    query = {
        "stdout": 1, "stderr": 1, "follow": int(args.flag("follow")), "tail": args.text("tail"),
        "timestamps": int(args.flag("timestamps")), "since": args["since"],
    }  # fmt: skip
    answer = call("GET", f"/containers/{name}/logs", query=query, timeout_s=None)
    demultiplex(answer.chunks(), tty=tty)
    return 0


def for_each(names: Sequence[str], verb: str, work: Any) -> int:
    """Do it for each; go on after a failure, and tell all of them."""
    code = 0
    for name in names:
        try:
            work(part(name))
            sys.stdout.write(name + "\n")
        except Refused as error:
            sys.stderr.write(f"wherry {verb}: {error.message}\n")
            code = 1
    return code


def stop_command(argv: Sequence[str]) -> int:
    """`wherry stop`."""
    args = parse(STOP, argv)
    query = {"t": args["time"]}
    return for_each(
        args.words, "stop", lambda name: call("POST", f"/containers/{name}/stop", query=query, timeout_s=None).close()
    )


def kill_command(argv: Sequence[str]) -> int:
    """`wherry kill`."""
    args = parse(KILL, argv)
    query = {"signal": args.text("signal")}
    return for_each(args.words, "kill", lambda name: call("POST", f"/containers/{name}/kill", query=query).close())


def rm_command(argv: Sequence[str]) -> int:
    """`wherry rm`."""
    args = parse(RM, argv)
    query = {"force": int(args.flag("force")), "v": int(args.flag("volumes"))}
    return for_each(args.words, "rm", lambda name: call("DELETE", f"/containers/{name}", query=query).close())
