"""Projections: the parts of API objects that readers keep, as small frozen Structs decoded from an object's bytes."""

from typing import Protocol

import msgspec

from wherry.clock import parse_rfc3339

Key = tuple[str, str]
"""(namespace, name); the namespace is "" for kinds of the whole cluster."""


class Identified(Protocol):
    """The metadata that an informer itself needs."""

    @property
    def name(self) -> str:
        """The object's name."""
        ...

    @property
    def namespace(self) -> str:
        """The object's namespace, "" for kinds of the whole cluster."""
        ...

    @property
    def resource_version(self) -> str:
        """The object's version on the wire."""
        ...


class Projection(Protocol):
    """What every projection has."""

    @property
    def metadata(self) -> Identified:
        """The object's metadata, or the part of it that the reader keeps."""
        ...


class Projected(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of projections and their parts: camelCase on the wire, snake_case here; absent is the default."""


class OwnerReference(Projected, frozen=True):
    """One entry of metadata.ownerReferences."""

    kind: str
    name: str
    uid: str
    api_version: str = ""
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class Meta(Projected, frozen=True):
    """metadata, without what only the API server reads (managedFields)."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[OwnerReference] = []
    finalizers: list[str] = []

    @property
    def key(self) -> Key:
        """(namespace, name)."""
        return self.namespace, self.name

    @property
    def is_deleting(self) -> bool:
        """Whether somebody has asked for its deletion."""
        return self.deletion_timestamp is not None

    @property
    def created(self) -> float:
        """When it was created, unix seconds; 0 if the object does not say."""
        return parse_rfc3339(self.creation_timestamp) if self.creation_timestamp else 0.0

    @property
    def controller(self) -> OwnerReference | None:
        """The owner that controls it, or None."""
        return next((owner for owner in self.owner_references if owner.controller), None)


class Object(Projected, frozen=True):
    """Base of projections that keep the whole of `Meta`."""

    metadata: Meta = Meta()

    @property
    def key(self) -> Key:
        """(namespace, name)."""
        return self.metadata.namespace, self.metadata.name


class Partial(Object, frozen=True):
    """Only the metadata: for readers of many kinds, such as garbage collection."""


def revision(version: str) -> int:
    """Read a resourceVersion as the revision it is; "" and foreign texts are 0, which is older than all."""
    return int(version) if version.isdigit() else 0
