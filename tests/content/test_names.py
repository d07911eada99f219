"""Image names mean what Docker says they mean."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.content.digests import digest_of, parse_digest
from wherry.content.names import cluster_repository, parse_name, parse_repository
from wherry.errors import Invalid

SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "whole", "familiar"),
    [
        ("web", "docker.io/library/web:latest", "web:latest"),
        ("web:1", "docker.io/library/web:1", "web:1"),
        ("docker.io/web:1", "docker.io/library/web:1", "web:1"),
        ("index.docker.io/web", "docker.io/library/web:latest", "web:latest"),
        ("library/web", "docker.io/library/web:latest", "web:latest"),
        ("me/web:V1.0_x", "docker.io/me/web:V1.0_x", "me/web:V1.0_x"),
        ("ghcr.io/a/b/c:2", "ghcr.io/a/b/c:2", "ghcr.io/a/b/c:2"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("LOCAL/x:1", "LOCAL/x:1", "LOCAL/x:1"),
        ("[::1]:5000/x/y:1", "[::1]:5000/x/y:1", "[::1]:5000/x/y:1"),
        (f"web@{SHA}", f"docker.io/library/web@{SHA}", f"web@{SHA}"),
        (f"web:1@{SHA}", f"docker.io/library/web:1@{SHA}", f"web:1@{SHA}"),
        ("a__b/c-d.e", "docker.io/a__b/c-d.e:latest", "a__b/c-d.e:latest"),
    ],
)
def test_a_name_is_filled_in_as_docker_does(text: str, whole: str, familiar: str) -> None:
    name = parse_name(text)
    assert str(name) == whole
    assert name.familiar == familiar
    assert parse_name(whole) == name
    assert parse_name(familiar) == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing"),
        ("Web", "lower-case"),
        ("web:", "no tag"),
        ("web:-x", "no tag"),
        ("a//b", "empty"),
        ("/a", "empty"),
        ("web:1:2", "no tag"),
        ("web@sha256:12", "64 lower-case hex digits"),
        ("web@md5:" + "0" * 32, "sha256:HEX"),
        ("0" * 64, "image id"),
        ("ghcr.io/" + "a" * 300, "255"),
        ("-a.b/c", "host name"),
        ("a..b", "joined by"),
        ("web ", "joined by"),
        ("we\nb", "joined by"),
        ("web:1\n", "no tag"),
    ],
)
def test_a_wrong_name_is_refused_with_its_field(text: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as refused:
        parse_name(text, "spec.containers[0].image")
    assert refused.value.causes[0].field == "spec.containers[0].image"


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_name_that_reads_back_or_is_refused(text: str) -> None:
    try:
        name = parse_name(text)
    except Invalid:
        return
    assert parse_name(str(name)) == name
    assert parse_name(name.familiar) == name


def test_the_cluster_keeps_foreign_names_whole() -> None:
    assert cluster_repository(parse_name("web:1")) == "docker.io/library/web"
    assert cluster_repository(parse_name("localhost:5000/web:1"), "localhost:5000") == "web"
    for good in ("docker.io/library/web", "localhost:5000/x", "a/b/c"):
        assert parse_repository(good) == good
    for bad in ("", "a//b", "A/b/C", "../x", "a" * 256, "a/../b"):
        with pytest.raises(Invalid):
            parse_repository(bad)


def test_digests_are_checked() -> None:
    assert parse_digest(digest_of(b"x")) == digest_of(b"x")
    assert parse_digest(digest_of(b"x", "sha512")).startswith("sha512:")
    for bad in ("sha256:" + "A" * 64, "sha256:", "a" * 64, "sha1:" + "a" * 40, "sha256:../" + "a" * 61):
        with pytest.raises(Invalid):
            parse_digest(bad)
