"""How an instance is: what the warden and the API say, as a value, a table or JSON."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from wherry.daemon.instance import Instance, NodePlan, Plan, ask
from wherry.errors import NotFound, WherryError
from wherry.wire.blocking import request


class NodeState(msgspec.Struct, frozen=True):
    """One node as the API says."""

    name: str
    ready: bool
    kind: str
    pod_cidr: str
    pods: int


class InstanceState(msgspec.Struct, frozen=True):
    """One instance. `docker` says where the Docker API answers; of an engine that stands alone there is no more than that."""

    root: str
    id: str
    profile: str
    is_ready: bool
    api: str
    registry: str
    roles: Sequence[dict[str, Any]]
    nodes: Sequence[NodeState]
    kind: str = "cluster"
    docker: Sequence[str] = ()


def get(path: Path, target: str, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """GET from a unix socket. Raises NotFound or Unavailable when nobody listens."""
    answer = request(str(path), "GET", target, headers={"Accept": "application/json"}, timeout_s=timeout_s)
    try:
        return answer.status, answer.read()
    finally:
        answer.close()


def nodes_of(instance: Instance) -> dict[str, bool]:
    """The nodes that the API knows, and whether each is ready."""
    _, body = get(instance.api_socket, "/api/v1/nodes")
    result: dict[str, bool] = {}
    for item in msgspec.json.decode(body).get("items") or ():
        conditions = (item.get("status") or {}).get("conditions") or ()
        result[item["metadata"]["name"]] = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return result


def is_ready(instance: Instance, nodes: Sequence[NodePlan]) -> bool:
    """Whether the API answers that it is ready, the registry is there, and so are all these nodes, by an agent of this start.

    The store may still say Ready of an agent of an earlier start; the files in the run directory are of this one.
    """
    here = [instance.heartbeat(node.name) if node.real else instance.agent_socket(node.name) for node in nodes]
    if not all(path.exists() for path in (*here, instance.registry_socket)):
        return False
    try:
        known = nodes_of(instance)  # first: while they are awaited, one question in each round is enough
        return all(known.get(node.name) for node in nodes) and get(instance.api_socket, "/readyz")[0] == 200
    except (WherryError, OSError):
        return False


def status(instance: Instance) -> InstanceState:
    """Say how it is. Raises NotFound for a root without an instance."""
    plan = instance.load()
    if plan.kind == "engine":
        return _alone(instance, plan)
    try:
        roles: Sequence[dict[str, Any]] = ask(instance.warden_socket, {"op": "status"})["roles"]
    except NotFound:
        roles = ()
    known: dict[str, bool] = {}
    pods: dict[str, int] = {}
    if roles:
        try:
            known = nodes_of(instance)
            for item in msgspec.json.decode(get(instance.api_socket, "/api/v1/pods")[1]).get("items") or ():
                name = item["spec"].get("nodeName", "")
                pods[name] = pods.get(name, 0) + 1
        except (WherryError, OSError):
            known = {}
    nodes = [
        NodeState(
            each.name, known.get(each.name, False), "real" if each.real else "simulated", each.pod_cidr,
            pods.get(each.name, 0),
        )
        for each in plan.nodes
    ]  # fmt: skip
    return InstanceState(
        root=str(instance.root),
        id=instance.id,
        profile=plan.profile,
        is_ready=bool(roles) and all(node.ready for node in nodes),
        api=f"https://127.0.0.1:{plan.api_port}",
        registry=f"127.0.0.1:{plan.registry_port}",
        roles=roles,
        nodes=nodes,
        docker=[f"unix://{instance.docker_socket(each.name)}" for each in plan.nodes if each.real],
    )


def _alone(instance: Instance, plan: Plan) -> InstanceState:
    from wherry.daemon.alone import running_record

    found = running_record(instance)
    ready = False
    if found is not None:
        with suppress(WherryError, OSError):
            ready = get(instance.docker_socket(plan.nodes[0].name), "/_ping")[0] == 200
    role = {"name": plan.nodes[0].name, "pid": found.pid if found else 0, "state": "running", "starts": 1}
    return InstanceState(
        root=str(instance.root),
        id=instance.id,
        profile=plan.profile,
        is_ready=ready,
        api="",
        registry="",
        roles=[role | {"last_exit": None, "fenced": 0}] if found is not None else [],
        nodes=(),
        kind=plan.kind,
        docker=found.addresses if found is not None else (),
    )


def as_json(found: InstanceState) -> str:
    """One JSON document."""
    return msgspec.json.format(msgspec.json.encode(found)).decode() + "\n"


def as_table(found: InstanceState) -> str:
    """A page for people."""
    lines = [
        f"instance  {found.id}  {found.root}",
        f"state     {'ready' if found.is_ready else 'up, not ready' if found.roles else 'down'}",
        *(
            [f"docker    {each}" for each in found.docker]
            if found.kind == "engine"
            else [f"profile   {found.profile}", f"api       {found.api}", f"registry  {found.registry}"]
        ),
        "",
        f"{'ROLE':<16}{'STATE':<10}{'PID':<9}{'STARTS':<8}LAST EXIT",
    ]
    for role in found.roles:
        last = "" if role["last_exit"] is None else str(role["last_exit"])
        lines.append(f"{role['name']:<16}{role['state']:<10}{role['pid']:<9}{role['starts']:<8}{last}".rstrip())
    if found.kind == "engine":
        return "\n".join(lines) + "\n"
    lines += ["", f"{'NODE':<16}{'READY':<8}{'KIND':<11}{'PODS':<6}POD CIDR"]
    for node in found.nodes:
        ready = "yes" if node.ready else "no"
        lines.append(f"{node.name:<16}{ready:<8}{node.kind:<11}{node.pods:<6}{node.pod_cidr}")
    return "\n".join(lines) + "\n"
