"""Commands about networks, volumes and disk space, in docker's words: network, volume, system."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wherry.cli.args import Option, Parsed, Spec, Usage, help_text, pair, parse
from wherry.cli.containers import for_each, table
from wherry.cli.engine import Refused, call, fetch, part
from wherry.cli.images import human
from wherry.cli.looks import OUTPUT, filters_of, found_of, show_json

Verbs = Mapping[str, tuple[Spec, Callable[[Parsed], int]]]
FILTER = Option("filter", "such as name=web, label=a=b", "f", "many")
QUIET = Option("quiet", "names only", "q", "flag")
FORCE = Option("force", "do not ask", "f", "flag")
LABEL = Option("label", "KEY=VALUE", shape="many")


def _asked(args: Parsed, what: str) -> None:
    """Ask before something is deleted; without a terminal there is nobody to ask. Raises Refused."""
    if args.flag("force"):
        return
    if not sys.stdin.isatty():
        raise Refused(f"it deletes {what}: give --force", 0)
    sys.stderr.write(f"This deletes {what}. Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("nothing was deleted", 0)


# networks -----------------------------------------------------------------------------------------------------------------
def _networks(args: Parsed) -> int:
    found = fetch("GET", "/networks", query={"filters": filters_of(args.many("filter"))})
    if args.text("output") == "json":
        return show_json(found)
    if args.flag("quiet"):
        sys.stdout.write("".join(f"{each['Id'][:12]}\n" for each in found))
        return 0
    rows = [("NETWORK ID", "NAME", "DRIVER", "SUBNETS")]
    for each in found:
        subnets = ", ".join(one.get("Subnet", "") for one in (each.get("IPAM") or {}).get("Config") or ())
        rows.append((each["Id"][:12], each["Name"], each["Driver"], subnets))
    sys.stdout.write(table(rows))
    return 0


def _make_network(args: Parsed) -> int:
    place = {"Subnet": args.text("subnet"), "Gateway": args.text("gateway"), "IPRange": args.text("ip-range")}
    place = {name: value for name, value in place.items() if value}
    body = {
        "Name": args.words[0], "Driver": "bridge", "Internal": args.flag("internal"), "EnableIPv6": args.flag("ipv6"),
        "Labels": dict(pair(each) for each in args.many("label")), "Options": dict(pair(each) for each in args.many("opt")),
        "IPAM": {"Config": [place] if place else []},
    }  # fmt: skip
    sys.stdout.write(fetch("POST", "/networks/create", body=body)["Id"] + "\n")
    return 0


def _join(args: Parsed) -> int:
    ends = {"Aliases": args.many("alias"), "IPAMConfig": {"IPv4Address": args.text("ip")}}
    body = {"Container": args.words[1], "EndpointConfig": ends}
    call("POST", f"/networks/{part(args.words[0])}/connect", body=body).close()
    return 0


def _leave(args: Parsed) -> int:
    body = {"Container": args.words[1], "Force": args.flag("force")}
    call("POST", f"/networks/{part(args.words[0])}/disconnect", body=body).close()
    return 0


def _remover(kind: str) -> Callable[[Parsed], int]:
    return lambda args: for_each(args.words, f"{kind} rm", lambda name: call("DELETE", f"/{kind}s/{name}").close())


def _inspector(kind: str) -> Callable[[Parsed], int]:
    return lambda args: show_json([found_of(kind, part(word)) for word in args.words])


def _prune_networks(args: Parsed) -> int:
    _asked(args, "all networks that no container uses")
    found = fetch("POST", "/networks/prune", query={"filters": filters_of(args.many("filter"))})
    sys.stdout.write("".join(f"{name}\n" for name in found["NetworksDeleted"] or ()))
    return 0


NETWORKS: Verbs = {
    "ls": (Spec("network ls", "List networks.", "[-q] [--filter K=V] [-o json]", (QUIET, FILTER, OUTPUT)), _networks),
    "create": (
        Spec(
            "network create", "Make a network: a bridge with names for its containers.", "[OPTIONS] NAME",
            (
                Option("subnet", "its addresses, as 172.30.0.0/16"), Option("gateway", "our address there"),
                Option("ip-range", "where containers' addresses are taken from"), LABEL,
                Option("internal", "no way out", shape="flag"), Option("ipv6", "IPv6 too", shape="flag"),
                Option("opt", "KEY=VALUE, as com.docker.network.driver.mtu=1400", shape="many"),
            ),
            1, 1, examples=("wherry network create front", "wherry network create --internal --subnet 172.30.0.0/16 back"),
        ),
        _make_network,
    ),
    "rm": (Spec("network rm", "Remove networks.", "NAME...", (), 1, None), _remover("network")),
    "inspect": (Spec("network inspect", "Print all that is known of networks, as JSON.", "NAME...", (), 1, None),
                _inspector("network")),
    "connect": (Spec("network connect", "Put a container on one more network, running or not.", "[OPTIONS] NETWORK CONTAINER",
                     (Option("alias", "one more name there", shape="many"), Option("ip", "its address there")), 2, 2), _join),
    "disconnect": (Spec("network disconnect", "Take a container off a network.", "[-f] NETWORK CONTAINER",
                        (Option("force", "also when it is not there any more", "f", "flag"),), 2, 2), _leave),
    "prune": (Spec("network prune", "Remove all networks that no container uses.", "[-f]",
                   (FORCE, Option("filter", "such as label=a=b, until=24h", shape="many"))), _prune_networks),
}  # fmt: skip


# volumes ------------------------------------------------------------------------------------------------------------------
def _volumes(args: Parsed) -> int:
    found = fetch("GET", "/volumes", query={"filters": filters_of(args.many("filter"))})["Volumes"] or []
    if args.text("output") == "json":
        return show_json(found)
    if args.flag("quiet"):
        sys.stdout.write("".join(f"{each['Name']}\n" for each in found))
        return 0
    sys.stdout.write(table([("DRIVER", "VOLUME NAME"), *((each["Driver"], each["Name"]) for each in found)]))
    return 0


def _make_volume(args: Parsed) -> int:
    body = {
        "Name": args.words[0] if args.words else "", "Driver": "local",
        "Labels": dict(pair(each) for each in args.many("label")), "DriverOpts": dict(pair(each) for each in args.many("opt")),
    }  # fmt: skip
    sys.stdout.write(fetch("POST", "/volumes/create", body=body)["Name"] + "\n")
    return 0


def _prune_volumes(args: Parsed) -> int:
    _asked(
        args,
        "all volumes that no container uses" if args.flag("all") else "all nameless volumes that no container uses",
    )
    words = [*args.many("filter"), *(["all=true"] if args.flag("all") else [])]
    found = fetch("POST", "/volumes/prune", query={"filters": filters_of(words)})
    sys.stdout.write("".join(f"{name}\n" for name in found["VolumesDeleted"] or ()))
    sys.stdout.write(f"Total reclaimed space: {human(found['SpaceReclaimed'])}\n")
    return 0


VOLUMES: Verbs = {
    "ls": (Spec("volume ls", "List volumes.", "[-q] [--filter K=V] [-o json]", (QUIET, FILTER, OUTPUT)), _volumes),
    "create": (Spec("volume create", "Make a volume.", "[OPTIONS] [NAME]",
                    (LABEL, Option("opt", "KEY=VALUE for the driver", "o", "many")), 0, 1,
                    examples=("wherry volume create data",)), _make_volume),
    "rm": (Spec("volume rm", "Remove volumes.", "NAME...", (), 1, None), _remover("volume")),
    "inspect": (Spec("volume inspect", "Print all that is known of volumes, as JSON.", "NAME...", (), 1, None),
                _inspector("volume")),
    "prune": (Spec("volume prune", "Remove volumes that no container uses.", "[-a] [-f]",
                   (FORCE, Option("all", "those with a name too", "a", "flag"),
                    Option("filter", "such as label=a=b", shape="many"))), _prune_volumes),
}  # fmt: skip


# disk space ---------------------------------------------------------------------------------------------------------------
def _df(args: Parsed) -> int:
    found = fetch("GET", "/system/df", timeout_s=None)
    if args.text("output") == "json":
        return show_json(found)
    images, containers, volumes, cache = (
        found[name] or [] for name in ("Images", "Containers", "Volumes", "BuildCache")
    )
    rows = [
        ("TYPE", "TOTAL", "ACTIVE", "SIZE"),
        ("Images", str(len(images)), str(sum(each["Containers"] > 0 for each in images)), human(found["LayersSize"])),
        ("Containers", str(len(containers)), str(sum(each["State"] == "running" for each in containers)),
         human(sum(each.get("SizeRw") or 0 for each in containers))),
        ("Local Volumes", str(len(volumes)), str(sum((each.get("UsageData") or {}).get("RefCount", 0) > 0 for each in volumes)),
         human(sum((each.get("UsageData") or {}).get("Size", 0) for each in volumes))),
        ("Build Cache", str(len(cache)), str(sum(bool(each.get("InUse")) for each in cache)),
         human(sum(each.get("Size") or 0 for each in cache))),
    ]  # fmt: skip
    sys.stdout.write(table(rows))
    return 0


def _prune(args: Parsed) -> int:
    everything = args.flag("all")
    what = "all ended containers, unused networks, " + ("all unused images" if everything else "images without a name")
    _asked(args, what + (", and nameless volumes" if args.flag("volumes") else ""))
    words = args.many("filter")
    freed = 0
    kinds = [("containers", words), ("networks", words)]
    kinds += [("volumes", [word for word in words if not word.startswith("until")])] if args.flag("volumes") else []
    kinds += [("images", [*words, "dangling=false"] if everything else words)]
    for kind, chosen in kinds:
        found = fetch("POST", f"/{kind}/prune", query={"filters": filters_of(chosen)}, timeout_s=None)
        freed += found.get("SpaceReclaimed") or 0
        gone: list[Any] = found.get(f"{kind.capitalize()}Deleted") or []
        for each in gone:
            sys.stdout.write(f"{next(iter(each.values())) if isinstance(each, dict) else each}\n")
    sys.stdout.write(f"Total reclaimed space: {human(freed)}\n")
    return 0


SYSTEM_VERBS: Verbs = {
    "df": (Spec("system df", "Show what takes room on the disk.", "[-o json]", (OUTPUT,)), _df),
    "prune": (Spec("system prune", "Remove what nobody uses: ended containers, networks, images without a name.",
                   "[-a] [--volumes] [-f]",
                   (FORCE, Option("all", "all images that no container uses", "a", "flag"),
                    Option("volumes", "nameless volumes too", shape="flag"),
                    Option("filter", "such as until=24h, label=a=b", shape="many"))), _prune),
}  # fmt: skip


def _overview(name: str, summary: str, verbs: Verbs) -> Spec:
    lines = "\n".join(f"  {each:<11} {spec.summary}" for each, (spec, _) in verbs.items())
    return Spec(name, f"{summary} 'wherry {name} COMMAND --help' says more.\n\nCommands:\n{lines}", "COMMAND ...")


def _run(name: str, overview: Spec, verbs: Verbs, argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("--help", "-h"):
        sys.stdout.write(help_text(overview))
        return 0 if argv else 2
    found = verbs.get({"list": "ls", "remove": "rm"}.get(argv[0], argv[0]))
    if found is None:
        from difflib import get_close_matches

        close = get_close_matches(argv[0], list(verbs), n=1)
        raise Usage(name, f"no subcommand {argv[0]!r}" + (f"; did you mean {close[0]}?" if close else ""))
    spec, work = found
    return work(parse(spec, argv[1:]))


NETWORK = _overview("network", "Networks of containers.", NETWORKS)
VOLUME = _overview("volume", "Volumes of containers.", VOLUMES)
SYSTEM = _overview("system", "Disk space.", SYSTEM_VERBS)
SUBCOMMANDS = {
    name: tuple(spec for spec, _ in verbs.values())
    for name, verbs in (("network", NETWORKS), ("volume", VOLUMES), ("system", SYSTEM_VERBS))
}


def network_command(argv: Sequence[str]) -> int:
    """`wherry network`."""
    return _run("network", NETWORK, NETWORKS, argv)


def volume_command(argv: Sequence[str]) -> int:
    """`wherry volume`."""
    return _run("volume", VOLUME, VOLUMES, argv)


def system_command(argv: Sequence[str]) -> int:
    """`wherry system`."""
    return _run("system", SYSTEM, SYSTEM_VERBS, argv)
