"""Amounts of resources as integers: CPU in millicores, everything else in its unit (bytes, pieces). Pure."""

from collections.abc import Callable, Iterable, Mapping

from wherry.errors import Invalid
from wherry.model.quantities import format_bytes, format_cpu, parse_bytes, parse_cpu
from wherry.scheduler.objects import Container, PodSpec, Quantities

CPU = "cpu"
MEMORY = "memory"
STORAGE = "ephemeral-storage"
PODS = "pods"

Amounts = dict[str, int]

DEFAULT_PODS = 110
"""Pods that a node takes if it does not say."""

SMALL: Mapping[str, int] = {CPU: 100, MEMORY: 200 * 1024 * 1024}
"""What a container that asks for nothing counts as in scores, so that such pods spread too."""


def amounts(quantities: Quantities) -> Amounts:
    """Read quantities; one that cannot be read is left out (the API server refuses such objects)."""
    found: Amounts = {}
    for name, text in quantities.items():
        try:
            found[name] = parse_cpu(text) if name == CPU else parse_bytes(text)
        except Invalid:
            continue
    return found


def add(into: Amounts, more: Mapping[str, int]) -> None:
    """Add amounts in place."""
    for name, amount in more.items():
        into[name] = into.get(name, 0) + amount


def request_of(spec: PodSpec) -> Amounts:
    """What a pod asks for: its containers and sidecars together, or an init container with the sidecars before it,
    whichever is more, and its overhead. Source: Kubernetes, "Init Containers", "Resource sharing within containers".
    """
    return _combine(spec, lambda container: amounts(_asked(container)))


def counted_request(spec: PodSpec) -> Amounts:
    """What a pod counts as in scores: a container that asks for no CPU or memory counts as a small one."""
    return _combine(spec, lambda container: {**SMALL, **amounts(_asked(container))})


def allocatable(quantities: Quantities) -> Amounts:
    """What a node gives to pods."""
    found = amounts(quantities)
    found.setdefault(PODS, DEFAULT_PODS)
    return found


def written(name: str, amount: int) -> str:
    """An amount as people write it."""
    if name == CPU:
        return format_cpu(amount)
    return format_bytes(amount) if name in (MEMORY, STORAGE) or name.startswith("hugepages-") else str(amount)


def _asked(container: Container) -> Quantities:
    """Requests; where there is only a limit, the limit is the request."""
    return {**container.resources.limits, **container.resources.requests}


def _combine(spec: PodSpec, ask: Callable[[Container], Amounts]) -> Amounts:
    together: Amounts = {}
    for container in spec.containers:
        add(together, ask(container))
    sidecars: Amounts = {}
    starting: Amounts = {}
    for container in spec.init_containers:
        wants = dict(ask(container))
        if container.restart_policy == "Always":
            add(sidecars, wants)
            wants = dict(sidecars)
        else:
            add(wants, sidecars)
        _raise(starting, wants)
    add(together, sidecars)
    _raise(together, starting)
    add(together, amounts(spec.overhead))
    return together


def _raise(to: Amounts, at_least: Mapping[str, int]) -> None:
    for name, amount in at_least.items():
        to[name] = max(to.get(name, 0), amount)


def total(many: Iterable[Mapping[str, int]]) -> Amounts:
    """The sum."""
    result: Amounts = {}
    for one in many:
        add(result, one)
    return result
