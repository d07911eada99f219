"""A pod as its node reads it: projections of the API object, with the defaults the API server has already filled in."""

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry.clock import parse_rfc3339


class _Base(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """JSON names are camelCase; everything a node does not read is skipped."""


class Meta(_Base, frozen=True):
    """Metadata."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None


class KeyRef(_Base, frozen=True):
    """A key of a ConfigMap or Secret."""

    name: str = ""
    key: str = ""
    optional: bool = False


class FieldRef(_Base, frozen=True):
    """A field of the pod."""

    field_path: str


class ResourceFieldRef(_Base, frozen=True):
    """A limit or request of a container."""

    resource: str
    container_name: str = ""
    divisor: str = "0"


class EnvSource(_Base, frozen=True):
    """Where a variable's value comes from."""

    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None


class Env(_Base, frozen=True):
    """One variable."""

    name: str
    value: str = ""
    value_from: EnvSource | None = None


class SourceRef(_Base, frozen=True):
    """A whole ConfigMap or Secret."""

    name: str = ""
    optional: bool = False


class EnvFrom(_Base, frozen=True):
    """All keys of a ConfigMap or Secret as variables."""

    prefix: str = ""
    config_map_ref: SourceRef | None = None
    secret_ref: SourceRef | None = None


class Resources(_Base, frozen=True):
    """Limits and requests, as quantities."""

    limits: dict[str, str] = {}
    requests: dict[str, str] = {}


class Header(_Base, frozen=True):
    """An HTTP header of a probe."""

    name: str
    value: str = ""


class HttpGet(_Base, frozen=True):
    """An HTTP action."""

    port: int | str
    path: str = "/"
    host: str = ""
    scheme: str = "HTTP"
    http_headers: list[Header] = []


class TcpSocket(_Base, frozen=True):
    """A TCP action."""

    port: int | str
    host: str = ""


class ExecAction(_Base, frozen=True):
    """A command."""

    command: list[str] = []


class SleepAction(_Base, frozen=True):
    """A pause."""

    seconds: int


class Handler(_Base, frozen=True):
    """What a hook or probe does; one of the fields is set."""

    exec: ExecAction | None = None
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    sleep: SleepAction | None = None
    grpc: Any = None


class Probe(Handler, frozen=True):
    """A probe. Times are seconds."""

    initial_delay_seconds: int = 0
    period_seconds: int = 10
    timeout_seconds: int = 1
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


class Lifecycle(_Base, frozen=True):
    """Hooks."""

    post_start: Handler | None = None
    pre_stop: Handler | None = None
    stop_signal: str = ""


class Capabilities(_Base, frozen=True):
    """Capabilities, with or without the CAP_ prefix."""

    add: list[str] = []
    drop: list[str] = []


class SeccompProfile(_Base, frozen=True):
    """RuntimeDefault, Unconfined or Localhost."""

    type: str = "RuntimeDefault"


class SecurityContext(_Base, frozen=True):
    """Security of one container."""

    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    privileged: bool = False
    read_only_root_filesystem: bool = False
    allow_privilege_escalation: bool | None = None
    capabilities: Capabilities | None = None
    seccomp_profile: SeccompProfile | None = None


class Sysctl(_Base, frozen=True):
    """A kernel setting of the pod's namespaces."""

    name: str
    value: str


class PodSecurityContext(_Base, frozen=True):
    """Security of the whole pod."""

    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    fs_group: int | None = None
    supplemental_groups: list[int] = []
    seccomp_profile: SeccompProfile | None = None
    sysctls: list[Sysctl] = []


class VolumeMount(_Base, frozen=True):
    """Where a container sees a volume."""

    name: str
    mount_path: str
    read_only: bool = False
    sub_path: str = ""
    sub_path_expr: str = ""


class ContainerPort(_Base, frozen=True):
    """A declared port."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = msgspec.field(default="", name="hostIP")


class ContainerDef(_Base, frozen=True):
    """One container of the spec."""

    name: str
    image: str = ""
    image_pull_policy: str = "IfNotPresent"
    command: list[str] | None = None
    args: list[str] | None = None
    working_dir: str = ""
    env: list[Env] = []
    env_from: list[EnvFrom] = []
    ports: list[ContainerPort] = []
    resources: Resources = Resources()
    volume_mounts: list[VolumeMount] = []
    volume_devices: list[Any] = []
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    security_context: SecurityContext = SecurityContext()
    restart_policy: str = ""
    termination_message_path: str = "/dev/termination-log"
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False


class Item(_Base, frozen=True):
    """One key put at a path."""

    key: str
    path: str
    mode: int | None = None


class ConfigMapVolume(_Base, frozen=True):
    """A ConfigMap as files."""

    name: str = ""
    items: list[Item] = []
    default_mode: int | None = None
    optional: bool = False


class SecretVolume(_Base, frozen=True):
    """A Secret as files; its name is `secretName` in a volume of its own and `name` in a projection."""

    secret_name: str = ""
    name: str = ""
    items: list[Item] = []
    default_mode: int | None = None
    optional: bool = False


class DownwardItem(_Base, frozen=True):
    """A field of the pod as a file."""

    path: str
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None
    mode: int | None = None


class DownwardVolume(_Base, frozen=True):
    """Fields of the pod as files."""

    items: list[DownwardItem] = []
    default_mode: int | None = None


class TokenProjection(_Base, frozen=True):
    """A service-account token as a file."""

    path: str
    audience: str = ""
    expiration_seconds: int = 3607


class Projection(_Base, frozen=True):
    """One source of a projected volume."""

    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    downward_api: DownwardVolume | None = msgspec.field(default=None, name="downwardAPI")
    service_account_token: TokenProjection | None = None


class ProjectedVolume(_Base, frozen=True):
    """Several sources in one directory."""

    sources: list[Projection] = []
    default_mode: int | None = None


class EmptyDir(_Base, frozen=True):
    """A directory that lives as long as the pod."""

    medium: str = ""
    size_limit: str | None = None


class HostPath(_Base, frozen=True):
    """A path of the machine."""

    path: str
    type: str = ""


class Volume(_Base, frozen=True):
    """A volume; one of the fields is set, or the kind is one that wherry does not have."""

    name: str
    empty_dir: EmptyDir | None = None
    host_path: HostPath | None = None
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    downward_api: DownwardVolume | None = msgspec.field(default=None, name="downwardAPI")
    projected: ProjectedVolume | None = None


class DnsOption(_Base, frozen=True):
    """A resolver option."""

    name: str
    value: str | None = None


class DnsConfig(_Base, frozen=True):
    """Additions to the resolver's configuration."""

    nameservers: list[str] = []
    searches: list[str] = []
    options: list[DnsOption] = []


class HostAlias(_Base, frozen=True):
    """Lines of /etc/hosts."""

    ip: str
    hostnames: list[str] = []


class LocalRef(_Base, frozen=True):
    """A name in the pod's namespace."""

    name: str = ""


class PodSpec(_Base, frozen=True):
    """What should run."""

    containers: list[ContainerDef] = []
    init_containers: list[ContainerDef] = []
    volumes: list[Volume] = []
    restart_policy: str = "Always"
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None
    service_account_name: str = "default"
    node_name: str = ""
    hostname: str = ""
    subdomain: str = ""
    host_network: bool = False
    host_pid: bool = msgspec.field(default=False, name="hostPID")
    host_ipc: bool = msgspec.field(default=False, name="hostIPC")
    share_process_namespace: bool = False
    enable_service_links: bool = True
    dns_policy: str = "ClusterFirst"
    dns_config: DnsConfig | None = None
    host_aliases: list[HostAlias] = []
    image_pull_secrets: list[LocalRef] = []
    security_context: PodSecurityContext = PodSecurityContext()


class PodStatusView(_Base, frozen=True):
    """The parts of the last reported status that the next one starts from."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    start_time: str = ""
    conditions: list[dict[str, Any]] = []


class PodBytes(_Base, frozen=True):
    """A pod as an informer keeps it: its spec stays bytes until a worker reads it."""

    metadata: Meta
    spec: msgspec.Raw = msgspec.Raw(b"{}")
    status: PodStatusView = PodStatusView()

    def read(self) -> "Pod":
        """Decode the spec too. Raises msgspec.ValidationError for one that no API server would have let in."""
        return Pod(metadata=self.metadata, spec=msgspec.json.decode(self.spec, type=PodSpec), status=self.status)


class Pod(_Base, frozen=True):
    """A pod bound to this node."""

    metadata: Meta
    spec: PodSpec = PodSpec()
    status: PodStatusView = PodStatusView()

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return (self.metadata.namespace, self.metadata.name)

    @property
    def uid(self) -> str:
        """The pod's identity."""
        return self.metadata.uid

    @property
    def is_deleting(self) -> bool:
        """Whether somebody asked for its end."""
        return self.metadata.deletion_timestamp is not None

    @property
    def is_finished(self) -> bool:
        """Whether it will never run again."""
        return self.status.phase in ("Succeeded", "Failed")

    def container(self, name: str) -> ContainerDef | None:
        """Find a container of the spec."""
        for each in (*self.spec.containers, *self.spec.init_containers):
            if each.name == name:
                return each
        return None

    def grace_s(self) -> float:
        """Seconds its processes get to end."""
        asked = self.metadata.deletion_grace_period_seconds
        return float(self.spec.termination_grace_period_seconds if asked is None else asked)


VOLUME_KINDS = ("emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected")


def unsupported(raw_spec: bytes | msgspec.Raw) -> Sequence[str]:
    """Name what a pod asks for that a wherry node does not have, one sentence each; such a pod is not started."""
    spec = msgspec.json.decode(raw_spec, type=dict[str, Any])
    found: list[str] = []
    for volume in spec.get("volumes") or ():
        kinds = [kind for kind in volume if kind != "name" and kind not in VOLUME_KINDS]
        found += [f"volume {volume['name']!r}: {kind} volumes are not supported" for kind in kinds]
        for source in (volume.get("projected") or {}).get("sources") or ():
            found += [
                f"volume {volume['name']!r}: projected source {kind} is not supported"
                for kind in source
                if kind not in ("configMap", "secret", "downwardAPI", "serviceAccountToken")
            ]
    for name in ("overhead", "runtimeClassName", "ephemeralContainers", "resourceClaims", "setHostnameAsFQDN"):
        if spec.get(name):
            found.append(f"spec.{name} is not supported")
    if spec.get("hostUsers") is False:
        found.append("spec.hostUsers: false (user namespaces) is not supported")
    contexts = [("spec.securityContext", spec.get("securityContext") or {})]
    for where in ("initContainers", "containers"):
        for container in spec.get(where) or ():
            path = f"spec.{where}[{container['name']}]"
            contexts.append((f"{path}.securityContext", container.get("securityContext") or {}))
            if where == "initContainers" and container.get("restartPolicy") == "Always":
                found.append(f"{path}.restartPolicy: sidecar containers are not supported")
            if container.get("volumeDevices"):
                found.append(f"{path}.volumeDevices is not supported")
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                if (container.get(probe) or {}).get("grpc"):
                    found.append(f"{path}.{probe}.grpc is not supported; use an exec or http probe")
            for port in container.get("ports") or ():
                if (
                    port.get("hostPort")
                    and not spec.get("hostNetwork")
                    and port.get("protocol", "TCP") not in ("TCP", "UDP")
                ):
                    number = port["containerPort"]
                    found.append(
                        f"{path}.ports[{number}].hostPort of {port['protocol']} is not supported; use TCP or UDP"
                    )
            for mount in container.get("volumeMounts") or ():
                if mount.get("mountPropagation", "None") != "None":
                    found.append(f"{path}.volumeMounts[{mount['name']}].mountPropagation is not supported")
    for path, context in contexts:
        for name in ("seLinuxOptions", "windowsOptions", "appArmorProfile"):
            if context.get(name):
                found.append(f"{path}.{name} is not supported")
        if (context.get("seccompProfile") or {}).get("type") == "Localhost":
            found.append(f"{path}.seccompProfile.type Localhost is not supported")
        if context.get("procMount", "Default") != "Default":
            found.append(f"{path}.procMount {context['procMount']} is not supported")
    return found


def seconds_of(timestamp: str | None) -> float:
    """Read an API time; 0 for none."""
    return parse_rfc3339(timestamp) if timestamp else 0.0
