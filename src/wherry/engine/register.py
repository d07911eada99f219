"""The containers that an engine knows: their rows, how they are shown, who uses what. Nothing here starts or ends one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from wherry.engine.events import Events
from wherry.engine.lives import Life, Lives, Run, view
from wherry.engine.records import ContainerRecord, Records, SandboxRecord, Stage
from wherry.engine.sandboxes import Sandboxes
from wherry.engine.types import Container
from wherry.engine.volumes import Volumes
from wherry.errors import Conflict, NotFound


class Register:
    """All containers of one engine, and their rows."""

    def __init__(self, records: Records, lives: Lives, sandboxes: Sandboxes, volumes: Volumes, events: Events) -> None:
        self._records = records
        self.lives = lives
        self._sandboxes = sandboxes
        self._volumes = volumes
        self._events = events
        self.uses_of: Callable[[Life], Sequence[tuple[str, str, Mapping[str, str]]]] = lambda _: ()

    # views ------------------------------------------------------------------------------------------------------------
    def show(self, life: Life) -> Container:
        """Show a container."""
        sandbox = self.sandbox_of(life.record)
        volumes = [mount.source for mount in life.record.spec.mounts if mount.kind == "volume"]
        places = {name: str(self._volumes.place(name)) for name in volumes}
        shown = view(life, sandbox.address if sandbox is not None else "", places)
        if sandbox is None or not sandbox.ready:
            return shown
        netns = self._sandboxes.namespaces(sandbox).get("network", "")
        return replace(shown, files=self._sandboxes.files(sandbox), netns=netns)

    def all(self) -> Sequence[Container]:
        """Show all that callers know of."""
        return [
            self.show(life)
            for life in self.lives.all()
            if life.record.acknowledged and life.record.stage is not Stage.REMOVING
        ]

    def running(self, ref: str) -> tuple[Life, Run, SandboxRecord]:
        """Find a running container with its run and sandbox. Raises NotFound, Conflict."""
        life = self.lives.find(ref)
        sandbox = self.sandbox_of(life.record)
        if life.run is None or not life.is_running or sandbox is None:
            raise Conflict(f"container {life.record.name}: it does not run")
        return life, life.run, sandbox

    def sandbox_of(self, record: ContainerRecord) -> SandboxRecord | None:
        """Find a container's sandbox; None when it is gone."""
        try:
            return self._sandboxes.row(record.sandbox)
        except NotFound:
            return None

    def users_of(self, image_id: str) -> Sequence[str]:
        """Name the containers that were made from an image; one that is only being cleared away is none any more."""
        return [
            life.record.id
            for life in self.lives.all()
            if life.record.image_id == image_id and life.record.stage is not Stage.REMOVING
        ]

    def volume_users(self, name: str) -> Sequence[str]:
        """Name the containers that have a volume."""
        return [
            life.record.id
            for life in self.lives.all()
            if life.record.stage is not Stage.REMOVING
            and any(mount.kind == "volume" and mount.source == name for mount in life.record.spec.mounts)
        ]

    def layers_in_use(self) -> set[str]:
        """Name the diff ids under all containers."""
        rows = [life.record for life in self.lives.all()]
        mounted = {diff_id for row in rows for mount in row.image_mounts for diff_id in mount.layers}
        return mounted | {diff_id for row in rows for diff_id in row.layers}

    def in_sandbox(self, id: str) -> Sequence[Life]:
        """List the containers in a sandbox."""
        return [life for life in self.lives.all() if life.record.sandbox == id]

    # rows -------------------------------------------------------------------------------------------------------------
    def put(self, life: Life, record: ContainerRecord) -> None:
        """Write a row."""
        self._records.put_container(record)
        life.record = record

    def tell(self, life: Life, action: str, **attributes: str) -> None:
        """Send an event. Around a run stand those of what it uses: networks joined, volumes mounted."""
        record = life.record
        if action == "start":
            for kind, id, said in self.uses_of(life):
                self._events.tell(kind, "connect" if kind == "network" else "mount", id, said)
        self._events.tell(
            "container",
            action,
            record.id,
            {**record.spec.labels, "name": record.name, "image": record.spec.image, **attributes},
        )
        if action == "die" and not (record.exit and record.exit.error):
            for kind, id, said in self.uses_of(life):
                self._events.tell(kind, "disconnect" if kind == "network" else "unmount", id, said)
