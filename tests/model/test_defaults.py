"""Defaults: every `Defaults to` of the descriptions is filled in, or excepted here by name with the reason."""

import copy
import re
from typing import Any

import pytest

from tests.model.samples import SAMPLED, admitted, put, sample
from wherry.model import admit, kinds, schema
from wherry.model.kinds import Kind

_READ_ONLY = "the kind of volume is not ours; absent means false"
_ZERO = "absent means zero"
_EMPTY = "absent means empty"
_RUNTIME = "known only on the node"
_ADMISSION = "admission or the scheduler decides"
_VALUE = "a way to read an absent value"
EXCEPTED: dict[str, str] = {
    "apps.v1.DaemonSetSpec.minReadySeconds": _ZERO,
    "apps.v1.DeploymentSpec.minReadySeconds": _ZERO,
    "apps.v1.ReplicaSetSpec.minReadySeconds": _ZERO,
    "apps.v1.StatefulSetSpec.minReadySeconds": _ZERO,
    "core.v1.ReplicationControllerSpec.minReadySeconds": _ZERO,
    "apps.v1.StatefulSetOrdinals.start": _ZERO,
    "batch.v1.JobSpec.scheduling": _VALUE,
    "core.v1.AzureFilePersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.AzureFileVolumeSource.readOnly": _READ_ONLY,
    "core.v1.CSIPersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.CSIVolumeSource.readOnly": _READ_ONLY,
    "core.v1.CephFSPersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.CephFSVolumeSource.readOnly": _READ_ONLY,
    "core.v1.CinderPersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.CinderVolumeSource.readOnly": _READ_ONLY,
    "core.v1.FCVolumeSource.readOnly": _READ_ONLY,
    "core.v1.FlexPersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.FlexVolumeSource.readOnly": _READ_ONLY,
    "core.v1.GCEPersistentDiskVolumeSource.readOnly": _READ_ONLY,
    "core.v1.GlusterfsPersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.GlusterfsPersistentVolumeSource.endpointsNamespace": _VALUE,
    "core.v1.GlusterfsVolumeSource.readOnly": _READ_ONLY,
    "core.v1.ISCSIPersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.ISCSIVolumeSource.readOnly": _READ_ONLY,
    "core.v1.NFSVolumeSource.readOnly": _READ_ONLY,
    "core.v1.PortworxVolumeSource.readOnly": _READ_ONLY,
    "core.v1.QuobyteVolumeSource.readOnly": _READ_ONLY,
    "core.v1.QuobyteVolumeSource.user": _VALUE,
    "core.v1.RBDPersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.RBDVolumeSource.readOnly": _READ_ONLY,
    "core.v1.ScaleIOPersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.ScaleIOVolumeSource.readOnly": _READ_ONLY,
    "core.v1.StorageOSPersistentVolumeSource.readOnly": _READ_ONLY,
    "core.v1.StorageOSVolumeSource.readOnly": _READ_ONLY,
    "core.v1.ContainerResizePolicy.restartPolicy": "required by upstream's checks, whatever the description says",
    "core.v1.ContainerStatus.ready": _RUNTIME,
    "core.v1.EmptyDirVolumeSource.mode": _VALUE,
    "core.v1.EnvVar.value": _EMPTY,
    "core.v1.HTTPGetAction.host": _RUNTIME,
    "core.v1.HTTPGetAction.protocol": _VALUE,
    "core.v1.TCPSocketAction.host": _RUNTIME,
    "core.v1.PodSecurityContext.runAsUser": _RUNTIME,
    "core.v1.SecurityContext.capabilities": _RUNTIME,
    "core.v1.SecurityContext.privileged": _VALUE,
    "core.v1.SecurityContext.runAsUser": _RUNTIME,
    "core.v1.WindowsSecurityContextOptions.runAsUserName": _RUNTIME,
    "core.v1.PodSpec.preemptionPolicy": _ADMISSION,
    "core.v1.ServiceAccountTokenProjection.audience": _RUNTIME,
    "core.v1.Toleration.operator": _VALUE,
    "core.v1.VolumeMount.mountPropagation": _VALUE,
    "core.v1.VolumeMount.readOnly": _VALUE,
    "core.v1.VolumeMount.recursiveReadOnly": _VALUE,
    "core.v1.VolumeMount.subPath": _EMPTY,
    "core.v1.VolumeMount.subPathExpr": _EMPTY,
    "core.v1.VolumeResourceRequirements.requests": "a claim has no limits that anything reads",
    "networking.v1.IngressTLS.hosts": "the ingress controller decides",
    "apiextensions.v1.CustomResourceDefinitionVersion.deprecated": _VALUE,
    "apiextensions.v1.JSONSchemaProps.x-kubernetes-list-type": _VALUE,
    "apiextensions.v1.JSONSchemaPropsOrBool": _VALUE,
    "meta.v1.DeleteOptions.gracePeriodSeconds": "the object that is deleted decides",
    "meta.v1.OwnerReference.blockOwnerDeletion": _VALUE,
}

_C = "spec.containers.0."
_WEBHOOK = {"name": "a.b.c", "clientConfig": {"service": {"name": "s", "namespace": "n"}}, "rules": [{}]}


def _with(kind: Kind, path: str = "", value: Any = None) -> dict[str, Any]:
    return put(sample(kind), path, value) if path else sample(kind)


def _bare(kind: Kind, **body: Any) -> dict[str, Any]:
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": "x"}, **body}


def _volume(**source: Any) -> dict[str, Any]:
    return _with(kinds.PODS, "spec.volumes", [{"name": "v", **source}])


_P, _V = kinds.PODS, "spec.volumes.0."
HANDLED: list[tuple[str, Kind, dict[str, Any], str, Any]] = [
    (
        "admissionregistration.v1.MatchResources.matchPolicy",
        kinds.VALIDATINGADMISSIONPOLICIES,
        _bare(kinds.VALIDATINGADMISSIONPOLICIES, spec={"matchConstraints": {}}),
        "spec.matchConstraints.matchPolicy",
        "Equivalent",
    ),
    (
        "admissionregistration.v1.MutatingAdmissionPolicySpec.failurePolicy",
        kinds.MUTATINGADMISSIONPOLICIES,
        _bare(kinds.MUTATINGADMISSIONPOLICIES),
        "spec.failurePolicy",
        "Fail",
    ),
    (
        "admissionregistration.v1.ValidatingAdmissionPolicySpec.failurePolicy",
        kinds.VALIDATINGADMISSIONPOLICIES,
        _bare(kinds.VALIDATINGADMISSIONPOLICIES),
        "spec.failurePolicy",
        "Fail",
    ),
    (
        "admissionregistration.v1.MutatingWebhook.failurePolicy",
        kinds.MUTATINGWEBHOOKCONFIGURATIONS,
        _bare(kinds.MUTATINGWEBHOOKCONFIGURATIONS, webhooks=[_WEBHOOK]),
        "webhooks.0.failurePolicy",
        "Fail",
    ),
    (
        "admissionregistration.v1.MutatingWebhook.matchPolicy",
        kinds.MUTATINGWEBHOOKCONFIGURATIONS,
        _bare(kinds.MUTATINGWEBHOOKCONFIGURATIONS, webhooks=[_WEBHOOK]),
        "webhooks.0.matchPolicy",
        "Equivalent",
    ),
    (
        "admissionregistration.v1.MutatingWebhook.reinvocationPolicy",
        kinds.MUTATINGWEBHOOKCONFIGURATIONS,
        _bare(kinds.MUTATINGWEBHOOKCONFIGURATIONS, webhooks=[_WEBHOOK]),
        "webhooks.0.reinvocationPolicy",
        "Never",
    ),
    (
        "admissionregistration.v1.ValidatingWebhook.failurePolicy",
        kinds.VALIDATINGWEBHOOKCONFIGURATIONS,
        _bare(kinds.VALIDATINGWEBHOOKCONFIGURATIONS, webhooks=[_WEBHOOK]),
        "webhooks.0.failurePolicy",
        "Fail",
    ),
    (
        "admissionregistration.v1.ValidatingWebhook.matchPolicy",
        kinds.VALIDATINGWEBHOOKCONFIGURATIONS,
        _bare(kinds.VALIDATINGWEBHOOKCONFIGURATIONS, webhooks=[_WEBHOOK]),
        "webhooks.0.matchPolicy",
        "Equivalent",
    ),
    (
        "apps.v1.DaemonSetSpec.revisionHistoryLimit",
        kinds.DAEMONSETS,
        _with(kinds.DAEMONSETS),
        "spec.revisionHistoryLimit",
        10,
    ),
    (
        "apps.v1.DeploymentSpec.progressDeadlineSeconds",
        kinds.DEPLOYMENTS,
        _with(kinds.DEPLOYMENTS),
        "spec.progressDeadlineSeconds",
        600,
    ),
    ("apps.v1.DeploymentSpec.replicas", kinds.DEPLOYMENTS, _with(kinds.DEPLOYMENTS), "spec.replicas", 1),
    (
        "apps.v1.DeploymentSpec.revisionHistoryLimit",
        kinds.DEPLOYMENTS,
        _with(kinds.DEPLOYMENTS),
        "spec.revisionHistoryLimit",
        10,
    ),
    (
        "apps.v1.RollingUpdateDeployment.maxSurge",
        kinds.DEPLOYMENTS,
        _with(kinds.DEPLOYMENTS),
        "spec.strategy.rollingUpdate.maxSurge",
        "25%",
    ),
    (
        "apps.v1.RollingUpdateDeployment.maxUnavailable",
        kinds.DEPLOYMENTS,
        _with(kinds.DEPLOYMENTS),
        "spec.strategy.rollingUpdate.maxUnavailable",
        "25%",
    ),
    ("apps.v1.ReplicaSetSpec.replicas", kinds.REPLICASETS, _with(kinds.REPLICASETS), "spec.replicas", 1),
    (
        "apps.v1.RollingUpdateStatefulSetStrategy.maxUnavailable",
        kinds.STATEFULSETS,
        _with(kinds.STATEFULSETS),
        "spec.updateStrategy.rollingUpdate.maxUnavailable",
        1,
    ),
    ("apps.v1.StatefulSetSpec.replicas", kinds.STATEFULSETS, _with(kinds.STATEFULSETS), "spec.replicas", 1),
    (
        "autoscaling.v1.HorizontalPodAutoscalerSpec.minReplicas",
        kinds.HORIZONTALPODAUTOSCALERS_V1,
        _bare(kinds.HORIZONTALPODAUTOSCALERS_V1),
        "spec.minReplicas",
        1,
    ),
    (
        "autoscaling.v2.HorizontalPodAutoscalerSpec.minReplicas",
        kinds.HORIZONTALPODAUTOSCALERS,
        _with(kinds.HORIZONTALPODAUTOSCALERS),
        "spec.minReplicas",
        1,
    ),
    (
        "batch.v1.CronJobSpec.failedJobsHistoryLimit",
        kinds.CRONJOBS,
        _with(kinds.CRONJOBS),
        "spec.failedJobsHistoryLimit",
        1,
    ),
    (
        "batch.v1.CronJobSpec.successfulJobsHistoryLimit",
        kinds.CRONJOBS,
        _with(kinds.CRONJOBS),
        "spec.successfulJobsHistoryLimit",
        3,
    ),
    ("batch.v1.CronJobSpec.suspend", kinds.CRONJOBS, _with(kinds.CRONJOBS), "spec.suspend", False),
    ("batch.v1.JobSpec.backoffLimit", kinds.JOBS, _with(kinds.JOBS), "spec.backoffLimit", 6),
    ("batch.v1.JobSpec.suspend", kinds.JOBS, _with(kinds.JOBS), "spec.suspend", False),
    (
        "batch.v1.PodFailurePolicyOnPodConditionsPattern.status",
        kinds.JOBS,
        _with(
            kinds.JOBS, "spec.podFailurePolicy", {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "X"}]}]}
        ),
        "spec.podFailurePolicy.rules.0.onPodConditions.0.status",
        "True",
    ),
    (
        "core.v1.AzureDiskVolumeSource.kind",
        _P,
        _volume(azureDisk={"diskName": "d", "diskURI": "u"}),
        _V + "azureDisk.kind",
        "Shared",
    ),
    (
        "core.v1.AzureDiskVolumeSource.readOnly",
        _P,
        _volume(azureDisk={"diskName": "d", "diskURI": "u"}),
        _V + "azureDisk.readOnly",
        False,
    ),
    (
        "core.v1.ConfigMapVolumeSource.defaultMode",
        _P,
        _volume(configMap={"name": "c"}),
        _V + "configMap.defaultMode",
        420,
    ),
    ("core.v1.DownwardAPIVolumeSource.defaultMode", _P, _volume(downwardAPI={}), _V + "downwardAPI.defaultMode", 420),
    ("core.v1.SecretVolumeSource.defaultMode", _P, _volume(secret={"secretName": "s"}), _V + "secret.defaultMode", 420),
    ("core.v1.HostPathVolumeSource.type", _P, _volume(hostPath={"path": "/x"}), _V + "hostPath.type", ""),
    (
        "core.v1.ISCSIVolumeSource.iscsiInterface",
        _P,
        _volume(iscsi={"targetPortal": "p", "iqn": "q", "lun": 0}),
        _V + "iscsi.iscsiInterface",
        "default",
    ),
    (
        "core.v1.ISCSIPersistentVolumeSource.iscsiInterface",
        kinds.PERSISTENTVOLUMES,
        _with(kinds.PERSISTENTVOLUMES, "spec.iscsi", {}),
        "spec.iscsi.iscsiInterface",
        "default",
    ),
    (
        "core.v1.ImageVolumeSource.pullPolicy",
        _P,
        _volume(image={"reference": "x:latest"}),
        _V + "image.pullPolicy",
        "Always",
    ),
    (
        "core.v1.ServiceAccountTokenProjection.expirationSeconds",
        _P,
        _volume(projected={"sources": [{"serviceAccountToken": {"path": "t"}}]}),
        _V + "projected.sources.0.serviceAccountToken.expirationSeconds",
        3600,
    ),
    ("core.v1.Container.imagePullPolicy", _P, _with(_P), _C + "imagePullPolicy", "IfNotPresent"),
    ("core.v1.Container.terminationMessagePath", _P, _with(_P), _C + "terminationMessagePath", "/dev/termination-log"),
    ("core.v1.Container.terminationMessagePolicy", _P, _with(_P), _C + "terminationMessagePolicy", "File"),
    (
        "core.v1.EphemeralContainer.imagePullPolicy",
        _P,
        _with(_P, "spec.ephemeralContainers", [{"name": "d", "image": "x"}]),
        "spec.ephemeralContainers.0.imagePullPolicy",
        "Always",
    ),
    (
        "core.v1.EphemeralContainer.terminationMessagePath",
        _P,
        _with(_P, "spec.ephemeralContainers", [{"name": "d", "image": "x"}]),
        "spec.ephemeralContainers.0.terminationMessagePath",
        "/dev/termination-log",
    ),
    (
        "core.v1.EphemeralContainer.terminationMessagePolicy",
        _P,
        _with(_P, "spec.ephemeralContainers", [{"name": "d", "image": "x"}]),
        "spec.ephemeralContainers.0.terminationMessagePolicy",
        "File",
    ),
    (
        "core.v1.ContainerPort.protocol",
        _P,
        _with(_P, _C + "ports", [{"containerPort": 80}]),
        _C + "ports.0.protocol",
        "TCP",
    ),
    (
        "core.v1.HTTPGetAction.scheme",
        _P,
        _with(_P, _C + "livenessProbe", {"httpGet": {"port": 80}}),
        _C + "livenessProbe.httpGet.scheme",
        "HTTP",
    ),
    (
        "core.v1.Probe.failureThreshold",
        _P,
        _with(_P, _C + "readinessProbe", {"tcpSocket": {"port": 80}}),
        _C + "readinessProbe.failureThreshold",
        3,
    ),
    (
        "core.v1.Probe.successThreshold",
        _P,
        _with(_P, _C + "readinessProbe", {"tcpSocket": {"port": 80}}),
        _C + "readinessProbe.successThreshold",
        1,
    ),
    (
        "core.v1.Probe.timeoutSeconds",
        _P,
        _with(_P, _C + "startupProbe", {"exec": {"command": ["x"]}}),
        _C + "startupProbe.timeoutSeconds",
        1,
    ),
    (
        "core.v1.ObjectFieldSelector.apiVersion",
        _P,
        _with(_P, _C + "env", [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        _C + "env.0.valueFrom.fieldRef.apiVersion",
        "v1",
    ),
    (
        "core.v1.ResourceFieldSelector.divisor",
        _P,
        _with(_P, _C + "env", [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]),
        _C + "env.0.valueFrom.resourceFieldRef.divisor",
        "0",
    ),
    (
        "core.v1.ResourceRequirements.requests",
        _P,
        _with(_P, _C + "resources", {"limits": {"cpu": "1"}}),
        _C + "resources.requests",
        {"cpu": "1"},
    ),
    ("core.v1.PodSpec.dnsPolicy", _P, _with(_P), "spec.dnsPolicy", "ClusterFirst"),
    ("core.v1.PodSpec.enableServiceLinks", _P, _with(_P), "spec.enableServiceLinks", True),
    ("core.v1.PodSpec.securityContext", _P, _with(_P), "spec.securityContext", {}),
    ("core.v1.PodSpec.terminationGracePeriodSeconds", _P, _with(_P), "spec.terminationGracePeriodSeconds", 30),
    (
        "core.v1.NodeStatus.allocatable",
        kinds.NODES,
        _with(kinds.NODES),
        "status.allocatable",
        {"cpu": "2", "memory": "1Gi"},
    ),
    (
        "core.v1.ReplicationControllerSpec.replicas",
        kinds.REPLICATIONCONTROLLERS,
        _with(kinds.REPLICATIONCONTROLLERS),
        "spec.replicas",
        1,
    ),
    ("core.v1.ServiceSpec.sessionAffinity", kinds.SERVICES, _with(kinds.SERVICES), "spec.sessionAffinity", "None"),
    ("core.v1.ServiceSpec.type", kinds.SERVICES, _with(kinds.SERVICES), "spec.type", "ClusterIP"),
    (
        "flowcontrol.v1.ExemptPriorityLevelConfiguration.lendablePercent",
        kinds.PRIORITYLEVELCONFIGURATIONS,
        _bare(kinds.PRIORITYLEVELCONFIGURATIONS, spec={"type": "Exempt"}),
        "spec.exempt.lendablePercent",
        0,
    ),
    (
        "flowcontrol.v1.LimitedPriorityLevelConfiguration.lendablePercent",
        kinds.PRIORITYLEVELCONFIGURATIONS,
        _bare(kinds.PRIORITYLEVELCONFIGURATIONS, spec={"type": "Limited", "limited": {}}),
        "spec.limited.lendablePercent",
        0,
    ),
    (
        "flowcontrol.v1.LimitedPriorityLevelConfiguration.nominalConcurrencyShares",
        kinds.PRIORITYLEVELCONFIGURATIONS,
        _bare(kinds.PRIORITYLEVELCONFIGURATIONS, spec={"type": "Limited", "limited": {}}),
        "spec.limited.nominalConcurrencyShares",
        30,
    ),
    (
        "networking.v1.NetworkPolicyPort.protocol",
        kinds.NETWORKPOLICIES,
        _with(kinds.NETWORKPOLICIES),
        "spec.ingress.0.ports.0.protocol",
        "TCP",
    ),
    (
        "networking.v1.NetworkPolicySpec.podSelector",
        kinds.NETWORKPOLICIES,
        _with(kinds.NETWORKPOLICIES, "spec.podSelector", ...),
        "spec.podSelector",
        {},
    ),
    (
        "rbac.v1.Subject.apiGroup",
        kinds.ROLEBINDINGS,
        _with(kinds.ROLEBINDINGS),
        "subjects.0.apiGroup",
        "rbac.authorization.k8s.io",
    ),
    (
        "resource.v1.DeviceToleration.operator",
        kinds.RESOURCECLAIMS,
        _bare(
            kinds.RESOURCECLAIMS,
            spec={"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c", "tolerations": [{}]}}]}},
        ),
        "spec.devices.requests.0.exactly.tolerations.0.operator",
        "Equal",
    ),
    (
        "scheduling.v1.PriorityClass.preemptionPolicy",
        kinds.PRIORITYCLASSES,
        _with(kinds.PRIORITYCLASSES),
        "preemptionPolicy",
        "PreemptLowerPriority",
    ),
    (
        "storage.v1.CSIDriverSpec.fsGroupPolicy",
        kinds.CSIDRIVERS,
        _bare(kinds.CSIDRIVERS),
        "spec.fsGroupPolicy",
        "ReadWriteOnceWithFSType",
    ),
    (
        "storage.v1.CSIDriverSpec.requiresRepublish",
        kinds.CSIDRIVERS,
        _bare(kinds.CSIDRIVERS),
        "spec.requiresRepublish",
        False,
    ),
    (
        "storage.v1.StorageClass.reclaimPolicy",
        kinds.STORAGECLASSES,
        _with(kinds.STORAGECLASSES),
        "reclaimPolicy",
        "Delete",
    ),
    (
        "apiextensions.v1.CustomResourceDefinitionNames.listKind",
        kinds.CUSTOMRESOURCEDEFINITIONS,
        _with(kinds.CUSTOMRESOURCEDEFINITIONS),
        "spec.names.listKind",
        "BoatList",
    ),
    (
        "apiextensions.v1.CustomResourceDefinitionNames.singular",
        kinds.CUSTOMRESOURCEDEFINITIONS,
        _with(kinds.CUSTOMRESOURCEDEFINITIONS),
        "spec.names.singular",
        "boat",
    ),
    (
        "apiextensions.v1.ServiceReference.port",
        kinds.CUSTOMRESOURCEDEFINITIONS,
        _with(
            kinds.CUSTOMRESOURCEDEFINITIONS,
            "spec.conversion",
            {"strategy": "Webhook", "webhook": {"clientConfig": {"service": {"name": "s", "namespace": "n"}}}},
        ),
        "spec.conversion.webhook.clientConfig.service.port",
        443,
    ),
]


def described() -> list[str]:
    """Every field whose description says what it defaults to: `core.v1.PodSpec.dnsPolicy`."""
    opened = schema.load()
    found: list[str] = []
    for name in opened.names:
        short = ".".join(name.split(".")[-3:])
        for field, text in opened.descriptions(name).items():
            if re.search("defaults to", text, re.IGNORECASE):
                found.append(f"{short}.{field}".rstrip("."))
    return found


def test_every_default_that_is_described_is_handled_or_excepted() -> None:
    handled = {name for name, *_ in HANDLED}
    assert sorted(described()) == sorted(handled | set(EXCEPTED))
    assert not handled & set(EXCEPTED)


def reach(obj: Any, path: str) -> Any:
    for step in path.split("."):
        obj = obj[int(step)] if isinstance(obj, list) else obj.get(step)
    return obj


@pytest.mark.parametrize(
    ("kind", "obj", "path", "expected"), [case[1:] for case in HANDLED], ids=[case[0] for case in HANDLED]
)
def test_a_default_is_filled_in(kind: Kind, obj: dict[str, Any], path: str, expected: Any) -> None:
    obj = copy.deepcopy(obj)
    assert not admit.prune(kind, obj).wrong
    admit.default(kind, obj)
    assert reach(obj, path) == expected


@pytest.mark.parametrize("kind", SAMPLED, ids=lambda kind: kind.plural)
def test_defaults_are_right_and_twice_is_once(kind: Kind) -> None:
    obj = admitted(kind)
    before = copy.deepcopy(obj)
    assert admit.check(kind, obj) == []
    admit.default(kind, obj)
    assert obj == before
    found = admit.prune(kind, obj)
    assert not found.unknown
    assert not found.wrong
    assert admit.check(kind, obj, before) == []


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("localhost:5000/nginx", "Always"),
        ("localhost:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:" + "0" * 64, "IfNotPresent"),
    ],
)
def test_the_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    pod = put(sample(kinds.PODS), "spec.containers.0.image", image)
    admit.default(kinds.PODS, pod)
    assert pod["spec"]["containers"][0]["imagePullPolicy"] == policy


def test_what_is_said_is_kept() -> None:
    deployment = put(sample(kinds.DEPLOYMENTS), "spec.replicas", 0)
    put(deployment, "spec.strategy", {"type": "Recreate"})
    admit.default(kinds.DEPLOYMENTS, deployment)
    assert deployment["spec"]["replicas"] == 0
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_a_service_gets_ports_and_policies() -> None:
    service = admitted(kinds.SERVICES)
    assert service["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert service["spec"]["internalTrafficPolicy"] == "Cluster"
    assert "externalTrafficPolicy" not in service["spec"]
    balanced = put(sample(kinds.SERVICES), "spec.type", "LoadBalancer")
    put(balanced, "spec.sessionAffinity", "ClientIP")
    admit.default(kinds.SERVICES, balanced)
    assert balanced["spec"]["externalTrafficPolicy"] == "Cluster"
    assert balanced["spec"]["allocateLoadBalancerNodePorts"] is True
    assert balanced["spec"]["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}


def test_a_secrets_plain_strings_become_data() -> None:
    secret = put(sample(kinds.SECRETS), "stringData", {"b": "grün"})
    admit.default(kinds.SECRETS, secret)
    assert secret["data"] == {"a": "Yg==", "b": "Z3LDvG4="}
    assert "stringData" not in secret
    assert secret["type"] == "Opaque"


def test_others() -> None:
    assert admitted(kinds.NAMESPACES)["metadata"]["labels"] == {"kubernetes.io/metadata.name": "web"}
    controller = admitted(kinds.REPLICATIONCONTROLLERS)
    assert controller["spec"]["selector"] == controller["metadata"]["labels"] == {"app": "web"}
    limits = admitted(kinds.LIMITRANGES)["spec"]["limits"][0]
    assert (limits["default"], limits["defaultRequest"]) == ({"cpu": "2"}, {"cpu": "2"})
    claims = admitted(kinds.STATEFULSETS)["spec"]["volumeClaimTemplates"]
    assert (claims[0]["kind"], claims[0]["status"]["phase"]) == ("PersistentVolumeClaim", "Pending")
    pod = put(sample(kinds.PODS), "spec.hostNetwork", True)
    put(pod, "spec.containers.0.ports", [{"containerPort": 80}])
    put(pod, "spec.volumes", [{"name": "v"}])
    put(pod, "spec.serviceAccountName", "web")
    admit.default(kinds.PODS, pod)
    assert pod["spec"]["containers"][0]["ports"][0]["hostPort"] == 80
    assert pod["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert pod["spec"]["serviceAccount"] == "web"
    indexed = put(sample(kinds.JOBS), "spec.backoffLimitPerIndex", 1)
    admit.default(kinds.JOBS, indexed)
    assert indexed["spec"]["backoffLimit"] == 2**31 - 1
    autoscaler = put(sample(kinds.HORIZONTALPODAUTOSCALERS), "spec.behavior", {})
    admit.default(kinds.HORIZONTALPODAUTOSCALERS, autoscaler)
    assert autoscaler["spec"]["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
