"""`wherry engine ...`: run a container engine alone, behind a Docker socket; client certificates; a systemd unit."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from wherry.cli.args import Option, Spec, Usage, help_text, parse
from wherry.cli.instances import ROOT
from wherry.daemon.instance import DEFAULT_ROOT

SERVE = Spec(
    "engine serve",
    "Run a container engine in the foreground, with no cluster: what dockerd is to docker. It ends with Ctrl-C or SIGTERM;\n"
    "containers go on running, and the next start takes them up. 'wherry down' ends it with all of them.",
    "[--root DIR] [--socket PATH] [--tcp HOST:PORT]",
    (
        Option("root", f"directory of the engine's state [default: {DEFAULT_ROOT}]", metavar="DIR"),
        Option("socket", "answer on this unix socket too; may be given several times", shape="many", metavar="PATH"),
        Option("group", "group of the sockets [default: wherry, where there is such a group]", metavar="NAME"),
        Option(
            "tcp", "answer here by TLS, to clients that have a bundle of 'wherry engine client'", metavar="HOST:PORT"
        ),
        Option("tls-name", "one more name or address that clients call this machine by", shape="many", metavar="NAME"),
        Option("publish-address", "where ports are published that name no address [default: 0.0.0.0]"),
        Option("userns-remap", "whose users containers' users are: as for 'wherry up'", metavar="USER"),
    ),
    examples=(
        "wherry engine serve",
        "wherry engine serve --socket /run/docker.sock --group docker",
        "wherry engine serve --tcp 0.0.0.0:2376 --tls-name build.example.org",
    ),
)
CLIENT = Spec(
    "engine client",
    "Write ca.pem, cert.pem and key.pem for a client of the engine's TCP address. Who has them is root on this machine.",
    "DIR [--name NAME] [--days N]",
    (
        ROOT,
        Option("name", "whom it is for: the certificate's common name", default="client"),
        Option("days", "how long it holds", shape="number", default=365),
    ),
    1,
    1,
    examples=(
        "wherry engine client ./bundle --name ci",
        "DOCKER_HOST=tcp://HOST:2376 DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=./bundle docker ps",
    ),
)
UNIT = Spec(
    "engine unit",
    "Print a systemd unit that runs the engine with these options.",
    "[OPTIONS of 'engine serve']",
    SERVE.options,
    examples=(
        "wherry engine unit --socket /run/docker.sock > /etc/systemd/system/wherry-engine.service",
        "systemctl daemon-reload && systemctl enable --now wherry-engine",
    ),
)

UNIT_TEXT = """\
[Unit]
Description=wherry container engine
After=network-online.target local-fs.target
Wants=network-online.target

[Service]
Type=notify
ExecStart={command}
Restart=on-failure
RestartSec=1
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
"""
"""`KillMode=process`: containers and their monitors outlive a restart of the engine."""


def engine_command(argv: Sequence[str]) -> int:
    """`wherry engine`."""
    if not argv or argv[0] in ("--help", "-h"):
        sys.stdout.write(help_text(ENGINE))
        return 0 if argv else 2
    found = VERBS.get(argv[0])
    if found is None:
        from difflib import get_close_matches

        close = get_close_matches(argv[0], list(VERBS), n=1)
        raise Usage("engine", f"no subcommand {argv[0]!r}" + (f"; did you mean {close[0]}?" if close else ""))
    return found[1](argv[1:])


def _serve(argv: Sequence[str]) -> int:
    args = parse(SERVE, argv)
    import asyncio
    import logging

    from wherry import config

    found = {name: each.value for name, each in config.load(args.values).items()}
    from wherry.daemon.alone import Options, serve

    level = os.environ.get("WHERRY_LOG_LEVEL", "INFO").upper()
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    options = Options(
        Path(str(found["root"])), str(found["publish-address"]), str(found["userns-remap"] or ""), args.many("socket"),
        args.text("group"), args.text("tcp"), args.many("tls-name"),
    )  # fmt: skip
    asyncio.run(serve(options))
    return 0


def _client(argv: Sequence[str]) -> int:
    args = parse(CLIENT, argv)
    from wherry.daemon.doorkeys import write_bundle
    from wherry.daemon.instance import Instance

    instance = Instance.at(args.text("root"))
    place = Path(args.words[0])
    write_bundle(instance.engine_pki, place, args.text("name"), days=args["days"])
    sys.stdout.write(f"export DOCKER_TLS_VERIFY=1\nexport DOCKER_CERT_PATH={_quoted(str(place.absolute()))}\n")
    return 0


def _unit(argv: Sequence[str]) -> int:
    args = parse(UNIT, argv)
    words = [os.path.abspath(sys.argv[0])] if os.path.basename(sys.argv[0]) == "wherry" else [sys.executable, "-m", _US]
    words += ["engine", "serve"]
    for option in SERVE.options:
        value = args[option.name]
        for each in value if option.shape == "many" else [value] if value else []:
            words += [f"--{option.name}", str(each)]
    sys.stdout.write(UNIT_TEXT.format(command=" ".join(_escaped(word) for word in words)))
    return 0


_US = "wherry.cli.main"


def _escaped(word: str) -> str:
    """A word of a unit's command line. Source: systemd.service(5), "Command lines"."""
    word = word.replace("%", "%%").replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{word}"' if any(each in word for each in " \t;'\"\\") else word


def _quoted(text: str) -> str:
    from shlex import quote

    return quote(text)


VERBS: dict[str, tuple[Spec, Callable[[Sequence[str]], int]]] = {
    "serve": (SERVE, _serve),
    "client": (CLIENT, _client),
    "unit": (UNIT, _unit),
}
SUBCOMMANDS = {"engine": tuple(spec for spec, _ in VERBS.values())}
ENGINE = Spec(
    "engine",
    "Run a container engine alone, with no cluster. 'wherry engine COMMAND --help' says more.\n\nCommands:\n"
    + "\n".join(f"  {name:<8} {spec.summary.splitlines()[0]}" for name, (spec, _) in VERBS.items()),
    "COMMAND ...",
    examples=("wherry engine serve", "wherry engine client ./bundle", "wherry engine unit"),
)
