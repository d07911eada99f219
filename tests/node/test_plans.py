"""From a pod to what the engine is asked for."""

from typing import Any

import pytest

from tests.node.pods import pod, pod_bytes
from wherry.engine.types import Dns
from wherry.errors import Invalid
from wherry.network.types import PortBinding
from wherry.node.plans import check_user, container_spec, environment, expand, sandbox_spec, service_variables
from wherry.node.pods import unsupported

HOST_DNS = Dns(["9.9.9.9"], ["example.org"])


def values(kind: str, name: str) -> dict[str, str] | None:
    return {"ConfigMap/settings": {"A": "1", "B": "2"}, "Secret/keys": {"token": "s"}}.get(f"{kind}/{name}")


def env_of(container: dict[str, Any], **more: Any) -> dict[str, str]:
    subject = pod({"name": "app", **container}, **more)
    return dict(
        environment(
            subject, subject.spec.containers[0], services=[("X_SERVICE_HOST", "10.0.0.9")], lookup=values,
            address="10.1.0.5", host_address="10.0.0.1", capacity={"cpu": "2", "memory": "4Gi"},
        )
    )  # fmt: skip


def test_variables_come_from_everywhere_and_later_ones_win() -> None:
    found = env_of(
        {
            "envFrom": [{"configMapRef": {"name": "settings"}}, {"prefix": "P_", "secretRef": {"name": "keys"}}],
            "env": [
                {"name": "B", "value": "3"},
                {"name": "C", "value": "$(A)-$(B)-$(NOPE)-$$(A)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MIB", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "NO", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": True}}},
            ],
        },
        metadata={"labels": {"app": "shop"}},
    )
    assert found == {
        "X_SERVICE_HOST": "10.0.0.9", "A": "1", "B": "3", "P_token": "s", "C": "1-3-$(NOPE)-$(A)",
        "IP": "10.1.0.5", "L": "shop", "CPU": "2", "MIB": "4096",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ({"envFrom": [{"configMapRef": {"name": "nope"}}]}, 'configmap "nope" not found'),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "nope", "key": "k"}}}]},
            'secret "nope" not found',
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "Z"}}}]},
            "couldn't find key Z in ConfigMap settings",
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}}]},
            "not a field of the downward API",
        ),
    ],
)
def test_what_is_missing_is_named(container: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        env_of(container)


def test_resolvers_by_policy() -> None:
    cluster = sandbox_spec(pod(), dns_address="10.1.0.1", cluster_domain="cluster.local", host_dns=HOST_DNS)
    assert cluster.dns.servers == ["10.1.0.1"]
    assert cluster.dns.searches[:2] == ["default.svc.cluster.local", "svc.cluster.local"]
    default = sandbox_spec(pod(dnsPolicy="Default"), dns_address="10.1.0.1", cluster_domain="c", host_dns=HOST_DNS)
    assert default.dns.servers == ["9.9.9.9"]
    own = {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]}
    none = sandbox_spec(pod(dnsPolicy="None", dnsConfig=own), dns_address="x", cluster_domain="c", host_dns=HOST_DNS)
    assert (none.dns.servers, none.dns.options) == (["1.1.1.1"], ["ndots:2"])


def test_limits_users_and_rights() -> None:
    subject = pod(
        {
            "name": "app",
            "command": ["run", "$(A)"],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}},
            "securityContext": {
                "runAsUser": 1000, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
                "allowPrivilegeEscalation": False,
            },
        },
        securityContext={"runAsGroup": 2000, "fsGroup": 3000},
    )  # fmt: skip
    spec = container_spec(
        subject, subject.spec.containers[0], attempt=2, env=[("A", "b")], mounts=(), image="sha256:1", log_path="/l"
    )
    assert (spec.limits.cpu_quota_us, spec.limits.cpu_shares, spec.limits.memory_bytes) == (50_000, 256, 64 << 20)
    assert (spec.user, list(spec.groups), spec.entrypoint) == ("1000:2000", [3000], ["run", "b"])
    assert (spec.cap_drop, spec.cap_add, spec.no_new_privileges) == (["ALL"], ["CAP_NET_BIND_SERVICE"], True)
    assert spec.name == "k8s_app_web_default_u-1_2"


def test_run_as_non_root_is_kept() -> None:
    careful = pod(securityContext={"runAsNonRoot": True})
    for user in ("", "root", "0:0", "app"):
        with pytest.raises(Invalid, match="runAsNonRoot"):
            check_user(careful, careful.spec.containers[0], user)
    check_user(careful, careful.spec.containers[0], "1000")


def test_expansion_leaves_what_it_does_not_know() -> None:
    assert expand("$(A) $(B) $$(A) $A", {"A": "x"}) == "x $(B) $(A) $A"


def test_service_variables() -> None:
    found = dict(service_variables([("my-db", "10.0.0.3", [("sql", 5432)])]))
    assert found == {
        "MY_DB_SERVICE_HOST": "10.0.0.3", "MY_DB_SERVICE_PORT": "5432", "MY_DB_SERVICE_PORT_SQL": "5432",
    }  # fmt: skip


def test_what_a_node_does_not_have_is_refused_by_name() -> None:
    wanted = pod_bytes(
        {
            "name": "app",
            "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "SCTP"}],
            "livenessProbe": {"grpc": {"port": 1}},
            "volumeDevices": [{"name": "d"}],
        },
        init=[{"name": "side", "restartPolicy": "Always"}],
        volumes=[{"name": "v", "nfs": {"server": "s"}}, {"name": "w", "emptyDir": {}}],
        hostUsers=False,
    )
    assert unsupported(wanted.spec) == [
        "volume 'v': nfs volumes are not supported",
        "spec.hostUsers: false (user namespaces) is not supported",
        "spec.initContainers[side].restartPolicy: sidecar containers are not supported",
        "spec.containers[app].volumeDevices is not supported",
        "spec.containers[app].livenessProbe.grpc is not supported; use an exec or http probe",
        "spec.containers[app].ports[80].hostPort of SCTP is not supported; use TCP or UDP",
    ]


def test_host_ports_are_the_sandboxes() -> None:
    ports = [
        {"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1"},
        {"containerPort": 53, "hostPort": 53, "protocol": "UDP"},
        {"containerPort": 81},
    ]
    wanted = pod({"name": "app", "ports": ports})
    made = sandbox_spec(wanted, dns_address="10.0.0.1", cluster_domain="cluster.local", host_dns=Dns())
    assert made.ports == [PortBinding(80, "tcp", "127.0.0.1", 8080, 8080), PortBinding(53, "udp", "", 53, 53)]
