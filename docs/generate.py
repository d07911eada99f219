"""Write the parts of the pages that are made from the code: `python docs/generate.py`; `--check` only says what is out of date.

A part stands between `<!-- made: NAME -->` and `<!-- end -->`. PARTS has a function for each name; `file PATH` shows a file.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
_PART = re.compile(r"(<!-- made: ([^>]+?) -->\n).*?(<!-- end -->)", re.S)

CONFIG_FIELDS = (
    "Hostname", "Domainname", "User", "AttachStdin", "AttachStdout", "AttachStderr", "ExposedPorts", "Tty", "OpenStdin",
    "StdinOnce", "Env", "Cmd", "Healthcheck", "ArgsEscaped", "Image", "Volumes", "WorkingDir", "Entrypoint",
    "NetworkDisabled", "MacAddress", "OnBuild", "Labels", "StopSignal", "StopTimeout", "Shell", "HostConfig",
    "NetworkingConfig",
)  # fmt: skip
HOST_FIELDS = (
    "CpuShares", "Memory", "CgroupParent", "BlkioWeight", "BlkioWeightDevice", "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod",
    "CpuRealtimeRuntime", "CpusetCpus", "CpusetMems", "Devices", "DeviceCgroupRules", "DeviceRequests", "KernelMemoryTCP",
    "MemoryReservation", "MemorySwap", "MemorySwappiness", "NanoCpus", "OomKillDisable", "Init", "PidsLimit", "Ulimits",
    "CpuCount", "CpuPercent", "IOMaximumIOps", "IOMaximumBandwidth", "Binds", "ContainerIDFile", "LogConfig",
    "NetworkMode", "PortBindings", "RestartPolicy", "AutoRemove", "VolumeDriver", "VolumesFrom", "Mounts", "Annotations",
    "CapAdd", "CapDrop", "CgroupnsMode", "Dns", "DnsOptions", "DnsSearch", "ExtraHosts", "GroupAdd", "IpcMode", "Cgroup",
    "Links", "OomScoreAdj", "PidMode", "Privileged", "PublishAllPorts", "ReadonlyRootfs", "SecurityOpt", "StorageOpt",
    "Tmpfs", "UTSMode", "UsernsMode", "ShmSize", "Sysctls", "Runtime", "Isolation", "MaskedPaths", "ReadonlyPaths",
)  # fmt: skip
"""Fields of `POST /containers/create`. Source: Docker Engine API 1.47, ContainerConfig and HostConfig."""

DOCKER_PATHS = tuple(
    f"{method:<7}{path}"
    for method, path in (
        ("POST", "/auth"), ("GET", "/system/df"), ("POST", "/commit"), ("POST", "/session"), ("POST", "/build/prune"),
        ("GET", "/containers/{id}/top"), ("GET", "/containers/{id}/changes"), ("GET", "/containers/{id}/export"),
        ("GET", "/containers/{id}/stats"), ("POST", "/containers/{id}/update"), ("POST", "/containers/{id}/rename"),
        ("POST", "/containers/{id}/pause"), ("POST", "/containers/{id}/unpause"), ("GET", "/containers/{id}/attach/ws"),
        ("HEAD", "/containers/{id}/archive"), ("GET", "/containers/{id}/archive"), ("PUT", "/containers/{id}/archive"),
        ("POST", "/containers/prune"), ("GET", "/images/search"), ("POST", "/images/prune"), ("GET", "/images/{name}/get"),
        ("GET", "/images/get"), ("POST", "/images/load"), ("POST", "/networks/create"), ("DELETE", "/networks/{id}"),
        ("POST", "/networks/{id}/connect"), ("POST", "/networks/{id}/disconnect"), ("POST", "/networks/prune"),
        ("GET", "/volumes"), ("POST", "/volumes/create"), ("GET", "/volumes/{name}"), ("DELETE", "/volumes/{name}"),
        ("POST", "/volumes/prune"), ("GET", "/plugins"), ("GET", "/distribution/{name}/json"),
    )
)  # fmt: skip
"""Paths of the same API beyond Swarm's that not every engine has to have."""

BUILDS = (
    ("heredocs in RUN", "FROM scratch\nRUN <<EOF\ntrue\nEOF"),
    ("heredocs in COPY", "FROM scratch\nCOPY <<EOF /a\na\nEOF"),
    ("cache mounts", "FROM scratch\nRUN --mount=type=cache,target=/a true"),
    ("bind mounts", "FROM scratch\nRUN --mount=type=bind,target=/a true"),
    ("tmpfs mounts", "FROM scratch\nRUN --mount=type=tmpfs,target=/a true"),
    ("secret mounts", "FROM scratch\nRUN --mount=type=secret,id=a true"),
    ("SSH mounts", "FROM scratch\nRUN --mount=type=ssh true"),
    ("RUN --network=none", "FROM scratch\nRUN --network=none true"),
    ("RUN --network=host", "FROM scratch\nRUN --network=host true"),
    ("RUN --security=insecure", "FROM scratch\nRUN --security=insecure true"),
    ("ADD of a URL", "FROM scratch\nADD https://example.org/a /a"),
    ("ADD of a git repository", "FROM scratch\nADD https://example.org/a.git /a"),
    ("another platform", "FROM --platform=linux/s390x scratch\nCOPY a /a"),
    ("a frontend of one's own (# syntax=)", "# syntax=example.org/frontend\nFROM scratch\nCOPY a /a"),
)
"""What a Dockerfile may ask for beyond its instructions, each with one that asks for it."""


def listed(words: Iterable[str]) -> str:
    """Words as code, with commas."""
    return ", ".join(f"`{word}`" for word in words) or "none"


def commands() -> str:
    """Every command's help, as it prints it."""
    from wherry.cli.args import help_text
    from wherry.cli.main import COMMANDS

    parts: list[str] = []
    for name, (module, _) in COMMANDS.items():
        spec = getattr(import_module(module), name.upper())
        text = "\n".join(line.rstrip() for line in help_text(spec).strip().splitlines())
        parts.append(f"## wherry {name}\n\n```text\n{text}\n```\n")
        for each in getattr(import_module(module), "SUBCOMMANDS", {}).get(name, ()):
            text = "\n".join(line.rstrip() for line in help_text(each).strip().splitlines())
            parts.append(f"### wherry {each.name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def command_table() -> str:
    """Names and summaries."""
    from wherry.cli.main import COMMANDS

    rows = [f"| [`{name}`](#wherry-{name}) | {summary} |" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["| Command | What it does |", "|---|---|", *rows])


def routes(folder: str) -> str:
    """Every `Route(METHOD, PATH, HANDLER)` in the sources of a folder whose handler does more than refuse."""
    found: list[str] = []
    for path in sorted((ROOT / "src/wherry" / folder).glob("*.py")):
        tree = ast.parse(path.read_text())
        named = {
            node.targets[0].id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        refusing = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.AsyncFunctionDef) and all(isinstance(each, ast.Raise) for each in node.body)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Route":
                if isinstance(node.args[2], ast.Attribute) and node.args[2].attr in refusing:
                    continue
                words = [
                    each.value if isinstance(each, ast.Constant) else named.get(getattr(each, "id", ""))
                    for each in node.args[:2]
                ]
                if all(isinstance(word, str) for word in words):
                    found.append(f"{words[0]:<7}{str(words[1]).replace(':path}', '}')}")
    return "```text\n" + "\n".join(sorted(set(found), key=lambda line: (line[7:], line))) + "\n```"


def docker_fields() -> tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[str]]:
    """Fields of a new container that the Docker door reads, and those it refuses: of the config, then of HostConfig.

    It is asked for each with a value of no possible type: known fields complain of the type, others are refused by name.
    """
    from wherry.doors.docker.requests import container_spec
    from wherry.errors import Unsupported, WherryError

    def is_refused(body: Mapping[str, object]) -> bool:
        try:
            container_spec({"Image": "web:1", **body}, "one")
        except Unsupported:
            return True
        except WherryError:
            return False
        return False

    config = {name: is_refused({name: [["asked for"]]}) for name in CONFIG_FIELDS}
    host = {name: is_refused({"HostConfig": {name: [["asked for"]]}}) for name in HOST_FIELDS}
    return (
        [name for name, refused in config.items() if not refused],
        [name for name, refused in config.items() if refused],
        [name for name, refused in host.items() if not refused],
        [name for name, refused in host.items() if refused],
    )


def docker_paths() -> Sequence[str]:
    """Docker's paths that have no route."""
    there = {re.sub(r"{[^}]*}", "*", line) for line in routes("doors/docker").splitlines()}
    return [each for each in DOCKER_PATHS if re.sub(r"{[^}]*}", "*", each) not in there]


def docker_carried() -> str:
    """What is carried out."""
    config, _, host, _ = docker_fields()
    return f"- of the container: {listed(config)}\n- of `HostConfig`: {listed(host)}"


def docker_refused() -> str:
    """What is refused."""
    from wherry.doors.docker import door, requests

    called: Mapping[str, str] = getattr(requests, "OPTIONS", {})

    def named(fields: Sequence[str]) -> str:
        return ", ".join(f"`{name}` ({called[name]})" if name in called else f"`{name}`" for name in fields) or "none"

    _, config, _, host = docker_fields()
    lines = [
        f"- fields of a new container: {named(config)}",
        f"- fields of its `HostConfig`: {named(host)}",
        f"- options of a build: {listed(build_options())}",
        f"- paths: {listed(re.sub(r' +', ' ', each) for each in docker_paths())}",
        f"- Swarm's paths, with Docker's own words for an engine that is in no swarm: {listed(door.SWARM)}",
    ]
    return "\n".join(lines)


def build_options() -> Sequence[str]:
    """The parameters of `POST /build` that the door names as refused."""
    tree = ast.parse((ROOT / "src/wherry/doors/docker/images.py").read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id.lower() == "refused"
        ):
            return [str(value) for value in ast.literal_eval(node.value)]
    return ()


def kinds() -> str:
    """The table of kinds."""
    from wherry.model.kinds import KINDS

    rows = ["| Group and version | Resource | Short | Sub-resources | History |", "|---|---|---|---|---|"]
    for kind in KINDS:
        parts = ", ".join(part.name for part in kind.subresources)
        kept = str(kind.history_budget or "none") if kind.stored else "not kept"
        rows.append(f"| {kind.api_version} | `{kind.plural}` | {', '.join(kind.short_names)} | {parts} | {kept} |")
    return "\n".join(rows)


def refused_kinds() -> str:
    """Kinds and sub-resources that the API refuses with 501."""
    from wherry.api import server
    from wherry.api.admission.refused import FEATURES

    by_feature: dict[str, list[str]] = {}
    for kind, feature in FEATURES.items():
        by_feature.setdefault(feature, []).append(kind.plural)
    lines = [f"- {feature}: creating {listed(plurals)}" for feature, plurals in by_feature.items()]
    lines += [f"- {feature}: `.../{name}`" for name, feature in server._REFUSED.items()]  # pyright: ignore[reportPrivateUsage]
    return "\n".join(lines)


def controllers() -> str:
    """The controllers, and what each file says of itself."""
    from wherry.controllers.runner import CONTROLLERS

    return listed(each.name for each in CONTROLLERS)


def dockerfile() -> str:
    """Instructions, flags, and what BUILDS asks for: what is built, and what is refused."""
    from wherry.builder.instructions import FLAGS, REFUSED, SUPPORTED

    built = [f"{name} --{flag}" for name, flags in FLAGS.items() for flag, there in flags.items() if there]
    refused = [f"{name} --{flag}" for name, flags in FLAGS.items() for flag, there in flags.items() if not there]
    asked = {words: is_refused_build(text) for words, text in BUILDS}
    return "\n".join(
        [
            f"- built: {listed(SUPPORTED)}; the flags {listed(built)}; {words_of(asked, refused=False)}",
            f"- refused by name: {listed((*REFUSED, *refused))}; {words_of(asked, refused=True)}",
        ]
    )


def words_of(asked: Mapping[str, bool], *, refused: bool) -> str:
    """The things asked for that are refused, or that are not."""
    return ", ".join(words for words, answer in asked.items() if answer is refused) or "nothing else"


def is_refused_build(text: str) -> bool:
    """Whether a Dockerfile is refused as unsupported when it is planned."""
    from wherry.builder.graph import plan
    from wherry.builder.instructions import parse
    from wherry.builder.source import read
    from wherry.content.oci import this_platform
    from wherry.errors import Unsupported

    try:
        plan(parse(read(text)), args={}, target="", platform=this_platform(), bases={})
    except Unsupported:
        return True
    return False


def settings() -> str:
    """The settings that files may have."""
    from wherry.config import SETTINGS

    rows = ["| Key | Default | Values | Meaning |", "|---|---|---|---|"]
    for each in SETTINGS:
        default = "" if each.default is None else f"`{each.default}`"
        rows.append(f"| `{each.name}` | {default} | {', '.join(each.choices)} | {each.help} |")
    return "\n".join(rows)


def checks() -> str:
    """What `wherry doctor` looks at, in its order."""
    from wherry.daemon.doctor import examine
    from wherry.daemon.instance import DEFAULT_ROOT, Instance

    return listed(each.name for each in examine(Instance.at(DEFAULT_ROOT)))


def file(path: str) -> str:
    """A file of the project, whole."""
    language = {".py": "python", ".yaml": "yaml"}.get(Path(path).suffix, "text")
    return f"```{language}\n{(ROOT / path).read_text().rstrip()}\n```"


PARTS: Mapping[str, Callable[[], str]] = {
    "commands": commands,
    "command table": command_table,
    "docker routes": lambda: routes("doors/docker"),
    "docker carried": docker_carried,
    "docker refused": docker_refused,
    "registry routes": lambda: routes("registry"),
    "kinds": kinds,
    "refused kinds": refused_kinds,
    "controllers": controllers,
    "dockerfile": dockerfile,
    "settings": settings,
    "checks": checks,
}


def filled(text: str) -> str:
    """A page with its parts made anew. Raises KeyError for a part that nobody makes."""

    def make(match: re.Match[str]) -> str:
        name = match[2]
        body = file(name.removeprefix("file ")) if name.startswith("file ") else PARTS[name]()
        return f"{match[1]}{body.rstrip()}\n{match[3]}"

    return _PART.sub(make, text)


def stale() -> Sequence[Path]:
    """The pages that differ from what the code says."""
    return [path for path in PAGES if filled(path.read_text()) != path.read_text()]


def main() -> int:
    """Write the pages that are out of date, or with `--check` only name them (exit code 1)."""
    found = stale()
    for path in found:
        print(path.relative_to(ROOT))
        if "--check" not in sys.argv:
            path.write_text(filled(path.read_text()))
    return 1 if found and "--check" in sys.argv else 0


if __name__ == "__main__":
    raise SystemExit(main())
