"""Commands that look, in docker's words: inspect, top, stats, port, diff, history, events, info."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.cli.args import Option, Spec, parse
from wherry.cli.containers import table
from wherry.cli.engine import Refused, call, fetch, part
from wherry.cli.images import human

OUTPUT = Option("output", "form of the answer", "o", default="table", choices=("table", "json"))
KINDS = ("container", "image", "network", "volume")

INSPECT = Spec(
    "inspect", "Print all that is known of containers, images, networks or volumes, as JSON.", "[--type KIND] NAME...",
    (Option("type", "look for this kind only", choices=KINDS),), 1, None, examples=("wherry inspect web",),
)  # fmt: skip
TOP = Spec(
    "top", "List the processes of a container.", "[-o json] CONTAINER [PS OPTIONS]", (OUTPUT,), 1, None, rest=True,
    examples=("wherry top web", "wherry top web -o pid,rss,comm"),
)  # fmt: skip
STATS = Spec(
    "stats", "Show what running containers use: processor, memory, network, processes.", "[--no-stream] [CONTAINER...]",
    (Option("no-stream", "once, and not again and again", shape="flag"), OUTPUT), 0, None,
    examples=("wherry stats --no-stream",),
)  # fmt: skip
PORT = Spec("port", "List where a container's ports are published.", "[-o json] CONTAINER [PORT]", (OUTPUT,), 1, 2)
DIFF = Spec(
    "diff", "List what a container has changed against its image: A added, C changed, D deleted.", "[-o json] CONTAINER",
    (OUTPUT,), 1, 1,
)  # fmt: skip
HISTORY = Spec(
    "history", "List the steps that an image was made by, the newest first.", "[-o json] IMAGE", (OUTPUT,), 1, 1
)
EVENTS = Spec(
    "events", "Print what happens, as it happens.", "[--since T] [--until T] [--filter K=V] [-o json]",
    (
        Option("since", "from then on: a time, or ago, as 10m"),
        Option("until", "up to then"),
        Option("filter", "such as container=web, event=die, type=network", "f", "many"),
        OUTPUT,
    ),
    examples=("wherry events --filter event=die", "wherry events --since 10m --until 0s"),
)  # fmt: skip
INFO = Spec("info", "Say what the engine is and has.", "[-o json]", (OUTPUT,))


def show_json(value: Any) -> int:
    """Print a value for programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    return 0


def filters_of(words: Sequence[str]) -> str | None:
    """KEY=VALUE words as the API has filters."""
    found: dict[str, list[str]] = {}
    for word in words:
        name, _, value = word.partition("=")
        found.setdefault(name, []).append(value)
    return json.dumps(found) if found else None


def found_of(kind: str, name: str) -> Any:
    """Everything known of one thing. Raises Refused."""
    paths = {"container": f"/containers/{name}/json", "image": f"/images/{name}/json"}
    return fetch("GET", paths.get(kind, f"/{kind}s/{name}"))


def inspect_command(argv: Sequence[str]) -> int:
    """`wherry inspect`."""
    args = parse(INSPECT, argv)
    kinds = [args.text("type")] if args["type"] else KINDS
    found: list[Any] = []
    code = 0
    for word in args.words:
        for kind in kinds:
            try:
                found.append(found_of(kind, part(word)))
                break
            except Refused as error:
                if error.status != 404:
                    raise
        else:
            sys.stderr.write(f"wherry inspect: no such {' or '.join(kinds)}: {word}\n")
            code = 1
    show_json(found)
    return code


def top_command(argv: Sequence[str]) -> int:
    """`wherry top`."""
    args = parse(TOP, argv)
    query = {"ps_args": " ".join(args.words[1:])} if args.words[1:] else {}
    found = fetch("GET", f"/containers/{part(args.words[0])}/top", query=query)
    if args.text("output") == "json":
        return show_json(found)
    sys.stdout.write(table([found["Titles"], *found["Processes"]]))
    return 0


def stats_command(argv: Sequence[str]) -> int:
    """`wherry stats`."""
    args = parse(STATS, argv)
    while True:
        names = args.words or [each["Id"] for each in fetch("GET", "/containers/json")]
        found = [fetch("GET", f"/containers/{part(name)}/stats", query={"stream": 0}) for name in names]
        if args.text("output") == "json":
            show_json(found)
        else:
            clear = "" if args.flag("no-stream") or not sys.stdout.isatty() else "\033[H\033[J"
            sys.stdout.write(clear + table([STATS_TITLES, *map(stats_row, found)]))
        sys.stdout.flush()
        if args.flag("no-stream"):
            return 0


STATS_TITLES = ("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "PIDS")


def stats_row(found: Mapping[str, Any]) -> Sequence[str]:
    """One line of `stats`, out of two counts of the processor that lie apart."""
    now, before = found.get("cpu_stats") or {}, found.get("precpu_stats") or {}
    busy = _cpu(now) - _cpu(before)
    passed = int(now.get("system_cpu_usage") or 0) - int(before.get("system_cpu_usage") or 0)
    share = busy / passed * int(now.get("online_cpus") or 1) * 100 if passed > 0 else 0.0
    memory = found.get("memory_stats") or {}
    used, limit = int(memory.get("usage") or 0), int(memory.get("limit") or 0)
    inner = memory.get("stats") or {}
    used = max(0, used - int(inner.get("inactive_file", inner.get("total_inactive_file", 0)) or 0))
    links: Sequence[Mapping[str, Any]] = list((found.get("networks") or {}).values())
    traffic = " / ".join(human(sum(int(each.get(name) or 0) for each in links)) for name in ("rx_bytes", "tx_bytes"))
    return (
        str(found.get("id", ""))[:12], str(found.get("name", "")).lstrip("/"), f"{share:.2f}%",
        f"{human(used)} / {human(limit)}", f"{used / limit * 100 if limit else 0:.2f}%", traffic,
        str((found.get("pids_stats") or {}).get("current") or 0),
    )  # fmt: skip


def _cpu(counts: Mapping[str, Any]) -> int:
    return int((counts.get("cpu_usage") or {}).get("total_usage") or 0)


def port_command(argv: Sequence[str]) -> int:
    """`wherry port`."""
    args = parse(PORT, argv)
    ports: Mapping[str, Any] = fetch("GET", f"/containers/{part(args.words[0])}/json")["NetworkSettings"]["Ports"] or {}
    published = {port: places for port, places in ports.items() if places}
    if len(args.words) > 1:
        wanted = args.words[1] if "/" in args.words[1] else f"{args.words[1]}/tcp"
        if wanted not in published:
            raise Refused(f"no public port '{wanted}' published for {args.words[0]}", 0)
        published = {wanted: published[wanted]}
    if args.text("output") == "json":
        return show_json(published)
    for port, places in published.items():
        for each in places:
            host = f"[{each['HostIp']}]" if ":" in each["HostIp"] else each["HostIp"]
            head = "" if len(args.words) > 1 else f"{port} -> "
            sys.stdout.write(f"{head}{host}:{each['HostPort']}\n")
    return 0


def diff_command(argv: Sequence[str]) -> int:
    """`wherry diff`."""
    args = parse(DIFF, argv)
    found = fetch("GET", f"/containers/{part(args.words[0])}/changes") or []
    if args.text("output") == "json":
        return show_json(found)
    sys.stdout.write("".join(f"{'CAD'[each['Kind']]} {each['Path']}\n" for each in found))
    return 0


def history_command(argv: Sequence[str]) -> int:
    """`wherry history`."""
    args = parse(HISTORY, argv)
    found = fetch("GET", f"/images/{part(args.words[0])}/history")
    if args.text("output") == "json":
        return show_json(found)
    rows = [("IMAGE", "CREATED BY", "SIZE", "COMMENT")]
    for each in found:
        made = each["CreatedBy"].replace("\t", " ").replace("\n", " ")
        id = each["Id"].removeprefix("sha256:")
        rows.append((id[:12] if each["Id"] != "<missing>" else id, made[:60], human(each["Size"]), each["Comment"]))
    sys.stdout.write(table(rows))
    return 0


def events_command(argv: Sequence[str]) -> int:
    """`wherry events`."""
    args = parse(EVENTS, argv)
    query = {"since": args["since"], "until": args["until"], "filters": filters_of(args.many("filter"))}
    rest = b""
    for chunk in call("GET", "/events", query=query, timeout_s=None).chunks():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                sys.stdout.write(line.decode() + "\n" if args.text("output") == "json" else _event(json.loads(line)))
        sys.stdout.flush()
    return 0


def _event(found: Mapping[str, Any]) -> str:
    from wherry.clock import rfc3339_nano

    attributes = ", ".join(f"{name}={value}" for name, value in sorted(found["Actor"]["Attributes"].items()))
    when = rfc3339_nano(found["timeNano"] / 1e9)
    return f"{when} {found['Type']} {found['Action']} {found['Actor']['ID']}" + (
        f" ({attributes})\n" if attributes else "\n"
    )


def info_command(argv: Sequence[str]) -> int:
    """`wherry info`."""
    args = parse(INFO, argv)
    found = fetch("GET", "/info")
    if args.text("output") == "json":
        return show_json(found)
    counts = "{ContainersRunning} running, {ContainersPaused} paused, {ContainersStopped} stopped".format(**found)
    rows = [
        ("name", found["Name"]), ("version", found["ServerVersion"]), ("containers", f"{found['Containers']} ({counts})"),
        ("images", str(found["Images"])), ("root", found["DockerRootDir"]), ("runtime", found["DefaultRuntime"]),
        ("cgroups", f"v{found['CgroupVersion']}"), ("system", f"{found['OperatingSystem']}, {found['KernelVersion']}"),
        ("machine", f"{found['NCPU']} processors, {human(found['MemTotal'])} of memory"),
        *(("warning", text.removeprefix("WARNING: ")) for text in found.get("Warnings") or ()),
    ]  # fmt: skip
    sys.stdout.write(table(rows))
    return 0
