"""Manifests, indexes, configs: read alike in OCI's and Docker's types, refused with their field."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.content.digests import digest_of
from wherry.content.oci import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    Platform,
    choose,
    parse_config,
    parse_document,
    parse_platform,
    references,
)
from wherry.errors import Invalid, NotFound, Unsupported

A, B = digest_of(b"a"), digest_of(b"b")


def child(digest: str = A, **more: Any) -> dict[str, Any]:
    return {"mediaType": "application/vnd.x", "digest": digest, "size": 1, **more}


def manifest(**more: Any) -> bytes:
    return msgspec.json.encode({"schemaVersion": 2, "config": child(A), "layers": [child(B)], **more})


def index(*platforms: str, **more: Any) -> bytes:
    rows = [child(digest_of(text.encode()), platform=msgspec.to_builtins(parse_platform(text))) for text in platforms]
    return msgspec.json.encode({"schemaVersion": 2, "manifests": rows, **more})


def test_each_kind_is_known_by_type_header_or_shape() -> None:
    for kind in (OCI_MANIFEST, DOCKER_MANIFEST):
        assert parse_document(manifest(mediaType=kind)).media_type == kind
        assert parse_document(manifest(), kind).media_type == kind
    assert isinstance(parse_document(manifest()), Manifest)
    for kind in (OCI_INDEX, DOCKER_INDEX):
        assert parse_document(index("linux/amd64"), kind).media_type == kind
    assert isinstance(parse_document(index("linux/amd64")), Index)
    assert references(manifest()) == (A, B)
    assert references(b"{}") == references(b"plain") == references(b"") == ()


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        (b"no json", "manifest", "not JSON"),
        (b"[]", "manifest", "Expected `object`"),
        (b'{"schemaVersion":2}', "manifest", "config"),
        (manifest(schemaVersion=3), "schemaVersion", "must be 2"),
        (manifest(config={"digest": A}), "config", "mediaType"),
        (manifest(layers=[child("sha256:12")]), "layers[0].digest", "64 lower-case"),
        (manifest(layers=[child(B, size=-1)]), "layers[0].size", "not negative"),
        (manifest(layers=[child(B, size="1")]), "layers[0].size", "Expected `int`"),
        (manifest(layers="x"), "layers", "Expected `array`"),
        (manifest(mediaType="text/plain"), "mediaType", "text/plain"),
    ],
)
def test_a_wrong_manifest_names_its_field(data: bytes, field: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as refused:
        parse_document(data)
    assert refused.value.causes[0].field == field
    assert references(data) == ()


def test_what_the_header_says_must_be_what_it_is() -> None:
    with pytest.raises(Invalid, match="send the same"):
        parse_document(manifest(mediaType=OCI_MANIFEST), DOCKER_MANIFEST)
    with pytest.raises(Unsupported, match="schema 1"):
        parse_document(b'{"schemaVersion":1}')
    with pytest.raises(Invalid, match="diff_ids"):
        parse_config(b'{"rootfs":{"type":"layers","diff_ids":["x"]}}')


@pytest.mark.parametrize(
    ("offered", "wanted", "found"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", "linux/amd64"),
        (["linux/arm64/v8"], "linux/arm64", "linux/arm64/v8"),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", "linux/arm/v7"),
        (["linux/arm/v6", "linux/arm/v7"], "arm", "linux/arm/v7"),
        (["linux/arm/v6"], "linux/arm/v7", ""),
        (["windows/amd64"], "linux/amd64", ""),
    ],
)
def test_the_platform_is_chosen(offered: list[str], wanted: str, found: str) -> None:
    document = parse_document(index(*offered))
    assert isinstance(document, Index)
    if found:
        assert str(choose(document, parse_platform(wanted)).platform) == found
    else:
        with pytest.raises(NotFound, match=offered[0]):
            choose(document, parse_platform(wanted))
    assert parse_platform("x86_64") == Platform("amd64", "linux")


KEYS = ["schemaVersion", "config", "layers", "manifests", "digest", "size", "mediaType", "platform"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_or_refused(value: Any) -> None:
    data = msgspec.json.encode(value)
    for read in (parse_document, parse_config):
        try:
            read(data)
        except (Invalid, Unsupported):
            continue
