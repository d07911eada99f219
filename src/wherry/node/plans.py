"""From a pod's spec to the engine's: pure, apart from the lookups that are handed in as plain values."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

from wherry.engine.types import ContainerSpec, Dns, Limits, Mount, SandboxSpec
from wherry.errors import Invalid
from wherry.model.quantities import parse_bytes, parse_cpu
from wherry.network.types import PortBinding
from wherry.node.pods import ContainerDef, Env, FieldRef, Pod, ResourceFieldRef

Values = Mapping[str, str]
Lookup = Callable[[str, str], Values | None]
"""(kind "ConfigMap" or "Secret", name) -> its text values, or None when it is not there."""

POD_PIDS = 4096


def sandbox_spec(pod: Pod, *, dns_address: str, cluster_domain: str, host_dns: Dns) -> SandboxSpec:
    """Plan the pod's sandbox."""
    spec = pod.spec
    hosts = [(name, alias.ip) for alias in spec.host_aliases for name in alias.hostnames]
    return SandboxSpec(
        id=sandbox_id(pod.uid),
        hostname="" if spec.host_network else (spec.hostname or pod.metadata.name)[:63],
        network="host" if spec.host_network else "pod",
        dns=_dns(pod, dns_address, cluster_domain, host_dns),
        hosts=hosts,
        labels={
            "io.kubernetes.pod.uid": pod.uid,
            "io.kubernetes.pod.name": pod.metadata.name,
            "io.kubernetes.pod.namespace": pod.metadata.namespace,
            **{name: value for name, value in pod.metadata.annotations.items() if name.startswith("wherry.dev/")},
        },
        cgroup=f"pods/{pod.uid}",
        limits=_pod_limits(pod),
        sysctls={each.name: each.value for each in spec.security_context.sysctls},
        host_ipc=spec.host_ipc,
        host_pid=spec.host_pid,
        share_pid=spec.share_process_namespace,
        userns="host",
        ports=() if spec.host_network else _host_ports(pod),
    )


def _host_ports(pod: Pod) -> list[PortBinding]:
    """List the ports of the node that lead to the pod."""
    return [
        PortBinding(port.container_port, port.protocol.lower(), port.host_ip, port.host_port, port.host_port)
        for container in pod.spec.containers
        for port in container.ports
        if port.host_port
    ]


def sandbox_id(uid: str) -> str:
    """The sandbox's id from the pod's uid: the same every time, so that creating twice makes one."""
    return "pod-" + uid


def _dns(pod: Pod, address: str, domain: str, host_dns: Dns) -> Dns:
    spec = pod.spec
    if spec.dns_policy == "None":
        servers, searches, options = [], [], []
    elif spec.dns_policy == "Default" or (spec.dns_policy == "ClusterFirst" and spec.host_network):
        servers, searches, options = list(host_dns.servers), list(host_dns.searches), list(host_dns.options)
    else:
        namespace = pod.metadata.namespace
        servers = [address]
        searches = [f"{namespace}.svc.{domain}", f"svc.{domain}", domain, *host_dns.searches]
        options = ["ndots:5"]
    if spec.dns_config is not None:
        servers += [each for each in spec.dns_config.nameservers if each not in servers]
        searches += [each for each in spec.dns_config.searches if each not in searches]
        options += [each.name + (f":{each.value}" if each.value else "") for each in spec.dns_config.options]
    return Dns(servers, searches, options)


def _pod_limits(pod: Pod) -> Limits:
    """The pod's own bound: the sum of its containers' limits, where every one has it."""
    memory = [each.resources.limits.get("memory") for each in pod.spec.containers]
    cpu = [each.resources.limits.get("cpu") for each in pod.spec.containers]
    return Limits(
        memory_bytes=sum(parse_bytes(each) for each in memory if each) if memory and all(memory) else None,
        cpu_quota_us=sum(parse_cpu(each) for each in cpu if each) * 100 if cpu and all(cpu) else None,
        pids=POD_PIDS,
    )


def container_limits(definition: ContainerDef) -> Limits:
    """A container's limits: cpu limit as quota, cpu request (or limit) as weight."""
    limits, requests = definition.resources.limits, definition.resources.requests
    cpu, memory = limits.get("cpu"), limits.get("memory")
    weight = requests.get("cpu") or cpu
    return Limits(
        cpu_quota_us=max(1000, parse_cpu(cpu) * 100) if cpu else None,
        cpu_shares=max(2, parse_cpu(weight) * 1024 // 1000) if weight else 2,
        memory_bytes=parse_bytes(memory) if memory else None,
        pids=POD_PIDS,
    )


def container_spec(
    pod: Pod, definition: ContainerDef, *, attempt: int, env: Sequence[tuple[str, str]], mounts: Sequence[Mount],
    image: str, log_path: str,
) -> ContainerSpec:  # fmt: skip
    """Plan one attempt of one container. `image` is the id that the runtime resolved; `env` is complete, in order."""
    context, shared = definition.security_context, pod.spec.security_context
    user = context.run_as_user if context.run_as_user is not None else shared.run_as_user
    group = context.run_as_group if context.run_as_group is not None else shared.run_as_group
    values = dict(env)
    profile = context.seccomp_profile or shared.seccomp_profile
    groups = [*shared.supplemental_groups]
    if shared.fs_group is not None:
        groups.append(shared.fs_group)
    capabilities = context.capabilities
    return ContainerSpec(
        name=f"k8s_{definition.name}_{pod.metadata.name}_{pod.metadata.namespace}_{pod.uid}_{attempt}",
        image=image,
        entrypoint=[expand(each, values) for each in definition.command] if definition.command else None,
        command=[expand(each, values) for each in definition.args] if definition.args is not None else None,
        env=[f"{name}={value}" for name, value in env],
        workdir=definition.working_dir,
        user="" if user is None else str(user) + (f":{group}" if group is not None else ""),
        groups=groups,
        sandbox=sandbox_id(pod.uid),
        mounts=mounts,
        limits=container_limits(definition),
        labels={
            "io.kubernetes.pod.uid": pod.uid,
            "io.kubernetes.pod.name": pod.metadata.name,
            "io.kubernetes.pod.namespace": pod.metadata.namespace,
            "io.kubernetes.container.name": definition.name,
            "io.kubernetes.container.attempt": str(attempt),
            "io.kubernetes.container.image": definition.image,
        },
        cap_add=[_capability(each) for each in capabilities.add] if capabilities else [],
        cap_drop=[_capability(each) for each in capabilities.drop] if capabilities else [],
        privileged=context.privileged,
        read_only_root=context.read_only_root_filesystem,
        no_new_privileges=context.allow_privilege_escalation is False,
        seccomp="unconfined" if context.privileged or (profile and profile.type == "Unconfined") else "default",
        tty=definition.tty,
        stdin=definition.stdin,
        stdin_once=definition.stdin_once,
        stop_grace_s=float(pod.spec.termination_grace_period_seconds),
        log_path=log_path,
    )


def check_user(pod: Pod, definition: ContainerDef, image_user: str) -> None:
    """Raise Invalid when runAsNonRoot is asked for and the container would run as root, or as nobody knows whom."""
    context, shared = definition.security_context, pod.spec.security_context
    wanted = context.run_as_non_root if context.run_as_non_root is not None else shared.run_as_non_root
    if not wanted:
        return
    user = context.run_as_user if context.run_as_user is not None else shared.run_as_user
    name = str(user) if user is not None else image_user.partition(":")[0]
    if name in ("", "0", "root"):
        raise Invalid(f"container {definition.name}: runAsNonRoot is set and the image runs as root; set runAsUser")
    if not name.isdigit():
        raise Invalid(
            f"container {definition.name}: runAsNonRoot is set and the image's user {name!r} has no number; set runAsUser"
        )


def _capability(name: str) -> str:
    upper = name.upper()
    return upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"


_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)")


def expand(text: str, values: Values) -> str:
    """Replace `$(NAME)` by its value; unknown names stay, `$$` is one dollar sign."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return _REFERENCE.sub(one, text)


def environment(
    pod: Pod, definition: ContainerDef, *, services: Sequence[tuple[str, str]], lookup: Lookup, address: str,
    host_address: str, capacity: Values,
) -> Sequence[tuple[str, str]]:  # fmt: skip
    """All variables of a container, in order, later ones winning: services, then envFrom, then env.

    Raises Invalid naming the ConfigMap, Secret or key that is missing.
    """
    result: dict[str, str] = dict(services)
    for source in definition.env_from:
        for kind, reference in (("ConfigMap", source.config_map_ref), ("Secret", source.secret_ref)):
            if reference is None:
                continue
            values = lookup(kind, reference.name)
            if values is None and not reference.optional:
                raise Invalid(f'{kind.lower()} "{reference.name}" not found')
            result.update({source.prefix + key: value for key, value in (values or {}).items()})
    for each in definition.env:
        value = _env_value(pod, definition, each, result, lookup, address, host_address, capacity)
        if value is not None:
            result[each.name] = value
    return list(result.items())


def _env_value(
    pod: Pod, definition: ContainerDef, env: Env, known: Values, lookup: Lookup, address: str, host_address: str,
    capacity: Values,
) -> str | None:  # fmt: skip
    source = env.value_from
    if source is None:
        return expand(env.value, known)
    if source.field_ref is not None:
        return field_value(pod, source.field_ref, address, host_address)
    if source.resource_field_ref is not None:
        return resource_value(pod, definition, source.resource_field_ref, capacity)
    for kind, reference in (("ConfigMap", source.config_map_key_ref), ("Secret", source.secret_key_ref)):
        if reference is None:
            continue
        values = lookup(kind, reference.name)
        if values is None or reference.key not in values:
            if reference.optional:
                return None
            missing = f'{kind.lower()} "{reference.name}" not found'
            raise Invalid(
                missing if values is None else f"couldn't find key {reference.key} in {kind} {reference.name}"
            )
        return values[reference.key]
    return ""


_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.*)'\]")


def field_value(pod: Pod, reference: FieldRef, address: str, host_address: str) -> str:
    """Read a field for the downward API. Raises Invalid for a path that it does not have."""
    path = reference.field_path
    meta = pod.metadata
    if match := _SUBSCRIPT.fullmatch(path):
        return (meta.labels if match[1] == "labels" else meta.annotations).get(match[2], "")
    fields: dict[str, str] = {
        "metadata.name": meta.name,
        "metadata.namespace": meta.namespace,
        "metadata.uid": meta.uid,
        "metadata.labels": _lines(meta.labels),
        "metadata.annotations": _lines(meta.annotations),
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name,
        "status.hostIP": host_address,
        "status.hostIPs": host_address,
        "status.podIP": host_address if pod.spec.host_network else address,
        "status.podIPs": host_address if pod.spec.host_network else address,
    }
    if path not in fields:
        raise Invalid(f"fieldRef {path!r}: not a field of the downward API; it has {', '.join(sorted(fields))}")
    return fields[path]


def _lines(values: Values) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    return "\n".join(f"{key}={quoted(value)}" for key, value in sorted(values.items()))


def resource_value(pod: Pod, definition: ContainerDef, reference: ResourceFieldRef, capacity: Values) -> str:
    """Read a limit or request in units of the divisor, rounded up; a missing limit is the node's capacity."""
    target = pod.container(reference.container_name) if reference.container_name else definition
    side, _, name = reference.resource.partition(".")
    if target is None or side not in ("limits", "requests"):
        raise Invalid(f"resourceFieldRef {reference.resource!r}: no such container or resource")
    held = target.resources.limits if side == "limits" else target.resources.requests
    text = held.get(name) or (capacity.get(name, "0") if side == "limits" else "0")
    divisor = reference.divisor if reference.divisor not in ("", "0") else "1"
    if name == "cpu":
        amount, unit = parse_cpu(text), parse_cpu(divisor)
    else:
        amount, unit = parse_bytes(text), parse_bytes(divisor)
    return str(-(-amount // max(1, unit)))


def service_variables(services: Sequence[tuple[str, str, Sequence[tuple[str, int]]]]) -> Sequence[tuple[str, str]]:
    """The variables for services of (name, address, ports as (name, number)): NAME_SERVICE_HOST and so on."""
    result: list[tuple[str, str]] = []
    for name, address, ports in services:
        upper = name.upper().replace("-", "_")
        result.append((f"{upper}_SERVICE_HOST", address))
        if ports:
            result.append((f"{upper}_SERVICE_PORT", str(ports[0][1])))
        result += [
            (f"{upper}_SERVICE_PORT_{port_name.upper().replace('-', '_')}", str(number))
            for port_name, number in ports
            if port_name
        ]
    return result


def safe_relative(path: str) -> PurePosixPath:
    """Check a path inside a volume: relative, without `..`. Raises Invalid."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise Invalid(f"path {path!r}: must be relative and stay inside the volume")
    return pure
