"""What the engine knows of its sandboxes and containers, on disk before it is true and after it has been.

One SQLite file, `engine.db`. A row is written before anything is made (its stage is INTENT) and goes after everything
is unmade, so whatever exists has a row: see README.md for the stages. A kill of ours loses nothing; a power cut may
lose the last rows, whose containers it ended too.
"""

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from wherry.engine.types import ContainerSpec, Exit, HealthState, Network, SandboxSpec
from wherry.errors import AlreadyExists, Broken
from wherry.host.idmaps import IdRange
from wherry.host.processes import Identity
from wherry.host.reserve import Reserve
from wherry.network.types import PublishedPort

log = logging.getLogger(__name__)
T = TypeVar("T")


class Stage(Enum):
    """How far a container's making has come; each is written before (INTENT, STARTING, REMOVING) or after its arrow."""

    INTENT = "intent"
    SPAWNED = "spawned"
    CREATED = "created"
    STARTING = "starting"
    STARTED = "started"
    EXITED = "exited"
    REMOVING = "removing"


@dataclass(frozen=True, slots=True)
class ImageMount:
    """An image that a container has mounted at `target`: its manifest's digest, its diff ids, lowest first."""

    target: str
    digest: str
    layers: Sequence[str]


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container's row. `exit` may be set while a new run is being made: it is then the last run's.

    `acknowledged`: `create` has returned, so the container is somebody's and a failed run leaves it EXITED, not
    removed. `stopped`: a person ended it, so restart policies keep quiet. `layers` are diff ids, lowest first.
    `mount_points`: paths in its root that only the runtime made, to mount on. `anonymous`: volumes that were made for
    it; `drop_volumes`: they go with it. `fills`: it has other mounts than at its last start, so empty volumes are
    filled again. `health`: what its health check has said in this run.
    """

    id: str
    name: str
    spec: ContainerSpec
    stage: Stage
    sandbox: str
    owns_sandbox: bool
    image_digest: str
    image_id: str
    layers: Sequence[str]
    argv: Sequence[str]
    created: float
    log_path: str
    stop_signal: str = "SIGTERM"
    acknowledged: bool = False
    started: float = 0.0
    exit: Exit | None = None
    monitor: Identity | None = None
    process: Identity | None = None
    restarts: int = 0
    stopped: bool = False
    has_run: bool = False
    mount_points: Sequence[str] = ()
    anonymous: Sequence[str] = ()
    drop_volumes: bool = False
    paused: bool = False
    health: HealthState | None = None
    image_mounts: Sequence[ImageMount] = ()
    fills: bool = False


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """A sandbox's row. `ready` only after everything of it is made, and in the boot `boot_id`.

    `off_pods`: somebody took it off the pod network since. `ids`: it has a user namespace with these. `linked`: lines
    for its hosts file about containers that it is linked to. `made_parent`: the topmost group above its own that was
    made for it, or for another one with the same parent.
    """

    id: str
    spec: SandboxSpec
    created: float
    ready: bool = False
    removing: bool = False
    address: str = ""
    boot_id: str = ""
    off_pods: bool = False
    ids: IdRange | None = None
    linked: Sequence[str] = ()
    made_parent: str = ""


class Records:
    """The rows. Calls take about 0.1 ms and are made on the loop, so rows change in the order of the calls."""

    def __init__(self, path: Path) -> None:
        self._reserve = Reserve(path.with_suffix(".reserve"))
        self._reserve.spend_if_full()
        self._path = path
        self.unreadable: set[str] = set()
        """Ids of rows that cannot be read: what they name is left as it is."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS containers (id TEXT PRIMARY KEY, name TEXT UNIQUE, body BLOB)")
            self._db.execute("CREATE TABLE IF NOT EXISTS sandboxes (id TEXT PRIMARY KEY, body BLOB)")
            self._db.execute("CREATE TABLE IF NOT EXISTS networks (id TEXT PRIMARY KEY, body BLOB)")
            self._db.execute("CREATE TABLE IF NOT EXISTS ports (id TEXT PRIMARY KEY, body BLOB)")
        except (sqlite3.Error, OSError) as error:
            raise Broken(
                f"{path}: the engine's records cannot be opened: {error}; bring the file back, or move it away together with "
                f"what it names, {path.parent}"
            ) from error
        self._reserve.fill()
        self._containers = msgspec.json.Decoder(ContainerRecord)
        self._sandboxes = msgspec.json.Decoder(SandboxRecord)
        self._networks = msgspec.json.Decoder(Network)
        self._ports = msgspec.json.Decoder(list[PublishedPort])
        self._encoder = msgspec.json.Encoder()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def containers(self) -> Sequence[ContainerRecord]:
        """List all, oldest first."""
        return sorted(self._read("containers", self._containers), key=lambda record: record.created)

    def put_container(self, record: ContainerRecord) -> None:
        """Write a row. Raises AlreadyExists when another container has the name, Broken."""
        try:
            self._write(
                "INSERT INTO containers VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET name=excluded.name, body=excluded.body",
                (record.id, record.name or None, self._encoder.encode(record)),
                f"container {record.id[:12]}",
                makes_room=record.stopped or record.stage in (Stage.EXITED, Stage.REMOVING),
            )
        except sqlite3.IntegrityError:
            raise AlreadyExists(
                f"container name {record.name!r} is taken: remove that container, or use another name"
            ) from None

    def drop_container(self, id: str) -> None:
        """Remove a row."""
        self._write("DELETE FROM containers WHERE id = ?", (id,), f"container {id[:12]}", makes_room=True)

    def sandboxes(self) -> Sequence[SandboxRecord]:
        """List all, oldest first."""
        return sorted(self._read("sandboxes", self._sandboxes), key=lambda record: record.created)

    def put_sandbox(self, record: SandboxRecord) -> None:
        """Write a row. Raises Broken."""
        self._put("sandboxes", record.id, record, makes_room=record.removing)

    def drop_sandbox(self, id: str) -> None:
        """Remove a row."""
        self._write("DELETE FROM sandboxes WHERE id = ?", (id,), f"sandbox {id[:12]}", makes_room=True)

    def networks(self) -> Sequence[Network]:
        """List the networks of people's own, oldest first."""
        return sorted(self._read("networks", self._networks), key=lambda each: each.created)

    def put_network(self, network: Network) -> None:
        """Write a row."""
        self._put("networks", network.id, network)

    def drop_network(self, id: str) -> None:
        """Remove a row."""
        self._write("DELETE FROM networks WHERE id = ?", (id,), f"network {id[:12]}", makes_room=True)

    def ports(self) -> Mapping[str, Sequence[PublishedPort]]:
        """List the ports that are published, by sandbox."""
        return dict(self._rows("ports", self._ports))

    def put_ports(self, sandbox: str, ports: Sequence[PublishedPort]) -> None:
        """Write what a sandbox has published; none removes the row."""
        if ports:
            self._put("ports", sandbox, ports)
        else:
            self._write("DELETE FROM ports WHERE id = ?", (sandbox,), f"ports of {sandbox[:12]}", makes_room=True)

    def _put(self, table: str, id: str, body: object, *, makes_room: bool = False) -> None:
        self._write(
            f"INSERT INTO {table} VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body=excluded.body",
            (id, self._encoder.encode(body)),
            f"{table} {id[:12]}",
            makes_room=makes_room,
        )

    def _read(self, table: str, decoder: "msgspec.json.Decoder[T]") -> list[T]:
        return [body for _, body in self._rows(table, decoder)]

    def _rows(self, table: str, decoder: "msgspec.json.Decoder[T]") -> list[tuple[str, T]]:
        """Read a table; a row that cannot be read is logged and passed over: nothing of it is touched."""
        try:
            rows = self._db.execute(f"SELECT id, body FROM {table}").fetchall()
        except sqlite3.Error as error:
            raise Broken(f"{self._path}: the engine's records cannot be read: {error}") from error
        found: list[tuple[str, T]] = []
        for id, body in rows:
            try:
                try:
                    found.append((id, decoder.decode(body)))
                except msgspec.ValidationError:
                    found.append((id, decoder.decode(_as_now(body))))
            except msgspec.MsgspecError as error:
                self.unreadable.add(id)
                log.error(
                    "%s: the row of %s in %s cannot be read, so it is left alone: %s", self._path, id, table, error
                )
        return found

    def _write(self, sql: str, values: tuple[object, ...], what: str, *, makes_room: bool) -> None:
        """Write; who `makes_room` may have what is kept aside of a full disk. Raises Broken, sqlite3.IntegrityError."""
        if makes_room:
            self._reserve.spend_if_full()
        try:
            self._db.execute(sql, values)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise Broken(f"{what}: cannot be recorded: {error}") from error
        if makes_room:
            self._reserve.fill()


def _as_now(body: bytes) -> bytes:
    """Write a row of an earlier version as it is written now. `hosts` was an object, with one address for each name."""
    found: Any = msgspec.json.decode(body)
    spec: Any = found.get("spec") if isinstance(found, dict) else None
    for place in (spec, spec.get("sandbox_spec")) if isinstance(spec, dict) else ():
        if isinstance(place, dict) and isinstance(place.get("hosts"), dict):
            place["hosts"] = list(place["hosts"].items())
    return msgspec.json.encode(found)
