"""What is wrong is answered in the format's own error, with field and message; never 500, never a traceback."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.walks.conftest import Real

from wherry.daemon.instance import Instance
from wherry.testing import Cluster
from wherry.wire.blocking import request

NOT_OURS = ("Traceback", "Internal Server Error", "InternalError", 'File "')


def pod(**spec: Any) -> dict[str, Any]:
    body = {"containers": [{"name": "a", "image": "web:1"}], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "wrong"}, "spec": body}


def container(**more: Any) -> dict[str, Any]:
    return pod(containers=[{"name": "a", "image": "web:1", **more}])


def deployment(**spec: Any) -> dict[str, Any]:
    labels = {"app": "wrong"}
    template = {"metadata": {"labels": labels}, "spec": pod()["spec"]}
    body = {"selector": {"matchLabels": labels}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "wrong"}, "spec": body}


def service(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wrong"}, "spec": spec}


MANIFESTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no container": (pod(containers=[]), ("spec.containers", "Required")),
    "two of one name": (pod(containers=[{"name": "a", "image": "x"}] * 2), ("spec.containers[1].name", "Duplicate")),
    "no image": (pod(containers=[{"name": "a"}]), ("spec.containers[0].image", "Required")),
    "an unknown field": (container(imagee="x"), ("unknown field", "spec.containers[0].imagee")),
    "a wrong type": (deployment(replicas="three"), ("replicas",)),
    "a negative count": (deployment(replicas=-1), ("spec.replicas", "-1")),
    "a selector that misses": (
        deployment(selector={"matchLabels": {"app": "other"}}),
        ("spec.template.metadata.labels", "selector"),
    ),
    "an odd quantity": (container(resources={"limits": {"memory": "12 cows"}}), ("quantities must match",)),
    "request over limit": (
        container(resources={"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
        ("spec.containers[0].resources.requests", "limit"),
    ),
    "a port out of range": (container(ports=[{"containerPort": 70000}]), ("containerPort", "65535")),
    "no such volume": (
        container(volumeMounts=[{"name": "none", "mountPath": "/x"}]),
        ("spec.containers[0].volumeMounts[0].name", "none"),
    ),
    "a policy that is none": (pod(restartPolicy="Sometimes"), ("spec.restartPolicy", "Sometimes", "OnFailure")),
    "a name that is none": (
        {**pod(), "metadata": {"name": "Not_A_Name"}},
        ("metadata.name", "Not_A_Name", "lowercase"),
    ),
    "a service without ports": (service(selector={"a": "b"}), ("spec.ports", "Required")),
    "an address of nowhere": (service(clusterIP="1.2.3.4.5", ports=[{"port": 80}]), ("spec.clusterIP", "1.2.3.4.5")),
    "no such kind": ({"apiVersion": "v1", "kind": "Pot", "metadata": {"name": "x"}}, ("Pot",)),
    "no such version": ({**deployment(), "apiVersion": "apps/v9"}, ("apps/v9",)),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_wrong_manifest(simulated: Cluster, what: str) -> None:
    body, named = MANIFESTS[what]
    said = simulated.kubectl("create", "-f", "-", input=json.dumps(body), check=False)
    assert "created" not in said
    for part in named:
        assert part in said
    assert not any(part in said for part in NOT_OURS)


def ask(socket: str | Path, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    """One request; the status and the decoded answer."""
    answer = request(
        str(socket), method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}, body=body
    )
    try:
        text = answer.read()
    finally:
        answer.close()
    assert not any(part in text.decode(errors="replace") for part in NOT_OURS), text
    return answer.status, json.loads(text) if text else None


JSON = "application/json"
MAPS = "/api/v1/namespaces/default/configmaps"
REQUESTS: list[tuple[str, str, bytes, str, int, str, str]] = [
    ("POST", MAPS, b"{", JSON, 400, "BadRequest", "JSON"),
    ("POST", MAPS, b"[]", JSON, 400, "BadRequest", ""),
    ("POST", MAPS, b"", JSON, 400, "BadRequest", ""),
    ("POST", MAPS, b"\xff\xfe", "application/vnd.kubernetes.protobuf", 400, "BadRequest", ""),
    ("POST", MAPS, b"a: b", "text/plain", 415, "UnsupportedMediaType", "text/plain"),
    ("POST", MAPS, b'{"metadata": {}}', JSON, 422, "Invalid", "name"),
    ("GET", MAPS + "/none", b"", JSON, 404, "NotFound", '"none"'),
    ("GET", "/apis/none/v1/things", b"", JSON, 404, "NotFound", ""),
    ("GET", MAPS + "?labelSelector=a%20in%20(", b"", JSON, 400, "BadRequest", "requirement"),
    ("GET", MAPS + "?limit=many", b"", JSON, 400, "BadRequest", "limit"),
    ("GET", MAPS + "?continue=nonsense", b"", JSON, 400, "BadRequest", "continue"),
    ("GET", MAPS + "?watch=1&resourceVersion=x", b"", JSON, 400, "BadRequest", "resource"),
    ("PATCH", MAPS + "/none", b"{}", JSON, 415, "UnsupportedMediaType", "patch"),
    ("PUT", MAPS + "/a", b'{"metadata": {"name": "b"}}', JSON, 400, "BadRequest", "b"),
    ("PROPFIND", MAPS, b"", JSON, 405, "MethodNotAllowed", ""),
    ("DELETE", MAPS + "/none", b"{nonsense", JSON, 400, "BadRequest", ""),
]


@pytest.mark.parametrize("wrong", REQUESTS, ids=lambda each: f"{each[0]} {each[1][-40:]} {each[2][:12]!r}")
def test_a_wrong_request_to_the_api(simulated: Cluster, wrong: tuple[str, str, bytes, str, int, str, str]) -> None:
    method, path, body, content_type, code, reason, named = wrong
    status, answer = ask(Instance.at(simulated.root).api_socket, method, path, body, content_type=content_type)
    assert (answer["kind"], answer["status"], answer["code"]) == ("Status", "Failure", status)
    assert (status, answer["reason"]) == (code, reason), answer["message"]
    assert answer["message"]
    assert named in answer["message"]


DOCKER: list[tuple[str, str, bytes, int, str]] = [
    ("GET", "/containers/none/json", b"", 404, "No such container: none"),
    ("POST", "/containers/create", b"{", 400, ""),
    ("POST", "/containers/create", b'{"Image": "UPPER/Case"}', 400, "UPPER/Case"),
    ("POST", "/containers/create", b'{"Image": "a:b:c"}', 400, "a:b:c"),
    ("POST", "/containers/create", b'{"Image": ""}', 400, ""),
    ("POST", "/containers/create", b'{"Image": "127.0.0.1:1/absent:9"}', 404, "absent"),
    ("POST", "/images/create?fromImage=127.0.0.1:1/Bad%20Name", b"", 400, "Bad Name"),
    ("GET", "/images/absent:9/json", b"", 404, "absent"),
    ("POST", "/swarm/init", b"{}", 501, "swarm"),
    ("GET", "/nowhere", b"", 404, ""),
]


@pytest.mark.root
@pytest.mark.parametrize("wrong", DOCKER, ids=lambda each: f"{each[0]} {each[1]} {each[2][:40]!r}")
def test_a_wrong_request_to_docker(real: Real, wrong: tuple[str, str, bytes, int, str]) -> None:
    method, path, body, code, named = wrong
    socket = real.cluster.docker_host.removeprefix("unix://")
    status, answer = ask(socket, method, f"/v1.43{path}", body, content_type=JSON)
    assert answer.keys() == {"message"}
    assert named.lower() in answer["message"].lower()
    assert answer["message"]
    assert status == code, answer


ZEROS = "sha256:" + "0" * 64
REGISTRY: list[tuple[str, str, bytes, int, str]] = [
    ("GET", "/v2/UPPER/manifests/1", b"", 400, "NAME_INVALID"),
    ("GET", "/v2/web/manifests/absent", b"", 404, "MANIFEST_UNKNOWN"),
    ("GET", "/v2/none/tags/list", b"", 404, "NAME_UNKNOWN"),
    ("GET", f"/v2/web/blobs/{ZEROS}", b"", 404, "BLOB_UNKNOWN"),
    ("GET", "/v2/web/blobs/sha256:short", b"", 400, "DIGEST_INVALID"),
    ("PUT", "/v2/web/manifests/bad", b"{", 400, "MANIFEST_INVALID"),
    ("PUT", f"/v2/web/blobs/uploads/none?digest={ZEROS}", b"x", 404, "BLOB_UPLOAD_UNKNOWN"),
    ("POST", f"/v2/web/blobs/uploads/?digest={ZEROS}", b"x", 400, "DIGEST_INVALID"),
]


@pytest.mark.root
@pytest.mark.parametrize("wrong", REGISTRY, ids=lambda each: f"{each[0]} {each[1][:40]}")
def test_a_wrong_request_to_the_registry(real: Real, wrong: tuple[str, str, bytes, int, str]) -> None:
    method, path, body, code, named = wrong
    import urllib.error
    import urllib.request

    token = (Path(real.cluster.root) / "server" / "registry-token").read_text().strip()
    signed = "Basic " + base64.b64encode(f"wherry:{token}".encode()).decode()
    kind = "application/vnd.oci.image.manifest.v1+json" if "manifests" in path else "application/octet-stream"
    url = f"http://{real.cluster.environment['WHERRY_REGISTRY']}{path}"
    call = urllib.request.Request(url, body or None, {"Authorization": signed, "Content-Type": kind}, method=method)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(call, timeout=10)
    error = json.loads(caught.value.read())["errors"][0]
    assert (caught.value.code, error["code"]) == (code, named), error
    assert error["message"]


@pytest.mark.root
def test_without_the_token_the_registry_asks_for_it(real: Real) -> None:
    import urllib.error
    import urllib.request

    call = urllib.request.Request(
        f"http://{real.cluster.environment['WHERRY_REGISTRY']}/v2/web/blobs/uploads/", b"", method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(call, timeout=10)
    assert caught.value.code == 401
    assert "www-authenticate" in {name.lower() for name in caught.value.headers}
    assert json.loads(caught.value.read())["errors"][0]["code"] == "UNAUTHORIZED"


DOCKERFILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "an unknown instruction": ("FROM scratch\nCOPPY a /a\n", ("COPPY", "2")),
    "no FROM": ("COPY a /a\n", ("FROM",)),
    "nothing": ("# only a comment\n", ("FROM",)),
    "an absent file": ("FROM scratch\nCOPY absent /a\n", ("absent", "2")),
    "COPY of one word": ("FROM scratch\nCOPY a\n", ("COPY", "2")),
    "a way out of the context": ("FROM scratch\nCOPY ../../etc/passwd /a\n", ("etc/passwd",)),
    "an image that cannot be had": ("FROM 127.0.0.1:1/none:1\n", ("127.0.0.1:1/none:1",)),
    "a bad image name": ("FROM UPPER:1:2\n", ("UPPER:1:2",)),
    "an absent stage": ("FROM scratch\nCOPY --from=none /a /a\n", ("none",)),
    "a command that fails": ("FROM BOX\nRUN echo before && false\n", ("RUN", "1")),
    "a bad ENV": ("FROM scratch\nENV =x\n", ("ENV",)),
    "no Dockerfile": ("", ("Dockerfile",)),
}


@pytest.mark.root
@pytest.mark.parametrize("what", DOCKERFILES)
def test_a_wrong_dockerfile(real: Real, tmp_path: Path, what: str) -> None:
    text, named = DOCKERFILES[what]
    if text:
        (tmp_path / "Dockerfile").write_text(text.replace("BOX", real.box))
    said = real.cluster.wherry("build", "-t", "wrong:1", str(tmp_path), check=False)
    assert "Successfully" not in said
    for part in named:
        assert part in said
    assert not any(part in said for part in NOT_OURS)
    assert "wrong" not in real.cluster.wherry("images").split()
