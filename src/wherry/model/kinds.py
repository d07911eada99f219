"""Every kind that the API serves by itself, in one table: the stable ones of Kubernetes 1.37.

A `Kind` is one resource of one group-version: what discovery tells of it, where it is kept, and which definition of
the schema describes it. Custom resources make their own `Kind` from the same class. Source: the Kubernetes API
reference, 1.37.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_READ_WRITE = ("get", "patch", "update")
_CONNECT = ("create", "delete", "get", "patch", "update")

_KEEP = 100  # revisions of one object that the history files, where a kind says nothing else


@dataclass(frozen=True, slots=True)
class Subresource:
    """A part of an object with a path of its own (`pods/log`). `api_version` and `kind` are those of its body."""

    name: str
    kind: str
    api_version: str
    verbs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource in one group-version.

    `definition` names its schema ("" for a custom resource); `columns` the id of its Table (by default its plural);
    `history_budget` how many revisions of one object the history files (0: none); `generation` whether
    metadata.generation counts changes of the spec; `stored` is False for what is answered and never kept (reviews);
    `stored_as` is the api_version at rest where that is another one (see `model/convert.py`).
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[Subresource, ...] = ()
    definition: str = ""
    columns: str = ""
    history_budget: int = _KEEP
    generation: bool = False
    stored: bool = True
    stored_as: str = ""
    api_version: str = field(init=False, default="")
    """`apps/v1`; `v1` in the core group."""
    root: str = field(init=False, default="")
    """What every key of this resource starts with: `/apps/deployments/`."""

    def __post_init__(self) -> None:
        api_version = f"{self.group}/{self.version}" if self.group else self.version
        object.__setattr__(self, "api_version", api_version)
        at_rest = self.stored_as or api_version
        group = at_rest.partition("/")[0] if "/" in at_rest else "core"
        object.__setattr__(self, "root", f"/{group}/{self.plural}/")
        if not self.singular:
            object.__setattr__(self, "singular", self.kind.lower())
        if not self.columns:
            object.__setattr__(self, "columns", self.plural)

    def __hash__(self) -> int:
        return hash((self.group, self.version, self.plural))

    @property
    def list_kind(self) -> str:
        """The kind of a list of these."""
        return f"{self.kind}List"

    @property
    def qualified(self) -> str:
        """The resource with its group, as messages name it: `deployments.apps`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def storage(self) -> "Kind":
        """The kind whose version is at rest: itself but for resources that several group-versions share."""
        if not self.stored_as:
            return self
        group, _, version = self.stored_as.rpartition("/")
        return _BY_RESOURCE[(group, version, self.plural)]

    def subresource(self, name: str) -> Subresource | None:
        """Find a part by name (`status`)."""
        return next((part for part in self.subresources if part.name == name), None)

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of the collection, of one object, or of a part of it."""
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        where = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return (
            f"{base}{where}/{self.plural}" + (f"/{name}" if name else "") + (f"/{subresource}" if subresource else "")
        )

    def key(self, namespace: str, name: str) -> str:
        """The store's key of one object: `/apps/deployments/NAMESPACE/NAME`, or `/core/nodes/NAME`."""
        return f"{self.root}{namespace}/{name}" if self.namespaced else self.root + name

    def prefix(self, namespace: str = "") -> str:
        """What the keys of all objects, or of those in a namespace, start with; ends in `/`."""
        return f"{self.root}{namespace}/" if self.namespaced and namespace else self.root


class _In(NamedTuple):
    """A group-version of the table below, and where the schema has its definitions."""

    group: str
    version: str
    package: str

    def kind(
        self,
        kind: str,
        plural: str,
        short: tuple[str, ...] = (),
        *,
        cluster: bool = False,
        categories: tuple[str, ...] = (),
        verbs: tuple[str, ...] = ALL_VERBS,
        parts: tuple[Subresource, ...] = (),
        scale: bool = False,
        status: bool = False,
        generation: bool = False,
        stored: bool = True,
        stored_as: str = "",
        budget: int = _KEEP,
    ) -> Kind:
        api_version = f"{self.group}/{self.version}" if self.group else self.version
        if scale:
            parts = (*parts, Subresource("scale", "Scale", "autoscaling/v1", _READ_WRITE))
        if status:
            parts = (*parts, Subresource("status", kind, api_version, _READ_WRITE))
        return Kind(
            self.group,
            self.version,
            kind,
            plural,
            namespaced=not cluster,
            short_names=short,
            categories=categories,
            verbs=verbs,
            subresources=parts,
            definition=f"{self.package}.{kind}",
            history_budget=budget,
            generation=generation,
            stored=stored,
            stored_as=stored_as,
        )

    def review(self, kind: str, plural: str, *, cluster: bool = True) -> Kind:
        """A question: answered, and not kept."""
        return self.kind(kind, plural, cluster=cluster, verbs=_CREATE, stored=False)

    def body(self, kind: str, plural: str) -> Kind:
        """What only a sub-resource or the options of a request take."""
        return self.kind(kind, plural, verbs=(), stored=False)


_CREATE = ("create",)
_ATTACH = ("create", "get")
_NO_COLLECTION = ("create", "delete", "get", "list", "patch", "update", "watch")
_ALL = ("all",)
_EXT = ("api-extensions",)

_api = "io.k8s.api."
_core = _In("", "v1", _api + "core.v1")
BINDINGS = _core.kind("Binding", "bindings", verbs=_CREATE, stored=False)
COMPONENTSTATUSES = _core.kind(
    "ComponentStatus", "componentstatuses", ("cs",), cluster=True, verbs=("get", "list"), stored=False
)
CONFIGMAPS = _core.kind("ConfigMap", "configmaps", ("cm",))
ENDPOINTS = _core.kind("Endpoints", "endpoints", ("ep",))
EVENTS = _core.kind("Event", "events", ("ev",), budget=0)
LIMITRANGES = _core.kind("LimitRange", "limitranges", ("limits",))
_finalize = Subresource("finalize", "Namespace", "v1", ("update",))
NAMESPACES = _core.kind(
    "Namespace", "namespaces", ("ns",), cluster=True, verbs=_NO_COLLECTION, parts=(_finalize,), status=True
)
_node_proxy = Subresource("proxy", "NodeProxyOptions", "v1", _CONNECT)
NODES = _core.kind("Node", "nodes", ("no",), cluster=True, parts=(_node_proxy,), status=True, budget=50)
PERSISTENTVOLUMECLAIMS = _core.kind("PersistentVolumeClaim", "persistentvolumeclaims", ("pvc",), status=True)
PERSISTENTVOLUMES = _core.kind("PersistentVolume", "persistentvolumes", ("pv",), cluster=True, status=True)
_pod_parts = (
    Subresource("attach", "PodAttachOptions", "v1", _ATTACH),
    Subresource("binding", "Binding", "v1", _CREATE),
    Subresource("ephemeralcontainers", "Pod", "v1", _READ_WRITE),
    Subresource("eviction", "Eviction", "policy/v1", _CREATE),
    Subresource("exec", "PodExecOptions", "v1", _ATTACH),
    Subresource("log", "Pod", "v1", ("get",)),
    Subresource("portforward", "PodPortForwardOptions", "v1", _ATTACH),
    Subresource("proxy", "PodProxyOptions", "v1", _CONNECT),
    Subresource("resize", "Pod", "v1", _READ_WRITE),
)
PODS = _core.kind("Pod", "pods", ("po",), categories=_ALL, parts=_pod_parts, status=True, generation=True, budget=50)
PODTEMPLATES = _core.kind("PodTemplate", "podtemplates", generation=True)
REPLICATIONCONTROLLERS = _core.kind(
    "ReplicationController",
    "replicationcontrollers",
    ("rc",),
    categories=_ALL,
    scale=True,
    status=True,
    generation=True,
)
RESOURCEQUOTAS = _core.kind("ResourceQuota", "resourcequotas", ("quota",), status=True)
SECRETS = _core.kind("Secret", "secrets")
_token = Subresource("token", "TokenRequest", "authentication.k8s.io/v1", _CREATE)
SERVICEACCOUNTS = _core.kind("ServiceAccount", "serviceaccounts", ("sa",), parts=(_token,))
_service_proxy = Subresource("proxy", "ServiceProxyOptions", "v1", _CONNECT)
SERVICES = _core.kind("Service", "services", ("svc",), categories=_ALL, parts=(_service_proxy,), status=True)

_apps = _In("apps", "v1", _api + "apps.v1")
CONTROLLERREVISIONS = _apps.kind("ControllerRevision", "controllerrevisions")
DAEMONSETS = _apps.kind("DaemonSet", "daemonsets", ("ds",), categories=_ALL, status=True, generation=True)
DEPLOYMENTS = _apps.kind(
    "Deployment", "deployments", ("deploy",), categories=_ALL, scale=True, status=True, generation=True
)
REPLICASETS = _apps.kind(
    "ReplicaSet", "replicasets", ("rs",), categories=_ALL, scale=True, status=True, generation=True
)
STATEFULSETS = _apps.kind(
    "StatefulSet", "statefulsets", ("sts",), categories=_ALL, scale=True, status=True, generation=True
)

_events = _In("events.k8s.io", "v1", _api + "events.v1")
EVENTS_V1 = _events.kind("Event", "events", ("ev",), stored_as="v1", budget=0)

_authentication = _In("authentication.k8s.io", "v1", _api + "authentication.v1")
SELFSUBJECTREVIEWS = _authentication.review("SelfSubjectReview", "selfsubjectreviews")
TOKENREVIEWS = _authentication.review("TokenReview", "tokenreviews")

_authorization = _In("authorization.k8s.io", "v1", _api + "authorization.v1")
LOCALSUBJECTACCESSREVIEWS = _authorization.review(
    "LocalSubjectAccessReview", "localsubjectaccessreviews", cluster=False
)
SELFSUBJECTACCESSREVIEWS = _authorization.review("SelfSubjectAccessReview", "selfsubjectaccessreviews")
SELFSUBJECTRULESREVIEWS = _authorization.review("SelfSubjectRulesReview", "selfsubjectrulesreviews")
SUBJECTACCESSREVIEWS = _authorization.review("SubjectAccessReview", "subjectaccessreviews")

_autoscaling = _In("autoscaling", "v1", _api + "autoscaling.v1")
_autoscaling_v2 = _In("autoscaling", "v2", _api + "autoscaling.v2")
HORIZONTALPODAUTOSCALERS = _autoscaling_v2.kind(
    "HorizontalPodAutoscaler", "horizontalpodautoscalers", ("hpa",), categories=_ALL, status=True
)
HORIZONTALPODAUTOSCALERS_V1 = _autoscaling.kind(
    "HorizontalPodAutoscaler",
    "horizontalpodautoscalers",
    ("hpa",),
    categories=_ALL,
    status=True,
    stored_as="autoscaling/v2",
)

_batch = _In("batch", "v1", _api + "batch.v1")
CRONJOBS = _batch.kind("CronJob", "cronjobs", ("cj",), categories=_ALL, status=True, generation=True)
JOBS = _batch.kind("Job", "jobs", categories=_ALL, status=True, generation=True)

_certificates = _In("certificates.k8s.io", "v1", _api + "certificates.v1")
_approval = Subresource("approval", "CertificateSigningRequest", "certificates.k8s.io/v1", _READ_WRITE)
CERTIFICATESIGNINGREQUESTS = _certificates.kind(
    "CertificateSigningRequest", "certificatesigningrequests", ("csr",), cluster=True, parts=(_approval,), status=True
)
CLUSTERTRUSTBUNDLES = _certificates.kind("ClusterTrustBundle", "clustertrustbundles", cluster=True)
PODCERTIFICATEREQUESTS = _certificates.kind("PodCertificateRequest", "podcertificaterequests", status=True)

_networking = _In("networking.k8s.io", "v1", _api + "networking.v1")
INGRESSCLASSES = _networking.kind("IngressClass", "ingressclasses", cluster=True, generation=True)
INGRESSES = _networking.kind("Ingress", "ingresses", ("ing",), status=True, generation=True)
IPADDRESSES = _networking.kind("IPAddress", "ipaddresses", ("ip",), cluster=True)
NETWORKPOLICIES = _networking.kind("NetworkPolicy", "networkpolicies", ("netpol",), generation=True)
SERVICECIDRS = _networking.kind("ServiceCIDR", "servicecidrs", cluster=True, status=True)

_policy = _In("policy", "v1", _api + "policy.v1")
PODDISRUPTIONBUDGETS = _policy.kind(
    "PodDisruptionBudget", "poddisruptionbudgets", ("pdb",), status=True, generation=True
)

_rbac = _In("rbac.authorization.k8s.io", "v1", _api + "rbac.v1")
CLUSTERROLEBINDINGS = _rbac.kind("ClusterRoleBinding", "clusterrolebindings", cluster=True)
CLUSTERROLES = _rbac.kind("ClusterRole", "clusterroles", cluster=True)
ROLEBINDINGS = _rbac.kind("RoleBinding", "rolebindings")
ROLES = _rbac.kind("Role", "roles")

_storage = _In("storage.k8s.io", "v1", _api + "storage.v1")
CSIDRIVERS = _storage.kind("CSIDriver", "csidrivers", cluster=True)
CSINODES = _storage.kind("CSINode", "csinodes", cluster=True, status=True)
CSISTORAGECAPACITIES = _storage.kind("CSIStorageCapacity", "csistoragecapacities")
STORAGECLASSES = _storage.kind("StorageClass", "storageclasses", ("sc",), cluster=True)
VOLUMEATTACHMENTS = _storage.kind("VolumeAttachment", "volumeattachments", cluster=True, status=True)
VOLUMEATTRIBUTESCLASSES = _storage.kind("VolumeAttributesClass", "volumeattributesclasses", ("vac",), cluster=True)

_apiextensions = _In("apiextensions.k8s.io", "v1", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1")
CUSTOMRESOURCEDEFINITIONS = _apiextensions.kind(
    "CustomResourceDefinition",
    "customresourcedefinitions",
    ("crd", "crds"),
    cluster=True,
    categories=_EXT,
    status=True,
    generation=True,
)
_apiregistration = _In("apiregistration.k8s.io", "v1", "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1")
APISERVICES = _apiregistration.kind("APIService", "apiservices", cluster=True, categories=_EXT, status=True)

_admission = _In("admissionregistration.k8s.io", "v1", _api + "admissionregistration.v1")
MUTATINGADMISSIONPOLICIES = _admission.kind(
    "MutatingAdmissionPolicy", "mutatingadmissionpolicies", cluster=True, categories=_EXT, generation=True
)
MUTATINGADMISSIONPOLICYBINDINGS = _admission.kind(
    "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", cluster=True, categories=_EXT, generation=True
)
MUTATINGWEBHOOKCONFIGURATIONS = _admission.kind(
    "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", cluster=True, categories=_EXT, generation=True
)
VALIDATINGADMISSIONPOLICIES = _admission.kind(
    "ValidatingAdmissionPolicy",
    "validatingadmissionpolicies",
    cluster=True,
    categories=_EXT,
    status=True,
    generation=True,
)
VALIDATINGADMISSIONPOLICYBINDINGS = _admission.kind(
    "ValidatingAdmissionPolicyBinding",
    "validatingadmissionpolicybindings",
    cluster=True,
    categories=_EXT,
    generation=True,
)
VALIDATINGWEBHOOKCONFIGURATIONS = _admission.kind(
    "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", cluster=True, categories=_EXT, generation=True
)

_scheduling = _In("scheduling.k8s.io", "v1", _api + "scheduling.v1")
PRIORITYCLASSES = _scheduling.kind("PriorityClass", "priorityclasses", ("pc",), cluster=True, generation=True)

_coordination = _In("coordination.k8s.io", "v1", _api + "coordination.v1")
LEASES = _coordination.kind("Lease", "leases", budget=0)

_node = _In("node.k8s.io", "v1", _api + "node.v1")
RUNTIMECLASSES = _node.kind("RuntimeClass", "runtimeclasses", cluster=True)

_discovery = _In("discovery.k8s.io", "v1", _api + "discovery.v1")
ENDPOINTSLICES = _discovery.kind("EndpointSlice", "endpointslices", generation=True, budget=50)

_flowcontrol = _In("flowcontrol.apiserver.k8s.io", "v1", _api + "flowcontrol.v1")
FLOWSCHEMAS = _flowcontrol.kind("FlowSchema", "flowschemas", cluster=True, status=True, generation=True)
PRIORITYLEVELCONFIGURATIONS = _flowcontrol.kind(
    "PriorityLevelConfiguration", "prioritylevelconfigurations", cluster=True, status=True, generation=True
)

_resource = _In("resource.k8s.io", "v1", _api + "resource.v1")
DEVICECLASSES = _resource.kind("DeviceClass", "deviceclasses", cluster=True, generation=True)
DEVICETAINTRULES = _resource.kind("DeviceTaintRule", "devicetaintrules", cluster=True, status=True, generation=True)
RESOURCECLAIMS = _resource.kind("ResourceClaim", "resourceclaims", status=True)
RESOURCECLAIMTEMPLATES = _resource.kind("ResourceClaimTemplate", "resourceclaimtemplates")
RESOURCESLICES = _resource.kind("ResourceSlice", "resourceslices", cluster=True, generation=True)

_storagemigration = _In("storagemigration.k8s.io", "v1", _api + "storagemigration.v1")
STORAGEVERSIONMIGRATIONS = _storagemigration.kind(
    "StorageVersionMigration", "storageversionmigrations", cluster=True, status=True
)

EVICTIONS = _policy.body("Eviction", "evictions")
SCALES = _autoscaling.body("Scale", "scales")
TOKENREQUESTS = _authentication.body("TokenRequest", "tokenrequests")
DELETEOPTIONS = _In("", "v1", "io.k8s.apimachinery.pkg.apis.meta.v1").body("DeleteOptions", "deleteoptions")

GROUPS: tuple[str, ...] = (
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "resource.k8s.io",
    "storagemigration.k8s.io",
)
"""The built-in groups in the order of their priority in discovery; "" is core."""

BODIES: tuple[Kind, ...] = (EVICTIONS, SCALES, TOKENREQUESTS, DELETEOPTIONS)
"""Kinds that only sub-resources and options take; `by_kind` finds them, discovery does not list them."""


def _order(kind: Kind) -> tuple[int, int, str]:
    return (GROUPS.index(kind.group), -int(kind.version[1:]), kind.plural)


def _table(values: Iterable[object]) -> tuple[Kind, ...]:
    return tuple(sorted((value for value in values if isinstance(value, Kind) and value.verbs), key=_order))


KINDS: tuple[Kind, ...] = _table(tuple(globals().values()))
"""Every built-in resource: groups by priority, versions newest first, resources by name."""

_BY_RESOURCE: Mapping[tuple[str, str, str], Kind] = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
_BY_KIND: Mapping[tuple[str, str], Kind] = {(kind.api_version, kind.kind): kind for kind in (*KINDS, *BODIES)}


def by_resource(group: str, version: str, plural: str) -> Kind | None:
    """Find a built-in resource as a URL names it; None when there is none."""
    return _BY_RESOURCE.get((group, version, plural))


def by_kind(api_version: str, kind: str) -> Kind | None:
    """Find a built-in kind as an object names itself (`apps/v1`, `Deployment`); None when there is none."""
    return _BY_KIND.get((api_version, kind))


def group_versions() -> tuple[str, ...]:
    """The built-in group-versions (`v1`, `apps/v1`, ...) by priority."""
    return tuple(dict.fromkeys(kind.api_version for kind in KINDS))
