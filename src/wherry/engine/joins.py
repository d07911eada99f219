"""Namespaces that a container has of another one: `--network container:NAME`, `--pid container:NAME`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wherry.engine.lives import Lives
from wherry.engine.records import ContainerRecord
from wherry.engine.sandboxes import Sandboxes
from wherry.engine.types import SandboxSpec
from wherry.errors import Conflict, Invalid


@dataclass(frozen=True, slots=True)
class Joined:
    """What comes from other containers: namespaces by the OCI's kinds, files below /etc, the host name, shared memory,
    variables that describe those it is linked to.
    """

    namespaces: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    hostname: str = ""
    shm: str = ""
    env: Sequence[str] = ()


async def joined(
    record: ContainerRecord, lives: Lives, sandboxes: Sandboxes, environment: Callable[[str], Sequence[str]]
) -> Joined:
    """Find what `spec.join` and `spec.links` name; `environment` is that of a running one.

    Raises NotFound for a container that is gone, Conflict for one that must run, Invalid.
    """
    places: dict[str, str] = {}
    files: Mapping[str, str] = {}
    hostname = shm = ""
    for kind, id in record.spec.join.items():
        other = lives.find(id)
        match kind:
            case "network":
                row = sandboxes.row(other.record.sandbox)
                if not row.ready:
                    await sandboxes.ensure(row.spec)
                    row = sandboxes.row(other.record.sandbox)
                found = sandboxes.namespaces(row)
                if "network" not in found:
                    raise Invalid(f"container {record.name}: {other.record.name} has the machine's network: use host")
                places |= {name: found[name] for name in ("network", "uts", "user") if name in found}
                files, hostname = sandboxes.files(row), row.spec.hostname
            case "pid":
                if other.run is None or not other.is_running:
                    raise Conflict(
                        f"container {record.name}: cannot join the processes of a container that does not run: "
                        f"{other.record.name}"
                    )
                places["pid"] = f"/proc/{other.run.process.pid}/ns/pid"
                found = sandboxes.namespaces(sandboxes.row(other.record.sandbox))
                places |= {"user": found["user"]} if "user" in found else {}
            case "ipc":
                row = sandboxes.row(other.record.sandbox)
                if not row.spec.shareable_ipc:
                    raise Invalid(
                        f"can't join IPC of container {id}: non-shareable IPC (hint: use IpcMode:shareable for the donor "
                        "container)"
                    )
                if not other.is_running:
                    raise Conflict(f"cannot join IPC of a non running container: {id}")
                found = sandboxes.namespaces(row)
                places |= {name: found[name] for name in ("ipc", "user") if name in found}
                shm = sandboxes.shm(row)
            case _:
                raise Invalid(f"container {record.name}: {kind} of another container cannot be had")
    return Joined(places, files, hostname, shm, _link(record, lives, sandboxes, environment))


def _link(
    record: ContainerRecord, lives: Lives, sandboxes: Sandboxes, environment: Callable[[str], Sequence[str]]
) -> Sequence[str]:
    """Name the linked containers in the hosts file; on the default network, describe them by variables, too.

    Source: Docker, "Legacy container links".
    """
    lines: list[str] = []
    variables: list[str] = []
    for alias, id in record.spec.links.items():
        other = lives.find(id)
        if not other.is_running:
            raise Conflict(f"Cannot link to a non running container: /{other.record.name} AS /{record.name}/{alias}")
        address = sandboxes.address_towards(record.sandbox, other.record.sandbox)
        if not address:
            raise Invalid(f"Cannot link to /{other.record.name}, as it does not belong to a network of {record.name}")
        names = dict.fromkeys((alias, id[:12], other.record.name))
        lines.append(f"{address}\t{' '.join(names)}")
        own = sandboxes.row(record.sandbox).spec
        if own.network == "pod":
            exposed = ports_of(other.record.spec.sandbox_spec)
            variables += link_variables(record.name, alias, address, exposed, environment(id))
    if record.owns_sandbox:
        sandboxes.link(record.sandbox, lines)
    return variables


def ports_of(sandbox: SandboxSpec | None) -> Sequence[tuple[int, str]]:
    """List the ports that a container names: (number, protocol), the lowest first."""
    if sandbox is None:
        return ()
    named = [
        (int(number), protocol or "tcp") for number, _, protocol in (each.partition("/") for each in sandbox.exposed)
    ]
    return sorted({*named, *((each.port, each.protocol) for each in sandbox.ports)})


def link_variables(
    name: str, alias: str, address: str, ports: Sequence[tuple[int, str]], environment: Sequence[str]
) -> Sequence[str]:
    """Describe a linked container: its name, ports, and its own variables but for those that every container has. Pure."""
    prefix = alias.upper().replace("-", "_")
    made = [f"{prefix}_NAME=/{name}/{alias}"]
    for n, (port, protocol) in enumerate(ports):
        place = f"{protocol}://{address}:{port}"
        made += [f"{prefix}_PORT={place}"] if n == 0 else []
        one = f"{prefix}_PORT_{port}_{protocol.upper()}"
        made += [f"{one}={place}", f"{one}_ADDR={address}", f"{one}_PORT={port}", f"{one}_PROTO={protocol}"]
    shared = ("HOME", "HOSTNAME", "PATH", "TERM")
    return made + [f"{prefix}_ENV_{each}" for each in environment if each.partition("=")[0] not in shared]
