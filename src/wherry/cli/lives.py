"""Commands about the life of a container, in docker's words: create, start, restart, pause, update, wait, attach."""

import sys
from collections.abc import Sequence
from typing import Any

from wherry.cli.args import Option, Spec, parse
from wherry.cli.containers import RUN, UPGRADE, body_of, cores, for_each, joined, made_of, restart_policy, size_bytes
from wherry.cli.engine import Refused, call, fetch, part

CREATE = Spec(
    "create", "Make a container and leave it; 'wherry start' starts it.", "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    tuple(option for option in RUN.options if option.name != "detach"), least=1, most=None, rest=True,
    examples=("wherry create --name web -p 8080:80 web:1",),
)  # fmt: skip
START = Spec(
    "start", "Start containers that were made, or have ended.", "[-a] [-i] CONTAINER...",
    (Option("attach", "show its output, end with its exit code", "a", "flag"),
     Option("interactive", "join our stdin to it", "i", "flag")),
    least=1, most=None, examples=("wherry start web", "wherry start -a job"),
)  # fmt: skip
RESTART = Spec(
    "restart", "Stop containers and start them again.", "[-t SECONDS] CONTAINER...",
    (Option("time", "seconds before SIGKILL", "t", "number"),), least=1, most=None, examples=("wherry restart web",),
)  # fmt: skip
PAUSE = Spec("pause", "Hold all processes of containers where they are.", "CONTAINER...", (), 1, None)
UNPAUSE = Spec("unpause", "Let the processes of paused containers go on.", "CONTAINER...", (), 1, None)
RENAME = Spec("rename", "Give a container another name.", "CONTAINER NAME", (), 2, 2)
WAIT = Spec("wait", "Wait until containers have ended, and print their exit codes.", "CONTAINER...", (), 1, None)
UPDATE = Spec(
    "update", "Give containers other limits, at once where they run, or another restart policy.", "[OPTIONS] CONTAINER...",
    (
        Option("memory", "limit, such as 64m", "m"),
        Option("memory-swap", "limit of memory and swap together; -1 for none"),
        Option("cpus", "limit in cores, such as 0.5"),
        Option("cpu-shares", "weight against others", shape="number"),
        Option("cpuset-cpus", "the processors it may use, such as 0-2"),
        Option("pids-limit", "limit of processes", shape="number"),
        Option("restart", "no, always, unless-stopped, on-failure[:N]"),
    ),
    least=1, most=None, examples=("wherry update -m 256m --cpus 1.5 web", "wherry update --restart always web"),
)  # fmt: skip
ATTACH = Spec(
    "attach", "Join our terminal, or our streams, to a running container. It ends with the container's exit code.",
    "[--no-stdin] CONTAINER", (Option("no-stdin", "only look on", shape="flag"),), 1, 1, examples=("wherry attach web",),
)  # fmt: skip


def create_command(argv: Sequence[str]) -> int:
    """`wherry create`."""
    args = parse(CREATE, argv)
    sys.stdout.write(made_of(args, body_of(args))["Id"] + "\n")
    return 0


def start_command(argv: Sequence[str]) -> int:
    """`wherry start`."""
    args = parse(START, argv)
    joins = args.flag("attach") or args.flag("interactive")
    if joins and len(args.words) == 1:
        return _attached(args.words[0], stdin=args.flag("interactive"), start=True)
    if joins:
        raise Refused("one container at a time can be attached to", 0)
    return for_each(args.words, "start", lambda name: call("POST", f"/containers/{name}/start").close())


def attach_command(argv: Sequence[str]) -> int:
    """`wherry attach`."""
    args = parse(ATTACH, argv)
    if not fetch("GET", f"/containers/{part(args.words[0])}/json")["State"]["Running"]:
        raise Refused("it does not run: 'wherry start -a' starts it and joins us to it", 0)
    return _attached(args.words[0], stdin=not args.flag("no-stdin"), start=False)


def _attached(word: str, *, stdin: bool, start: bool) -> int:
    """Join us to a container; its exit code."""
    name = part(word)
    config = fetch("GET", f"/containers/{name}/json")["Config"]
    stdin = stdin and bool(config["OpenStdin"])
    streams = {"stream": 1, "stdin": int(stdin), "stdout": 1, "stderr": 1}
    attached = call("POST", f"/containers/{name}/attach", query=streams, headers=UPGRADE, timeout_s=None)
    condition = "next-exit" if start else "not-running"
    waiting = call("POST", f"/containers/{name}/wait", query={"condition": condition}, timeout_s=None)
    if start:
        call("POST", f"/containers/{name}/start").close()

    def resize(rows: int, columns: int) -> None:
        call("POST", f"/containers/{name}/resize", query={"h": rows, "w": columns}).close()

    joined(attached, tty=bool(config["Tty"]), stdin=stdin, resize=resize)
    import json

    return int(json.loads(waiting.read())["StatusCode"])


def restart_command(argv: Sequence[str]) -> int:
    """`wherry restart`."""
    args = parse(RESTART, argv)
    query = {"t": args["time"]}
    return for_each(
        args.words,
        "restart",
        lambda name: call("POST", f"/containers/{name}/restart", query=query, timeout_s=None).close(),
    )


def pause_command(argv: Sequence[str]) -> int:
    """`wherry pause`."""
    return for_each(parse(PAUSE, argv).words, "pause", lambda name: call("POST", f"/containers/{name}/pause").close())


def unpause_command(argv: Sequence[str]) -> int:
    """`wherry unpause`."""
    return for_each(
        parse(UNPAUSE, argv).words, "unpause", lambda name: call("POST", f"/containers/{name}/unpause").close()
    )


def rename_command(argv: Sequence[str]) -> int:
    """`wherry rename`."""
    words = parse(RENAME, argv).words
    call("POST", f"/containers/{part(words[0])}/rename", query={"name": words[1]}).close()
    return 0


def wait_command(argv: Sequence[str]) -> int:
    """`wherry wait`."""
    for word in parse(WAIT, argv).words:
        found = fetch("POST", f"/containers/{part(word)}/wait", timeout_s=None)
        sys.stdout.write(f"{found['StatusCode']}\n")
        sys.stdout.flush()
    return 0


def update_command(argv: Sequence[str]) -> int:
    """`wherry update`."""
    args = parse(UPDATE, argv)
    swap = args.text("memory-swap")
    body: dict[str, Any] = {
        "Memory": size_bytes(args.text("memory")) if args["memory"] else None,
        "MemorySwap": (-1 if swap == "-1" else size_bytes(swap)) if swap else None,
        "NanoCpus": cores(args.text("cpus")) if args["cpus"] else None,
        "CpuShares": args["cpu-shares"],
        "CpusetCpus": args["cpuset-cpus"],
        "PidsLimit": args["pids-limit"],
        "RestartPolicy": restart_policy(args.text("restart")) if args["restart"] else None,
    }
    body = {name: value for name, value in body.items() if value is not None}
    return for_each(args.words, "update", lambda name: fetch("POST", f"/containers/{name}/update", body=body))
