"""What the engine knows of its sandboxes and containers, on disk before it is true and after it has been.

One SQLite file, `engine.db`. A row is written before anything is made (its stage is INTENT) and goes after everything
is unmade, so whatever exists has a row: see README.md for the stages. A kill of ours loses nothing; a power cut may lose
the last rows, whose containers it ended too.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec

from wherry.engine.types import ContainerSpec, Exit, Network, SandboxSpec
from wherry.errors import AlreadyExists, Broken
from wherry.host.processes import Identity
from wherry.network.types import PublishedPort


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
class ContainerRecord:
    """A container's row. `exit` may be set while a new run is being made: it is then the last run's.

    `acknowledged`: `create` has returned, so the container is somebody's and a failed run leaves it EXITED, not removed.
    `stopped`: a person ended it, so restart policies keep quiet. `layers` are diff ids, lowest first.
    `mount_points`: paths in its root that only the runtime made, to mount on. `anonymous`: volumes that were made for it;
    `drop_volumes`: they go with it.
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


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """A sandbox's row. `ready` only after everything of it is made, and in the boot `boot_id`.

    `off_pods`: somebody took it off the pod network since.
    """

    id: str
    spec: SandboxSpec
    created: float
    ready: bool = False
    removing: bool = False
    address: str = ""
    boot_id: str = ""
    off_pods: bool = False


class Records:
    """The rows. Calls take about 0.1 ms and are made on the loop, so rows change in the order of the calls."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS containers (id TEXT PRIMARY KEY, name TEXT UNIQUE, body BLOB)")
            self._db.execute("CREATE TABLE IF NOT EXISTS sandboxes (id TEXT PRIMARY KEY, body BLOB)")
            self._db.execute("CREATE TABLE IF NOT EXISTS networks (id TEXT PRIMARY KEY, body BLOB)")
            self._db.execute("CREATE TABLE IF NOT EXISTS ports (id TEXT PRIMARY KEY, body BLOB)")
        except sqlite3.Error as error:
            raise Broken(f"{path}: the engine's records cannot be opened: {error}") from error
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
        rows = self._db.execute("SELECT body FROM containers").fetchall()
        found = [self._containers.decode(body) for (body,) in rows]
        return sorted(found, key=lambda record: record.created)

    def put_container(self, record: ContainerRecord) -> None:
        """Write a row. Raises AlreadyExists when another container has the name."""
        try:
            self._db.execute(
                "INSERT INTO containers VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET name=excluded.name, body=excluded.body",
                (record.id, record.name or None, self._encoder.encode(record)),
            )
        except sqlite3.IntegrityError:
            raise AlreadyExists(
                f"container name {record.name!r} is taken: remove that container, or use another name"
            ) from None
        except sqlite3.Error as error:
            raise Broken(f"container {record.id[:12]}: cannot be recorded: {error}") from error

    def drop_container(self, id: str) -> None:
        """Remove a row."""
        self._db.execute("DELETE FROM containers WHERE id = ?", (id,))

    def sandboxes(self) -> Sequence[SandboxRecord]:
        """List all, oldest first."""
        rows = self._db.execute("SELECT body FROM sandboxes").fetchall()
        found = [self._sandboxes.decode(body) for (body,) in rows]
        return sorted(found, key=lambda record: record.created)

    def put_sandbox(self, record: SandboxRecord) -> None:
        """Write a row."""
        try:
            self._db.execute(
                "INSERT INTO sandboxes VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body=excluded.body",
                (record.id, self._encoder.encode(record)),
            )
        except sqlite3.Error as error:
            raise Broken(f"sandbox {record.id[:12]}: cannot be recorded: {error}") from error

    def drop_sandbox(self, id: str) -> None:
        """Remove a row."""
        self._db.execute("DELETE FROM sandboxes WHERE id = ?", (id,))

    def networks(self) -> Sequence[Network]:
        """List the networks of people's own, oldest first."""
        rows = self._db.execute("SELECT body FROM networks").fetchall()
        return sorted((self._networks.decode(body) for (body,) in rows), key=lambda each: each.created)

    def put_network(self, network: Network) -> None:
        """Write a row."""
        self._put("networks", network.id, network)

    def drop_network(self, id: str) -> None:
        """Remove a row."""
        self._db.execute("DELETE FROM networks WHERE id = ?", (id,))

    def ports(self) -> Mapping[str, Sequence[PublishedPort]]:
        """List the ports that are published, by sandbox."""
        rows = self._db.execute("SELECT id, body FROM ports").fetchall()
        return {id: self._ports.decode(body) for id, body in rows}

    def put_ports(self, sandbox: str, ports: Sequence[PublishedPort]) -> None:
        """Write what a sandbox has published; none removes the row."""
        if ports:
            self._put("ports", sandbox, ports)
        else:
            self._db.execute("DELETE FROM ports WHERE id = ?", (sandbox,))

    def _put(self, table: str, id: str, body: object) -> None:
        try:
            self._db.execute(
                f"INSERT INTO {table} VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body=excluded.body",
                (id, self._encoder.encode(body)),
            )
        except sqlite3.Error as error:
            raise Broken(f"{table} {id[:12]}: cannot be recorded: {error}") from error
