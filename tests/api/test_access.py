"""Who asks and what they may: certificates, tokens, sockets, roles, and what nodes are kept from."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.api.pki import Authority
from wherry.api.rbac import Ask, Rule, allows, missing
from wherry.clock import RealClock, VirtualClock
from wherry.errors import Damaged
from wherry.model.users import User, controller, node
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.http import Peer, Request
from wherry.wire.router import Route

from .conftest import Answer, Running, Start

Json = dict[str, Any]
NS = "/api/v1/namespaces/default"
RBAC = "/apis/rbac.authorization.k8s.io/v1"

# --- rules, as plain values ---------------------------------------------------------------------------------------------

_WORDS = st.lists(st.sampled_from(["a", "b", "c", "*"]), min_size=1, max_size=3).map(tuple)
_RULES = st.builds(
    Rule,
    verbs=_WORDS,
    api_groups=_WORDS,
    resources=_WORDS,
    resource_names=st.lists(st.sampled_from(["x", "y"]), max_size=2).map(tuple),
)
_ASKS = st.builds(
    Ask,
    verb=st.sampled_from("abc"),
    group=st.sampled_from("abc"),
    resource=st.sampled_from("abc"),
    name=st.sampled_from(["", "x", "y"]),
)


@given(held=st.lists(_RULES, max_size=4), wanted=_RULES, ask=_ASKS)
def test_what_is_covered_allows_nothing_more(held: list[Rule], wanted: Rule, ask: Ask) -> None:
    if not missing(held, [wanted]) and allows(wanted, ask):
        assert any(allows(rule, ask) for rule in held)


@given(rule=_RULES)
def test_a_rule_covers_itself(rule: Rule) -> None:
    assert not missing([rule], [rule])


@pytest.mark.parametrize(
    ("rule", "ask", "allowed"),
    [
        (Rule(("get",), ("",), ("pods",)), Ask("get", "", "pods", "x", "y"), True),
        (Rule(("get",), ("",), ("pods",)), Ask("get", "apps", "pods"), False),
        (Rule(("get",), ("",), ("pods",)), Ask("get", "", "pods/log", "x", "y"), False),
        (Rule(("get",), ("",), ("pods/log",)), Ask("get", "", "pods/log", "x", "y"), True),
        (Rule(("get",), ("*",), ("*/scale",)), Ask("get", "apps", "deployments/scale"), True),
        (Rule(("get",), ("",), ("pods",), ("a",)), Ask("get", "", "pods", "x", "b"), False),
        (Rule(("create",), ("",), ("pods",), ("a",)), Ask("create", "", "pods", "x", ""), False),
        (Rule(("get",), non_resource_urls=("/healthz/*",)), Ask("get", path="/healthz/ping"), True),
        (Rule(("get",), non_resource_urls=("/healthz",)), Ask("get", path="/healthz/ping"), False),
        (Rule(("*",), ("*",), ("*",)), Ask("get", path="/metrics"), False),
    ],
)
def test_rules(rule: Rule, ask: Ask, allowed: bool) -> None:
    assert allows(rule, ask) is allowed


# --- roles --------------------------------------------------------------------------------------------------------------


async def _bind(api: Running, role: str, user: User, namespace: str = "default") -> None:
    await api.make(
        f"{RBAC}/namespaces/{namespace}/rolebindings",
        {
            "metadata": {"generateName": "b-"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": user.name, "apiGroup": "rbac.authorization.k8s.io"}],
        },
    )


async def test_nothing_is_allowed_until_it_is_granted(api: Running) -> None:
    anna = User("anna", ("system:authenticated",))
    answer = await api.ask("GET", f"{NS}/pods", user=anna)
    assert answer.status == 403
    assert answer.json["message"] == (
        'pods is forbidden: User "anna" cannot list resource "pods" in API group "" in the namespace "default"'
    )
    await _bind(api, "view", anna)
    assert (await api.ask("GET", f"{NS}/pods", user=anna)).status == 200
    assert (await api.ask("GET", "/api/v1/pods", user=anna)).status == 403
    assert (await api.ask("GET", f"{NS}/secrets", user=anna)).status == 403
    assert (await api.ask("DELETE", f"{NS}/pods/x", user=anna)).status == 403
    await _bind(api, "edit", anna)
    assert (await api.ask("GET", f"{NS}/secrets", user=anna)).status == 200
    assert (await api.ask("DELETE", f"{NS}/pods/x", user=anna)).status == 404
    assert (await api.ask("GET", "/api", user=anna)).status == 200
    assert (await api.ask("GET", "/metrics", user=anna)).status == 403


async def test_nobody_grants_more_than_they_have(api: Running) -> None:
    ben = User("ben", ("system:authenticated",))
    await _bind(api, "admin", ben)
    path = f"{RBAC}/namespaces/default/roles"
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    assert (await api.ask("POST", path, {"metadata": {"name": "ok"}, "rules": [rule]}, user=ben)).status == 201
    grab = {**rule, "resources": ["nodes"]}
    answer = await api.ask("POST", path, {"metadata": {"name": "no"}, "rules": [grab]}, user=ben)
    assert answer.status == 403
    assert '{APIGroups:[""], Resources:["nodes"], Verbs:["get"]}' in answer.json["message"]
    bind = {
        "metadata": {"name": "no"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "ben", "apiGroup": "rbac.authorization.k8s.io"}],
    }
    path = f"{RBAC}/namespaces/default/rolebindings"
    assert (await api.ask("POST", path, bind, user=ben)).status == 403
    bind["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}
    assert (await api.ask("POST", path, bind, user=ben)).status == 201


async def test_controllers_have_their_roles(api: Running) -> None:
    for name, method, path, status in (
        ("deployment-controller", "GET", "/apis/apps/v1/replicasets", 200),
        ("deployment-controller", "DELETE", f"{NS}/secrets/x", 403),
        ("replicaset-controller", "DELETE", f"{NS}/pods/x", 404),
        ("endpointslice-controller", "GET", "/api/v1/services", 200),
        ("generic-garbage-collector", "DELETE", f"{NS}/secrets/x", 404),
        ("node-controller", "GET", "/api/v1/nodes", 200),
        ("nobody-knows", "GET", "/api/v1/nodes", 403),
    ):
        answer = await api.ask(method, path, user=controller(name))
        assert answer.status == status, (name, path, answer.data)


def _pod(name: str, node_name: str, **spec: Any) -> Json:
    return {
        "metadata": {"name": name},
        "spec": {"nodeName": node_name, "containers": [{"name": "c", "image": "i"}], **spec},
    }


async def test_a_node_sees_what_its_pods_need_and_no_more(api: Running) -> None:
    a, b = node("a"), node("b")
    for name in ("mine", "other"):
        await api.make(f"{NS}/secrets", {"metadata": {"name": name}})
    await api.make(f"{NS}/serviceaccounts", {"metadata": {"name": "default"}})
    volume = {"name": "v", "secret": {"secretName": "mine"}}
    pod = await api.make(f"{NS}/pods", _pod("p", "a", volumes=[volume]))
    await api.make(f"{NS}/pods", _pod("q", "b"))

    async def status(user: User, method: str, path: str, body: Any = None) -> int:
        headers = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
        return (await api.ask(method, path, body, user=user, headers=headers)).status

    assert await status(a, "POST", "/api/v1/nodes", {"metadata": {"name": "a"}}) == 201
    assert await status(a, "POST", "/api/v1/nodes", {"metadata": {"name": "b"}}) == 403
    assert await status(b, "PATCH", "/api/v1/nodes/a/status", {"status": {"phase": "x"}}) == 403
    assert await status(a, "PATCH", "/api/v1/nodes/a", {"metadata": {"labels": {"x": "y"}}}) == 200
    assert (
        await status(a, "PATCH", "/api/v1/nodes/a", {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}) == 403
    )
    assert await status(a, "GET", f"{NS}/secrets/mine") == 200
    assert await status(a, "GET", f"{NS}/secrets/other") == 403
    assert await status(b, "GET", f"{NS}/secrets/mine") == 403
    assert await status(a, "GET", f"{NS}/secrets") == 403
    assert await status(a, "GET", f"{NS}/secrets?fieldSelector=metadata.name=mine") == 200
    assert await status(a, "GET", "/api/v1/pods") == 403
    assert await status(a, "GET", "/api/v1/pods?fieldSelector=spec.nodeName=b") == 403
    assert await status(a, "GET", "/api/v1/pods?fieldSelector=spec.nodeName=a") == 200
    assert await status(a, "GET", f"{NS}/pods/q") == 403
    assert await status(a, "PATCH", f"{NS}/pods/q/status", {"status": {"phase": "Failed"}}) == 403
    assert await status(a, "PATCH", f"{NS}/pods/p/status", {"status": {"phase": "Running"}}) == 200
    assert await status(a, "POST", f"{NS}/pods", _pod("r", "a")) == 403
    assert await status(a, "GET", "/api/v1/services") == 200
    assert await status(a, "GET", "/apis/discovery.k8s.io/v1/endpointslices") == 200
    lease = {"metadata": {"name": "a"}, "spec": {"holderIdentity": "a"}}
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    assert await status(a, "POST", leases, lease) == 201
    assert await status(b, "PATCH", f"{leases}/a", {"spec": {"holderIdentity": "b"}}) == 403
    token = {"spec": {"boundObjectRef": {"kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"]}}}
    assert await status(a, "POST", f"{NS}/serviceaccounts/default/token", token) == 201
    assert await status(a, "POST", f"{NS}/serviceaccounts/default/token", {"spec": {}}) == 403
    other = {"spec": {"boundObjectRef": {"kind": "Pod", "name": "q"}}}
    assert await status(a, "POST", f"{NS}/serviceaccounts/default/token", other) == 403
    assert await status(a, "DELETE", f"{NS}/pods/p") == 200


# --- identities ---------------------------------------------------------------------------------------------------------


async def _handle(api: Running, path: str, headers: dict[str, str] | None = None, peer: Peer | None = None) -> Answer:
    request = Request.local("GET", path, (), headers, peer=peer or Peer("tcp"))
    response = await api.api.handle(request)
    assert isinstance(response.body, bytes)
    return Answer(response.status, response.headers.lower(), response.body)


async def test_strangers_may_ask_how_we_are_and_nothing_else(api: Running) -> None:
    for path in ("/livez", "/readyz", "/readyz/ping", "/healthz", "/version"):
        assert (await _handle(api, path)).status == 200, path
    for path in ("/api", f"{NS}/pods", "/openapi/v2", "/nothing", "/versions"):
        answer = await _handle(api, path)
        assert (answer.status, answer.json["reason"]) == (401, "Unauthorized"), path
    assert (await _handle(api, "/api", {"Authorization": "Bearer nonsense"})).status == 401
    assert (await _handle(api, "/api", {"Authorization": "Basic eDp5"})).status == 401
    assert (await _handle(api, "/api", peer=Peer("unix", uid=4242))).status == 401


async def test_root_on_the_socket_is_a_master_and_acts_as_others(api: Running) -> None:
    client = HttpClient(Endpoint.parse(f"unix:{api.socket}"))
    try:
        review = "/apis/authentication.k8s.io/v1/selfsubjectreviews"

        async def whoami(**headers: str) -> tuple[str, list[str]]:
            sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
            answer = await client.request("POST", review, (), sent, b"{}")
            data = json.loads(await answer.read())
            assert answer.status == 201, data
            return data["status"]["userInfo"]["username"], data["status"]["userInfo"]["groups"]

        _, groups = await whoami()
        assert "system:masters" in groups
        assert await whoami(Impersonate_User="system:node:a", Impersonate_Group="system:nodes") == (
            "system:node:a",
            ["system:nodes", "system:authenticated"],
        )
        _, groups = await whoami(Impersonate_User="system:serviceaccount:x:y")
        assert "system:serviceaccounts:x" in groups
    finally:
        await client.close()


async def test_others_may_not_act_as_others(api: Running) -> None:
    peer = Peer("tls", common_name="anna", organizations=())
    answer = await _handle(api, "/api", {"Impersonate-User": "ben"}, peer)
    assert answer.status == 403
    assert "cannot impersonate" in answer.json["message"]
    assert (await _handle(api, "/api", {"Impersonate-Group": "system:masters"}, peer)).status == 403
    assert (await _handle(api, "/api", {}, peer)).status == 200


async def test_a_token_lives_as_long_as_its_objects_and_its_time(start: Start) -> None:
    clock = VirtualClock()
    api = await start(clock=clock)
    account = await api.make(f"{NS}/serviceaccounts", {"metadata": {"name": "robot"}})
    pod = await api.make(f"{NS}/pods", _pod("p", "", serviceAccountName="robot"))
    plain, bound, foreign = [
        (await api.ask("POST", f"{NS}/serviceaccounts/robot/token", {"spec": spec})).json["status"]["token"]
        for spec in (
            {"expirationSeconds": 600},
            {"expirationSeconds": 7200, "boundObjectRef": {"kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"]}},
            {"audiences": ["vault"]},
        )
    ]

    async def works(token: str) -> bool:
        return (await _handle(api, "/api", {"Authorization": f"Bearer {token}"})).status == 200

    assert [await works(token) for token in (plain, bound, foreign)] == [True, True, False]
    review = {"spec": {"token": foreign, "audiences": ["vault"]}}
    status = (await api.ask("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)).json["status"]
    assert status["authenticated"] is True
    assert status["user"]["username"] == "system:serviceaccount:default:robot"
    assert status["user"]["uid"] == account["metadata"]["uid"]
    assert status["audiences"] == ["vault"]
    jwks = (await api.ask("GET", "/openid/v1/jwks")).json
    assert jwks["keys"][0]["alg"] == "ES256"

    await clock.advance(601)
    assert [await works(token) for token in (plain, bound)] == [False, True]
    await api.ask("DELETE", f"{NS}/pods/p")
    assert not await works(bound)
    tampered = bound[:-6] + "AAAAAA"
    assert not await works(tampered)


async def test_a_token_dies_with_its_account(api: Running) -> None:
    await api.make(f"{NS}/serviceaccounts", {"metadata": {"name": "robot"}})
    token = (await api.ask("POST", f"{NS}/serviceaccounts/robot/token", {"spec": {}})).json["status"]["token"]
    assert (await _handle(api, "/api", {"Authorization": f"Bearer {token}"})).status == 200
    await api.ask("DELETE", f"{NS}/serviceaccounts/robot")
    await api.make(f"{NS}/serviceaccounts", {"metadata": {"name": "robot"}})  # another one of the same name
    assert (await _handle(api, "/api", {"Authorization": f"Bearer {token}"})).status == 401


async def test_routes_of_others_know_who_asks(start: Start) -> None:
    from wherry.api.server import caller
    from wherry.wire.http import Response

    async def history(request: Request) -> Response:
        return Response.json({"who": caller().name, "what": request.params["what"]})

    api = await start(extra=[Route("GET", "/wherry/history/{what:path}", history)])
    assert (await api.ask("GET", "/wherry/history/a/b")).json == {"who": "admin", "what": "a/b"}
    anna = User("anna", ("system:authenticated",))
    answer = await api.ask("GET", "/wherry/history/a", user=anna)
    assert answer.status == 403
    assert answer.json["message"] == 'forbidden: User "anna" cannot get path "/wherry/history/a"'
    last = api.seen[-1]
    assert (last.user, last.verb, last.path, last.code) == ("anna", "get", "/wherry/history/a", 403)


# --- certificates -------------------------------------------------------------------------------------------------------


def test_an_authority_stays_itself(tmp_path: Path) -> None:
    one = Authority.load_or_create(tmp_path, RealClock())
    two = Authority.load_or_create(tmp_path, RealClock())
    assert one.ca_pem == two.ca_pem
    assert one.key_id() == two.key_id()
    assert {(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir() if path.suffix == ".key"} == {
        ("ca.key", 0o600),
        ("sa.key", 0o600),
    }
    (tmp_path / "ca.key").unlink()
    with pytest.raises(Damaged, match=r"ca\.key is missing"):
        Authority.load_or_create(tmp_path, RealClock())


def test_certificates_say_who_and_where(tmp_path: Path) -> None:
    from cryptography import x509

    authority = Authority.load_or_create(tmp_path, RealClock())
    client = x509.load_pem_x509_certificate(authority.issue_client("anna", ["a", "b"]).certificate)
    assert client.subject.rfc4514_string() == "CN=anna,O=b,O=a"
    server = x509.load_pem_x509_certificate(authority.issue_server("s", ["127.0.0.1", "localhost"]).certificate)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["127.0.0.1", "localhost"]
    authority.client_context(authority.issue_client("anna"))
    assert not list(tmp_path.glob("client-*"))
