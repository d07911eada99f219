"""The nouns: headers, targets, requests made in process, routes, heads, envelopes."""

import contextlib
import json
import urllib.parse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry import errors
from wherry.errors import (
    BadRequest,
    Broken,
    Cause,
    Invalid,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    TooManyRequests,
    WherryError,
)
from wherry.wire.envelopes import (
    STATUS,
    docker_error,
    error_from,
    message_of,
    oci_error,
    oci_errors,
    status_for,
    status_object,
    status_of,
)
from wherry.wire.heads import date_line, fields
from wherry.wire.http import Headers, Request, Response, split_target
from wherry.wire.router import Route, Router


# headers ------------------------------------------------------------------------------------------------------------------
def test_headers_keep_order_and_repeats_and_ignore_case() -> None:
    headers = Headers([("Accept", "a, b;q=0.1"), ("X", "1"), ("accept", "C")])
    assert headers.get("ACCEPT") == "a, b;q=0.1"
    assert headers.get("none") is None
    assert headers.get("none", "d") == "d"
    assert headers.all("accept") == ["a, b;q=0.1", "C"]
    assert headers.tokens("accept") == ["a", "b", "c"]
    assert "x" in headers
    assert len(headers) == 3
    headers.set("ACCEPT", "z")
    assert headers.items() == [("X", "1"), ("ACCEPT", "z")]
    headers.remove("x")
    assert headers.lower() == {"accept": "z"}
    assert Headers({"A": "b"}) == Headers([("A", "b")]) == Headers(Headers({"A": "b"}))


def test_headers_do_not_show_secrets() -> None:
    assert "hunter2" not in repr(Headers({"Authorization": "hunter2"}))


def test_received_headers_are_decoded_on_demand() -> None:
    headers = Headers.received([(b"X-A", b"caf\xc3\xa9"), (b"x-a", b"2")])
    assert headers.all("X-A") == ["cafÃ©", "2"]
    assert list(headers) == [("X-A", "cafÃ©"), ("x-a", "2")]


def test_a_field_with_a_line_break_is_not_written() -> None:
    assert fields([("A", "b"), ("C", "")]) == "A: b\r\nC: \r\n"
    for name, value in (("A", "b\r\nc: d"), ("A", "b\nc"), ("A", "b\rc"), ("A\r\nB", "c"), ("A", "b\0")):
        with pytest.raises(ValueError, match="line break"):
            fields([(name, value)])


def test_the_date_is_written_as_http_does() -> None:
    assert date_line(784_111_777.9) == "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"


# targets ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/a%20b/%C3%A9?x=%31", "/a b/é", "x=%31"),
        ("http://host:1/a?b", "/a", "b"),
        ("http://host", "/", ""),
        ("*", "*", ""),
        ("/a?b?c", "/a", "b?c"),
        ("//evil/path", "//evil/path", ""),
        ("/a/../b", "/a/../b", ""),
    ],
)
def test_targets(target: str, path: str, query: str) -> None:
    assert split_target(target) == (path, query)


@pytest.mark.parametrize("target", ["", "a", "/%ff", "/%00", "ftp://h/", "?a"])
def test_targets_that_cannot_be_read(target: str) -> None:
    with pytest.raises(BadRequest):
        split_target(target)


@given(path=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=50))
def test_a_local_request_has_the_target_that_a_client_would_send(path: str) -> None:
    request = Request.local("GET", "/" + path, [("a", path)])
    decoded, raw_query = split_target(request.target)
    assert decoded == "/" + path
    assert urllib.parse.parse_qsl(raw_query, keep_blank_values=True) == [("a", path)]


async def test_a_local_request() -> None:
    request = Request.local("POST", "/p", [("a", "1"), ("a", "2"), ("b", "")], {"X": "y"}, b"body")
    assert request.peer.kind == "local"
    assert (request.first("a"), request.first("b"), request.first("c")) == ("1", "", None)
    assert request.all("a") == ["1", "2"]
    assert await request.body() == b"body"
    assert [piece async for piece in request.stream()] == [b"body"]
    assert request.content_length == 4
    with pytest.raises(TooLarge):
        await request.body(limit=3)


@pytest.mark.parametrize("raw", ["a=%ff", "&".join("a" for _ in range(2000))])
def test_a_query_that_cannot_be_read(raw: str) -> None:
    from wherry.wire.http import LOCAL_PEER

    request = Request("GET", "/", None, Headers(), LOCAL_PEER, raw_query=raw)
    with pytest.raises(BadRequest, match="query"):
        request.first("a")


def test_json_answers() -> None:
    assert Response.json({"a": None}).body == b'{"a":null}'
    assert Response.json(b"[1]").body == b"[1]"
    assert Response.json({}, 201, {"X": "y"}).headers.items() == [("X", "y"), ("Content-Type", "application/json")]


# routes -------------------------------------------------------------------------------------------------------------------
async def nothing(request: Request) -> Response:
    return Response()


async def other(request: Request) -> Response:
    return Response()


def test_the_first_route_that_matches_wins() -> None:
    router = Router(
        [
            Route("GET", "/containers/json", nothing),
            Route("GET", "/containers/{id}/json", nothing),
            Route("GET", "/{version}/containers/{id}/json", other),
            Route("GET", "/images/{name:path}/json", other),
            Route("DELETE", "/images/{name:path}", nothing),
            Route("GET", "/{rest:path}", nothing),
        ]
    )
    assert router.match("GET", "/containers/json") == (nothing, {})
    assert router.match("GET", "/containers/a/json") == (nothing, {"id": "a"})
    assert router.match("GET", "/v1.43/containers/a/json") == (other, {"version": "v1.43", "id": "a"})
    assert router.match("GET", "/images/a/b/c/json") == (other, {"name": "a/b/c"})
    assert router.match("DELETE", "/images/a/json") == (nothing, {"name": "a/json"})
    assert router.match("HEAD", "/images/x/json") == (other, {"name": "x"})
    assert router.match("GET", "/a/b/c/d/e/f") == (nothing, {"rest": "a/b/c/d/e/f"})
    with pytest.raises(MethodNotAllowed, match="it takes DELETE, GET"):
        router.match("POST", "/images/a")
    with pytest.raises(NotFound):
        router.match("GET", "/")
    with pytest.raises(NotFound):
        Router([]).match("GET", "/a")


@given(st.text(max_size=30), st.sampled_from(("GET", "POST")))
def test_any_path_has_an_answer_and_nothing_is_remembered_of_it(path: str, method: str) -> None:
    router = Router([Route("GET", "/a/{b}", nothing), Route("GET", "/c/{d:path}/e", nothing)])
    with contextlib.suppress(NotFound, MethodNotAllowed):
        router.match(method, "/" + path)
    assert len(router._candidates) <= 6  # pyright: ignore[reportPrivateUsage]


# envelopes ----------------------------------------------------------------------------------------------------------------
def subclasses(kind: type[WherryError]) -> list[type[WherryError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]


def test_every_error_of_ours_has_a_status_and_a_reason() -> None:
    ours = [kind for kind in subclasses(WherryError) if kind.__module__ == errors.__name__]
    assert len(ours) >= 19
    assert set(STATUS) == set(ours)
    for kind in ours:
        status, reason = status_of(kind("x"))
        assert 400 <= status < 600
        assert reason[0].isupper()


def test_errors_of_others_are_told_apart_but_not_told() -> None:
    class Finer(Invalid):
        """A subclass takes the status of its parent."""

    assert status_of(Finer("x")) == (422, "Invalid")
    assert status_of(KeyError("secret")) == (500, "InternalError")
    assert "secret" not in message_of(KeyError("secret"))


def test_kubernetes_status() -> None:
    assert status_object(404, "NotFound", 'pods "a" not found', {"name": "a", "kind": "pods"}) == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'pods "a" not found',
        "reason": "NotFound",
        "details": {"name": "a", "kind": "pods"},
        "code": 404,
    }
    error = Invalid("no", causes=[Cause("spec.replicas", "FieldValueInvalid", "must not be negative")])
    assert status_for(error, group="apps", kind="Deployment", name="web")["details"] == {
        "name": "web",
        "group": "apps",
        "kind": "Deployment",
        "causes": [{"reason": "FieldValueInvalid", "message": "must not be negative", "field": "spec.replicas"}],
    }
    assert status_for(TooManyRequests("later", retry_after_s=3))["details"] == {"retryAfterSeconds": 3}
    assert "details" not in status_for(NotFound("gone"))


def test_docker_and_oci() -> None:
    assert docker_error("no") == {"message": "no"}
    assert oci_error("BLOB_UNKNOWN", "no", {"digest": "d"}) == {
        "errors": [{"code": "BLOB_UNKNOWN", "message": "no", "detail": {"digest": "d"}}]
    }
    assert oci_errors([("A", "b", None), ("C", "d", [])])["errors"] == [
        {"code": "A", "message": "b"},
        {"code": "C", "message": "d", "detail": []},
    ]


@pytest.mark.parametrize("kind", [kind for kind in STATUS if kind is not WherryError])
def test_an_error_comes_back_as_what_it_was(kind: type[WherryError]) -> None:
    status, _ = status_of(kind("x"))
    back = error_from(status, json.dumps(status_for(kind("words"))).encode(), "GET /x")
    assert status_of(back) == status_of(kind("x"))
    assert back.message == "GET /x: words"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b'{"message":"No such container: x"}', "about: No such container: x"),
        (418, b"short and stout", "about: short and stout"),
        (502, b"", "about: HTTP status 502"),
        (400, b'{"message":5}', 'about: {"message":5}'),
        (400, b"\xff" * 1000, "about: "),
    ],
)
def test_foreign_errors(status: int, body: bytes, expected: str) -> None:
    error: Any = error_from(status, body, "about")
    assert error.message.startswith(expected)
    assert len(error.message) < 300
    assert isinstance(error, Broken) or status < 500
