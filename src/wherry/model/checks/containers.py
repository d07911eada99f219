"""Checks of containers: names, images, ports, environment, resources, probes."""

from typing import Any

from wherry.model import names
from wherry.model.checks import volumes as volume_checks
from wherry.model.checks.problems import Object, Problems, each, part
from wherry.model.quantities import Quantity

PROTOCOLS = ("TCP", "UDP", "SCTP")
_PULL = ("Always", "Never", "IfNotPresent")
_MESSAGE = ("File", "FallbackToLogsOnError")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_HOOKS = ("exec", "httpGet", "tcpSocket", "sleep")
_FIELD_PATHS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_RESOURCES = ("cpu", "memory", "storage", "ephemeral-storage", "pods")


def check_containers(problems: Problems, path: str, spec: Object, volumes: set[str]) -> None:
    """Check all containers of a pod's spec; `path` is that of the spec."""
    if not spec.get("containers"):
        problems.required(f"{path}.containers")
    seen: set[str] = set()
    ports: set[tuple[Any, ...]] = set()
    for list_name in ("containers", "initContainers", "ephemeralContainers"):
        for here, container in each(path, spec, list_name):
            name = container.get("name") or ""
            if name and name in seen:
                problems.duplicate(f"{here}.name", name)
            seen.add(name)
            _check_container(problems, here, container, volumes)
            if list_name == "containers":
                _check_host_ports(problems, here, container, ports)
            if list_name == "initContainers":
                _check_init(problems, here, container)
            elif list_name == "ephemeralContainers":
                _check_ephemeral(problems, here, container)


def _check_container(problems: Problems, path: str, container: Object, volumes: set[str]) -> None:
    name = container.get("name") or ""
    if not name:
        problems.required(f"{path}.name")
    else:
        problems.all_invalid(f"{path}.name", name, names.dns_label(name))
    image = container.get("image") or ""
    if not image:
        problems.required(f"{path}.image")
    elif image != image.strip():
        problems.invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
    problems.one_of(f"{path}.terminationMessagePolicy", container.get("terminationMessagePolicy"), _MESSAGE)
    problems.one_of(f"{path}.imagePullPolicy", container.get("imagePullPolicy"), _PULL)
    _check_ports(problems, path, container)
    check_env(problems, path, container)
    volume_checks.check_mounts(problems, path, container, volumes)
    check_resources(problems, f"{path}.resources", part(container, "resources"))
    for probe in _PROBES:
        if isinstance(container.get(probe), dict):
            _check_probe(problems, f"{path}.{probe}", container[probe], is_readiness=probe == "readinessProbe")
    for hook in ("postStart", "preStop"):
        handler = part(container, "lifecycle").get(hook)
        if isinstance(handler, dict):
            _check_handler(problems, f"{path}.lifecycle.{hook}", handler, _HOOKS)
    _check_security(problems, f"{path}.securityContext", part(container, "securityContext"))


def _check_init(problems: Problems, path: str, container: Object) -> None:
    policy = container.get("restartPolicy")
    is_sidecar = policy == "Always"
    problems.one_of(f"{path}.restartPolicy", policy, ("Always", "Never", "OnFailure"), required=False)
    for field in (*_PROBES, "lifecycle"):
        if container.get(field) is not None and not is_sidecar:
            problems.forbidden(f"{path}.{field}", "may not be set for init containers without restartPolicy=Always")


def _check_ephemeral(problems: Problems, path: str, container: Object) -> None:
    for field in (*_PROBES, "lifecycle", "ports"):
        if container.get(field):
            problems.forbidden(f"{path}.{field}", "cannot be set for an Ephemeral Container")
    if part(container, "resources"):
        problems.forbidden(f"{path}.resources", "cannot be set for an Ephemeral Container")


def _check_ports(problems: Problems, path: str, container: Object) -> None:
    seen: set[str] = set()
    for here, port in each(path, container, "ports"):
        name = port.get("name") or ""
        if name:
            wrong = names.port_name(name)
            problems.all_invalid(f"{here}.name", name, wrong)
            if not wrong and name in seen:
                problems.duplicate(f"{here}.name", name)
            seen.add(name)
        number = port.get("containerPort") or 0
        if number == 0:
            problems.required(f"{here}.containerPort")
        else:
            problems.all_invalid(f"{here}.containerPort", number, names.port_number(number))
        if port.get("hostPort"):
            problems.all_invalid(f"{here}.hostPort", port["hostPort"], names.port_number(port["hostPort"]))
        problems.one_of(f"{here}.protocol", port.get("protocol"), PROTOCOLS)
        if port.get("hostIP"):
            problems.all_invalid(f"{here}.hostIP", port["hostIP"], names.address(port["hostIP"]))


def _check_host_ports(problems: Problems, path: str, container: Object, taken: set[tuple[Any, ...]]) -> None:
    for here, port in each(path, container, "ports"):
        if port.get("hostPort"):
            claim = (port.get("protocol"), port.get("hostIP") or "", port["hostPort"])
            if claim in taken:
                problems.duplicate(f"{here}.hostPort", "/".join(str(one) for one in claim))
            taken.add(claim)


def check_env(problems: Problems, path: str, container: Object) -> None:
    """Check the environment of a container."""
    for here, variable in each(path, container, "env"):
        name = variable.get("name") or ""
        if not name:
            problems.required(f"{here}.name")
        else:
            problems.all_invalid(f"{here}.name", name, names.env_name(name))
        source = variable.get("valueFrom")
        if isinstance(source, dict):
            _check_value_from(problems, f"{here}.valueFrom", source, bool(variable.get("value")))
    for here, source in each(path, container, "envFrom"):
        prefix = source.get("prefix") or ""
        if prefix:
            problems.all_invalid(f"{here}.prefix", prefix, names.env_name(prefix))
        given = [name for name in ("configMapRef", "secretRef") if isinstance(source.get(name), dict)]
        if not given:
            problems.invalid(here, "", "must specify one of: `configMapRef` or `secretRef`")
        elif len(given) > 1:
            problems.invalid(here, "", "may not have more than one field specified at a time")
        for name in given:
            if not source[name].get("name"):
                problems.required(f"{here}.{name}.name")


def _check_value_from(problems: Problems, path: str, source: Object, has_value: bool) -> None:
    kinds = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")
    given = [name for name in kinds if isinstance(source.get(name), dict)]
    if not given:
        problems.invalid(
            path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
        )
    elif has_value:
        problems.invalid(path, "", "may not be specified when `value` is not empty")
    elif len(given) > 1:
        problems.invalid(path, "", "may not have more than one field specified at a time")
    for name in given:
        here, ref = f"{path}.{name}", source[name]
        if name == "fieldRef":
            _check_field_ref(problems, here, ref)
        elif name == "resourceFieldRef":
            if not ref.get("resource"):
                problems.required(f"{here}.resource")
        elif name != "fileKeyRef":
            if not ref.get("name"):
                problems.required(f"{here}.name")
            if not ref.get("key"):
                problems.required(f"{here}.key")
            else:
                problems.all_invalid(f"{here}.key", ref["key"], names.config_key(ref["key"]))


def _check_field_ref(problems: Problems, path: str, ref: Object) -> None:
    field = ref.get("fieldPath") or ""
    if not field:
        problems.required(f"{path}.fieldPath")
        return
    head, _, rest = field.partition("[")
    if rest and head in ("metadata.labels", "metadata.annotations"):
        key = rest.removesuffix("]").strip("'\"")
        problems.all_invalid(f"{path}.fieldPath", field, names.qualified_name(key.lower()))
    elif field not in _FIELD_PATHS:
        problems.unsupported(f"{path}.fieldPath", field, _FIELD_PATHS)


def check_resources(problems: Problems, path: str, resources: Object) -> None:
    """Check limits and requests: amounts that can be read, and no request above its limit."""
    limits = _check_amounts(problems, f"{path}.limits", part(resources, "limits"))
    requests = _check_amounts(problems, f"{path}.requests", part(resources, "requests"))
    for name, amount in requests.items():
        limit = limits.get(name)
        if limit is not None and limit < amount:
            problems.invalid(f"{path}.requests", str(amount), f"must be less than or equal to {name} limit of {limit}")


def _check_amounts(problems: Problems, path: str, amounts: Object) -> dict[str, Quantity]:
    read: dict[str, Quantity] = {}
    for name, text in amounts.items():
        here = f"{path}[{name}]"
        problems.all_invalid(here, name, names.qualified_name(name))
        if "/" not in name and name not in _RESOURCES and not name.startswith("hugepages-"):
            problems.invalid(here, name, "must be a standard resource type or fully qualified")
            problems.invalid(here, name, "must be a standard resource for containers")
        amount = problems.amount(here, text)
        if amount is not None:
            read[name] = amount
    return read


def _check_handler(problems: Problems, path: str, handler: Object, kinds: tuple[str, ...]) -> None:
    given = [name for name in kinds if isinstance(handler.get(name), dict)]
    if not given:
        problems.required(path, "must specify a handler type")
    for name in given[1:]:
        problems.forbidden(f"{path}.{name}", "may not specify more than 1 handler type")
    for name in given[:1]:
        here, action = f"{path}.{name}", handler[name]
        if name == "exec" and not action.get("command"):
            problems.required(f"{here}.command")
        if name == "httpGet":
            if not action.get("path"):
                problems.required(f"{here}.path")
            problems.one_of(f"{here}.scheme", action.get("scheme"), ("HTTP", "HTTPS"))
            for at, header in enumerate(action.get("httpHeaders") or ()):
                if not header.get("name"):
                    problems.required(f"{here}.httpHeaders[{at}].name")
        if name in ("httpGet", "tcpSocket", "grpc"):
            problems.port(f"{here}.port", action.get("port") if action.get("port") is not None else 0)


def _check_probe(problems: Problems, path: str, probe: Object, *, is_readiness: bool) -> None:
    _check_handler(problems, path, probe, _HANDLERS)
    problems.not_negative(
        path, probe, "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"
    )
    if not is_readiness and probe.get("successThreshold") not in (None, 1):
        problems.invalid(f"{path}.successThreshold", probe["successThreshold"], "must be 1")
    grace_s = probe.get("terminationGracePeriodSeconds")
    if grace_s is not None:
        if is_readiness:
            problems.invalid(f"{path}.terminationGracePeriodSeconds", grace_s, "must not be set for readinessProbes")
        elif grace_s <= 0:
            problems.invalid(f"{path}.terminationGracePeriodSeconds", grace_s, "must be greater than 0")


def _check_security(problems: Problems, path: str, context: Object) -> None:
    for field in ("runAsUser", "runAsGroup"):
        number = context.get(field)
        if number is not None and not 0 <= number < 2**31:
            problems.invalid(f"{path}.{field}", number, "must be between 0 and 2147483647, inclusive")
    may_gain = context.get("allowPrivilegeEscalation")
    if may_gain is False:
        if context.get("privileged"):
            problems.invalid(path, context, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
        if "CAP_SYS_ADMIN" in (part(context, "capabilities").get("add") or ()):
            problems.invalid(
                path,
                context,
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            )
