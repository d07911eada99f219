"""Columns of the core group's kinds: pods, nodes, services, and what they are made of."""

from collections.abc import Mapping
from typing import Any

from wherry.api.columns import (
    AGE,
    NAME,
    NONE,
    UNKNOWN,
    Column,
    Columns,
    Json,
    at,
    containers,
    duration,
    joined,
    labels_text,
    number,
    since,
    text,
    wide,
)
from wherry.clock import parse_rfc3339

# --- pods ---------------------------------------------------------------------------------------------------------------


def pod_status(pod: Json) -> str:
    """The one word kubectl shows for a pod: its phase, or the most telling reason below it."""
    status: Json = pod.get("status") or {}
    reason = str(status.get("reason") or status.get("phase") or "Pending")
    if any(c.get("type") == "PodScheduled" and c.get("reason") == "SchedulingGated" for c in _conditions(pod)):
        reason = "SchedulingGated"
    found = _init_reason(pod)
    if found:
        reason = found
    else:
        reason = _container_reason(pod, reason)
    if at(pod, "metadata.deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            return "Unknown"
        if status.get("phase") not in ("Succeeded", "Failed"):
            return "Terminating"
    return reason


def _init_reason(pod: Json) -> str:
    """What initialising waits for or failed with; "" when it is done."""
    inits = at(pod, "spec.initContainers") or ()
    sidecars = {c.get("name") for c in inits if c.get("restartPolicy") == "Always"}
    for index, container in enumerate(at(pod, "status.initContainerStatuses") or ()):
        state: Json = container.get("state") or {}
        done, waiting = state.get("terminated"), state.get("waiting")
        if done is not None and done.get("exitCode", 0) == 0:
            continue
        if container.get("name") in sidecars and container.get("started"):
            continue
        if done is not None:
            return "Init:" + _ended(done)
        if waiting and waiting.get("reason") not in (None, "", "PodInitializing"):
            return f"Init:{waiting['reason']}"
        if at(pod, "status.phase") in ("Succeeded", "Failed"):
            return ""
        return f"Init:{index}/{len(inits)}"
    return ""


def _container_reason(pod: Json, reason: str) -> str:
    running = False
    for container in reversed(at(pod, "status.containerStatuses") or ()):
        state: Json = container.get("state") or {}
        if (state.get("waiting") or {}).get("reason"):
            reason = state["waiting"]["reason"]
        elif state.get("terminated") is not None:
            reason = _ended(state["terminated"])
        elif container.get("ready") and state.get("running") is not None:
            running = True
    if reason == "Completed" and running:
        ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in _conditions(pod))
        return "Running" if ready else "NotReady"
    return reason


def _ended(terminated: Json) -> str:
    if terminated.get("reason"):
        return str(terminated["reason"])
    return f"Signal:{terminated['signal']}" if terminated.get("signal") else f"ExitCode:{terminated.get('exitCode', 0)}"


def _conditions(obj: Json) -> list[Json]:
    return at(obj, "status.conditions") or []


def _counted(pod: Json) -> list[Json]:
    """The statuses that READY and RESTARTS count: containers, and init containers that stay (sidecars)."""
    sidecars = {c.get("name") for c in at(pod, "spec.initContainers") or () if c.get("restartPolicy") == "Always"}
    staying = [c for c in at(pod, "status.initContainerStatuses") or () if c.get("name") in sidecars]
    return [*staying, *(at(pod, "status.containerStatuses") or ())]


def _pod_ready(pod: Json, _: float) -> str:
    sidecars = [c for c in at(pod, "spec.initContainers") or () if c.get("restartPolicy") == "Always"]
    total = len(at(pod, "spec.containers") or ()) + len(sidecars)
    ready = sum(1 for c in _counted(pod) if c.get("ready"))
    return f"{ready}/{total}"


def _restarts(pod: Json, now: float) -> str:
    statuses = _counted(pod)
    count = sum(int(c.get("restartCount", 0)) for c in statuses)
    last = max((str(at(c, "lastState.terminated.finishedAt") or "") for c in statuses), default="")
    return f"{count} ({since(last, now)} ago)" if count and last else str(count)


def _gates(pod: Json, _: float) -> str:
    gates = at(pod, "spec.readinessGates") or ()
    if not gates:
        return NONE
    true = {c.get("type") for c in _conditions(pod) if c.get("status") == "True"}
    return f"{sum(1 for gate in gates if gate.get('conditionType') in true)}/{len(gates)}"


PODS: Columns = (
    NAME,
    Column("Ready", _pod_ready, description="Containers that are ready, and how many there are"),
    Column("Status", lambda pod, _: pod_status(pod), description="Its phase, or the most telling reason"),
    Column("Restarts", _restarts, description="How often its containers were restarted, and when last"),
    AGE,
    wide("IP", lambda pod, _: at(pod, "status.podIP") or NONE),
    wide("Node", lambda pod, _: at(pod, "spec.nodeName") or NONE),
    wide("Nominated Node", lambda pod, _: at(pod, "status.nominatedNodeName") or NONE),
    wide("Readiness Gates", _gates),
)

# --- nodes --------------------------------------------------------------------------------------------------------------


def _node_status(node: Json, _: float) -> str:
    words = [
        "Ready" if condition.get("status") == "True" else "NotReady"
        for condition in _conditions(node)
        if condition.get("type") == "Ready"
    ] or ["Unknown"]
    if at(node, "spec.unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _node_roles(node: Json, _: float) -> str:
    prefix, roles = "node-role.kubernetes.io/", set[str]()
    for key, value in (at(node, "metadata.labels") or {}).items():
        if key.startswith(prefix) and len(key) > len(prefix):
            roles.add(key.removeprefix(prefix))
        elif key == "kubernetes.io/role" and value:
            roles.add(str(value))
    return joined(sorted(roles))


def _address(node: Json, type_: str) -> str:
    found = (a.get("address", "") for a in at(node, "status.addresses") or () if a.get("type") == type_)
    return next(found, NONE)


NODES: Columns = (
    NAME,
    Column("Status", _node_status, description="Ready or not, and whether pods may be scheduled to it"),
    Column("Roles", _node_roles, description="Roles by its labels"),
    AGE,
    text("Version", "status.nodeInfo.kubeletVersion"),
    wide("Internal-IP", lambda node, _: _address(node, "InternalIP")),
    wide("External-IP", lambda node, _: _address(node, "ExternalIP")),
    wide("OS-Image", lambda node, _: at(node, "status.nodeInfo.osImage") or UNKNOWN),
    wide("Kernel-Version", lambda node, _: at(node, "status.nodeInfo.kernelVersion") or UNKNOWN),
    wide("Container-Runtime", lambda node, _: at(node, "status.nodeInfo.containerRuntimeVersion") or UNKNOWN),
)

# --- services and endpoints ---------------------------------------------------------------------------------------------


def _external(service: Json, _: float) -> str:
    given = [str(address) for address in at(service, "spec.externalIPs") or ()]
    match at(service, "spec.type"):
        case "LoadBalancer":
            points = at(service, "status.loadBalancer.ingress") or ()
            found = [*(str(p.get("ip") or p.get("hostname") or "") for p in points), *given]
            return ",".join(found) or "<pending>"
        case "ExternalName":
            return str(at(service, "spec.externalName") or "")
        case _:
            return joined(given)


def _service_ports(service: Json, _: float) -> str:
    return joined(
        f"{port.get('port')}:{port['nodePort']}/{port.get('protocol', 'TCP')}"
        if port.get("nodePort")
        else f"{port.get('port')}/{port.get('protocol', 'TCP')}"
        for port in at(service, "spec.ports") or ()
    )


SERVICES: Columns = (
    NAME,
    text("Type", "spec.type", NONE),
    text("Cluster-IP", "spec.clusterIP", NONE),
    Column("External-IP", _external),
    Column("Port(s)", _service_ports),
    AGE,
    wide("Selector", lambda service, _: labels_text(at(service, "spec.selector"))),
)


def _few(values: list[str], most: int = 3) -> str:
    if not values:
        return NONE
    return ",".join(values[:most]) + (f" + {len(values) - most} more..." if len(values) > most else "")


def _endpoints(obj: Json, _: float) -> str:
    found: list[str] = []
    for subset in obj.get("subsets") or ():
        for address in subset.get("addresses") or ():
            ports = subset.get("ports") or ()
            found += [f"{address.get('ip')}:{port.get('port')}" for port in ports] or [str(address.get("ip"))]
    return _few(found)


ENDPOINTS: Columns = (NAME, Column("Endpoints", _endpoints), AGE)


def _slice_ports(obj: Json, _: float) -> str:
    ports = obj.get("ports") or []
    if not ports:
        return "<unset>"
    return _few([str(port.get("port") or "*") for port in ports])


ENDPOINTSLICES: Columns = (
    NAME,
    text("AddressType", "addressType"),
    Column("Ports", _slice_ports),
    Column(
        "Endpoints",
        lambda obj, _: (
            _few([a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()])
            if obj.get("endpoints")
            else "<unset>"
        ),
    ),
    AGE,
)

# --- events -------------------------------------------------------------------------------------------------------------


def _seen(event: Json, which: str, now: float) -> str:
    series: Json = event.get("series") or {}
    if which == "last":
        when = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    else:
        when = event.get("firstTimestamp") or event.get("eventTime")
    return since(when, now)


def _last_seen(event: Json, now: float) -> str:
    return _seen(event, "last", now)


def _event_object(event: Json, _: float) -> str:
    involved: Json = event.get("involvedObject") or event.get("regarding") or {}
    return f"{str(involved.get('kind', '')).lower()}/{involved.get('name', '')}"


def _event_source(event: Json, _: float) -> str:
    source: Json = event.get("source") or event.get("deprecatedSource") or {}
    component = source.get("component") or event.get("reportingComponent") or event.get("reportingController") or ""
    return f"{component}, {source['host']}" if source.get("host") else str(component)


def _event_count(event: Json, _: float) -> int:
    series: Json = event.get("series") or {}
    return int(series.get("count") or event.get("count") or event.get("deprecatedCount") or 1)


EVENTS: Columns = (
    Column("Last Seen", _last_seen),
    text("Type", "type"),
    text("Reason", "reason"),
    Column("Object", _event_object),
    wide("Subobject", lambda e, _: at(e, "involvedObject.fieldPath") or at(e, "regarding.fieldPath") or ""),
    wide("Source", _event_source),
    Column("Message", lambda event, _: str(event.get("message") or event.get("note") or "").strip()),
    wide("First Seen", lambda event, now: _seen(event, "first", now)),
    Column("Count", _event_count, type="integer", wide=True),
    Column("Name", lambda obj, _: at(obj, "metadata.name") or "", format="name", wide=True),
)

# --- the small ones -----------------------------------------------------------------------------------------------------


def _count(*fields: str) -> Column:
    return Column("Data", lambda obj, _: sum(len(obj.get(field) or ()) for field in fields), type="integer")


NAMESPACES: Columns = (NAME, text("Status", "status.phase"), AGE)
CONFIGMAPS: Columns = (NAME, _count("data", "binaryData"), AGE)
SECRETS: Columns = (NAME, text("Type", "type"), _count("data"), AGE)
SERVICEACCOUNTS: Columns = (
    NAME,
    Column("Secrets", lambda obj, _: len(obj.get("secrets") or ()), type="integer"),
    AGE,
)
REPLICATIONCONTROLLERS: Columns = (
    NAME,
    number("Desired", "spec.replicas"),
    number("Current", "status.replicas"),
    number("Ready", "status.readyReplicas"),
    AGE,
    *containers("spec.template.spec"),
    wide("Selector", lambda obj, _: labels_text(at(obj, "spec.selector"))),
)

_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def _modes(path: str) -> Column:
    return Column("Access Modes", lambda obj, _: ",".join(_MODES.get(str(m), str(m)) for m in at(obj, path) or ()))


def _volume_status(obj: Json, _: float) -> str:
    return "Terminating" if at(obj, "metadata.deletionTimestamp") else str(at(obj, "status.phase") or "")


def _claim(volume: Json, _: float) -> str:
    claim: Mapping[str, Any] = at(volume, "spec.claimRef") or {}
    return f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else ""


PERSISTENTVOLUMES: Columns = (
    NAME,
    text("Capacity", "spec.capacity.storage"),
    _modes("spec.accessModes"),
    text("Reclaim Policy", "spec.persistentVolumeReclaimPolicy"),
    Column("Status", _volume_status),
    Column("Claim", _claim),
    text("StorageClass", "spec.storageClassName"),
    text("VolumeAttributesClass", "spec.volumeAttributesClassName", "<unset>"),
    text("Reason", "status.reason"),
    AGE,
    wide("VolumeMode", lambda obj, _: at(obj, "spec.volumeMode") or "<unset>"),
)
PERSISTENTVOLUMECLAIMS: Columns = (
    NAME,
    Column("Status", _volume_status),
    text("Volume", "spec.volumeName"),
    text("Capacity", "status.capacity.storage"),
    _modes("status.accessModes"),
    text("StorageClass", "spec.storageClassName"),
    text("VolumeAttributesClass", "spec.volumeAttributesClassName", "<unset>"),
    AGE,
    wide("VolumeMode", lambda obj, _: at(obj, "spec.volumeMode") or "<unset>"),
)


def lasted(start: Any, end: Any, now: float) -> str:
    """How long something took, or has taken so far; "" when it has not begun."""
    if not start:
        return ""
    try:
        return duration((parse_rfc3339(str(end)) if end else now) - parse_rfc3339(str(start)))
    except ValueError:
        return "<invalid>"
