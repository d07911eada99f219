"""Namespaces that a container has of another one: `--network container:NAME`, `--pid container:NAME`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wherry.engine.lives import Lives
from wherry.engine.records import ContainerRecord
from wherry.engine.sandboxes import Sandboxes
from wherry.errors import Conflict, Invalid


@dataclass(frozen=True, slots=True)
class Joined:
    """What comes from other containers: namespaces by the OCI's kinds, files below /etc, the host name."""

    namespaces: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    hostname: str = ""


async def joined(record: ContainerRecord, lives: Lives, sandboxes: Sandboxes) -> Joined:
    """Find what `spec.join` names. Raises NotFound for a container that is gone, Conflict for one that must run, Invalid."""
    places: dict[str, str] = {}
    files: Mapping[str, str] = {}
    hostname = ""
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
                places |= {name: found[name] for name in ("network", "uts") if name in found}
                files, hostname = sandboxes.files(row), row.spec.hostname
            case "pid":
                if other.run is None or not other.is_running:
                    raise Conflict(
                        f"container {record.name}: cannot join the processes of a container that does not run: "
                        f"{other.record.name}"
                    )
                places["pid"] = f"/proc/{other.run.process.pid}/ns/pid"
            case _:
                raise Invalid(f"container {record.name}: {kind} of another container cannot be had")
    return Joined(places, files, hostname)
