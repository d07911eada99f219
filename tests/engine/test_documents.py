"""What the engine writes is of the fields and types that the OCI's specifications name, and of no other.

The tables here are stricter than the published schemas, which let unknown names pass; `python -m tests.engine.schemas` holds
the same documents against those. Sources: OCI runtime-spec 1.0.2, image-spec 1.1.
"""

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta
from tests.engine.boxes import Place
from tests.engine.schemas import documents

U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Meta(ge=0)]
Octal = Annotated[int, Meta(ge=0, le=0o777)]
Absolute = Annotated[str, Meta(pattern="^/")]
Capability = Annotated[str, Meta(pattern="^CAP_[A-Z_]+$")]
Digest = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]
MediaType = Annotated[str, Meta(pattern="^application/vnd\\.oci\\.image\\.")]
Moment = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Every name is known."""


class Root(Strict):
    path: str
    readonly: bool = False


class OciMount(Strict):
    destination: Absolute
    type: str = ""
    source: str = ""
    options: list[str] = []


class OciUser(Strict):
    uid: U32
    gid: U32
    umask: Octal = 0o022
    additionalGids: list[U32] = []


class Capabilities(Strict):
    bounding: list[Capability]
    effective: list[Capability]
    permitted: list[Capability]
    inheritable: list[Capability]
    ambient: list[Capability]


class Rlimit(Strict):
    type: Annotated[str, Meta(pattern="^RLIMIT_[A-Z]+$")]
    soft: U64
    hard: U64


class Process(Strict):
    cwd: Absolute
    args: Annotated[list[str], Meta(min_length=1)]
    user: OciUser
    env: list[Annotated[str, Meta(pattern="^[^=]+=")]] = []
    terminal: bool = False
    capabilities: Capabilities | None = None
    rlimits: list[Rlimit] = []
    noNewPrivileges: bool = False
    oomScoreAdj: Annotated[int, Meta(ge=-1000, le=1000)] = 0


class Namespace(Strict):
    type: Literal["mount", "pid", "network", "uts", "ipc", "user", "cgroup"]
    path: Absolute = "/"


class Ids(Strict):
    containerID: U32
    hostID: U32
    size: Annotated[int, Meta(ge=1, le=2**32 - 1)]


class OciDevice(Strict):
    type: Literal["c", "b", "p"]
    path: Absolute
    major: int
    minor: int
    fileMode: Octal = 0
    uid: U32 = 0
    gid: U32 = 0


class DeviceRule(Strict):
    allow: bool
    type: Literal["a", "c", "b"] = "a"
    major: int | None = None
    minor: int | None = None
    access: Annotated[str, Meta(pattern="^[rwm]{1,3}$")] = "rwm"


class Cpu(Strict):
    shares: U64 = 0
    quota: int = 0
    period: U64 = 0
    realtimeRuntime: int = 0
    realtimePeriod: U64 = 0
    cpus: str = ""
    mems: str = ""


class Memory(Strict):
    limit: int = 0
    reservation: int = 0
    swap: int = 0
    swappiness: U64 = 0
    disableOOMKiller: bool = False


class Pids(Strict):
    limit: int


class Resources(Strict):
    devices: list[DeviceRule] = []
    cpu: Cpu | None = None
    memory: Memory | None = None
    pids: Pids | None = None
    blockIO: dict[str, Any] = {}


class Argument(Strict):
    index: U32
    value: U64
    op: Annotated[str, Meta(pattern="^SCMP_CMP_[A-Z_]+$")]
    valueTwo: U64 = 0


class Syscall(Strict):
    names: Annotated[list[str], Meta(min_length=1)]
    action: Annotated[str, Meta(pattern="^SCMP_ACT_[A-Z_]+$")]
    errnoRet: U32 = 1
    args: list[Argument] = []


class Seccomp(Strict):
    defaultAction: Annotated[str, Meta(pattern="^SCMP_ACT_[A-Z_]+$")]
    defaultErrnoRet: U32 = 1
    architectures: list[Annotated[str, Meta(pattern="^SCMP_ARCH_[A-Z0-9]+$")]] = []
    syscalls: list[Syscall] = []


class Linux(Strict):
    cgroupsPath: str
    namespaces: list[Namespace]
    resources: Resources
    maskedPaths: list[Absolute] = []
    readonlyPaths: list[Absolute] = []
    uidMappings: list[Ids] = []
    gidMappings: list[Ids] = []
    devices: list[OciDevice] = []
    seccomp: Seccomp | None = None
    rootfsPropagation: Literal["private", "shared", "slave", "rshared", "rslave", ""] = ""


class Config(Strict):
    ociVersion: Literal["1.0.2"]
    root: Root
    process: Process
    mounts: list[OciMount]
    linux: Linux
    annotations: dict[str, str] = {}
    domainname: str = ""
    hostname: str = ""


class Layout(Strict):
    imageLayoutVersion: Literal["1.0.0"]


class Descriptor(Strict):
    mediaType: MediaType
    digest: Digest
    size: U64
    annotations: dict[str, str] = {}
    platform: dict[str, str] = {}


class Index(Strict):
    schemaVersion: Literal[2]
    manifests: list[Descriptor]
    mediaType: MediaType = ""
    annotations: dict[str, str] = {}


class Manifest(Strict):
    schemaVersion: Literal[2]
    mediaType: MediaType
    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str] = {}


class History(Strict):
    created: Moment = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class Diffs(Strict):
    type: Literal["layers"]
    diff_ids: list[Digest]


class ImageConfig(Strict):
    architecture: str
    os: str
    rootfs: Diffs
    created: Moment = ""
    author: str = ""
    config: dict[str, Any] = {}
    history: list[History] = []
    variant: str = ""


TABLES = {"config": Config, "layout": Layout, "index": Index, "manifest": Manifest, "image": ImageConfig}


@pytest.mark.root
async def test_documents_fit(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = Place(tmp_path_factory.mktemp("documents"))
    seen: set[str] = set()
    async for name, schema, document in documents(place):
        try:
            msgspec.convert(document, TABLES[schema])
        except msgspec.ValidationError as error:
            raise AssertionError(f"{name}: {error}") from None
        seen.add(schema)
    assert seen == set(TABLES)
    assert place.leftovers() == []


def test_a_wrong_name_would_be_seen() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"type": "pid", "paths": "/x"}, Namespace)
