"""Several platforms in one index, and what is said of images beside them."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.builder.yard import Yard

from wherry.builder import sbom
from wherry.builder.wanted import Attest
from wherry.content.oci import Index, Manifest, Platform, parse_document, this_platform
from wherry.content.protocol import Digest
from wherry.engine.types import Image
from wherry.errors import Invalid, NotFound, Unsupported

OWN = this_platform()
OTHER = Platform("s390x", "linux")
"""One that no machine of ours has, and that no test registers."""
ARGS = "ARG TARGETPLATFORM TARGETARCH BUILDPLATFORM\n"


async def document(yard: Yard, digest: str) -> Any:
    return parse_document(await yard.content.read(Digest(digest)))


async def config(yard: Yard, digest: str) -> dict[str, Any]:
    manifest = await document(yard, digest)
    assert isinstance(manifest, Manifest)
    return msgspec.json.decode(await yard.content.read(manifest.config.digest))


async def test_several_platforms_are_one_index(yard: Yard) -> None:
    text = f"FROM scratch\n{ARGS}LABEL t=$TARGETPLATFORM b=$BUILDPLATFORM\nCOPY <<EOF /$TARGETARCH\nx\nEOF\n"
    image = await yard.want(text, platforms=[OWN, OTHER])
    index = await document(yard, image.root)
    assert isinstance(index, Index)
    assert [child.platform for child in index.manifests] == [OWN, OTHER]
    for child, platform in zip(index.manifests, (OWN, OTHER), strict=True):
        made = await config(yard, child.digest)
        assert (made["architecture"], made["config"]["Labels"]) == (
            platform.architecture,
            {"t": str(platform), "b": str(OWN)},
        )
        layer = (await document(yard, child.digest)).layers[0].digest
        assert list(yard.rows(layer)) == [platform.architecture]
    assert {event.platform for event in yard.events if event.kind == "step"} == {str(OWN), str(OTHER)}
    again = await yard.want(text, platforms=[OWN, OTHER])
    assert again.root == image.root


async def test_each_platform_stands_on_its_own_base(yard: Yard) -> None:
    bases: dict[str, Image] = {}
    for platform in (OWN, OTHER):
        made = await yard.want(
            f"FROM scratch\nCOPY <<E /is-{platform.architecture}\nE\n", platforms=[platform], tags=["x:1"]
        )
        bases[platform.architecture] = made
        assert made.config["architecture"] == platform.architecture
    yard.engine.named.clear()
    name = "docker.io/library/base:latest"
    yard.engine.upstream = {name: bases[OWN.architecture], f"{name} {OTHER}": bases["s390x"]}
    text = (
        "FROM --platform=$BUILDPLATFORM base AS tool\nRUN compile\nCOPY <<E /tool\nE\n"
        "FROM base\nCOPY --from=tool /tool /\n"
    )
    image = await yard.want(text, platforms=[OTHER])
    assert image.config["architecture"] == "s390x"
    assert yard.read(image, "is-s390x") == b""
    assert sorted(yard.engine.pulled) == [(name, ""), (name, str(OTHER))]
    assert [spec.platform for spec in yard.engine.ran] == [""]  # the tool ran as this machine
    with pytest.raises(NotFound, match=f"cannot be had for {OTHER}"):
        await yard.want("FROM nowhere\n", platforms=[OTHER])


async def test_a_step_that_cannot_run_here_is_refused_before_any_does(yard: Yard) -> None:
    with pytest.raises(Unsupported, match=r"Dockerfile:4: RUN for linux/s390x on .* without an emulator") as refused:
        await yard.want("FROM scratch AS a\nCOPY Dockerfile /\nFROM a\nRUN two\n", platforms=[OWN, OTHER])
    assert "BUILDPLATFORM" in refused.value.message
    assert not yard.engine.ran
    with pytest.raises(Unsupported, match="linux alone"):
        await yard.want("FROM scratch\n", platforms=[Platform("amd64", "windows")])


async def test_what_is_said_of_an_image_stands_beside_it(yard: Yard, tmp_path: Path) -> None:
    yard.file("status", "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.2\nX: z\n more\n\n"
              "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n")  # fmt: skip
    yard.file("installed", "C:x\nP:musl\nV:1.2-r0\nA:x86_64\nL:MIT\n\nP:busybox\nV:1.36\n")
    yard.file("METADATA", "Metadata-Version: 2.1\nName: Flask_Thing\nVersion: 3.0\n\nName: not-this\n")
    yard.file("os-release", "NAME=x\nID=debian\n")
    text = (
        "FROM scratch AS base\nCOPY status /var/lib/dpkg/status\nCOPY os-release /etc/\nCOPY installed /lib/apk/db/installed\n"
        "FROM base\nARG PASS\nCOPY METADATA /usr/lib/python3/site-packages/flask.dist-info/METADATA\n"
    )
    attest = Attest(sbom=True, provenance="max", builder_id="https://ci.example/1")
    image = await yard.want(text, attest=attest, args={"PASS": "word"}, secrets={"token": b"pssst"})
    index = await document(yard, image.root)
    assert isinstance(index, Index)
    plain, beside = index.manifests
    assert (beside.platform, beside.annotations) == (
        Platform("unknown", "unknown"),
        {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": plain.digest},
    )
    manifest = await document(yard, beside.digest)
    assert isinstance(manifest, Manifest)
    assert manifest.subject is not None
    assert manifest.subject.digest == plain.digest  # so it is among the image's referrers
    assert {layer.media_type for layer in manifest.layers} == {"application/vnd.in-toto+json"}
    statements = [msgspec.json.decode(await yard.content.read(layer.digest)) for layer in manifest.layers]
    for layer, said in zip(manifest.layers, statements, strict=True):
        assert layer.annotations == {"in-toto.io/predicate-type": said["predicateType"]}
        assert {each["digest"]["sha256"] for each in said["subject"]} == {plain.digest.removeprefix("sha256:")}
    bill, origin = (said["predicate"] for said in statements)
    found = {each["externalRefs"][0]["referenceLocator"] for each in bill["packages"][1:]}
    assert found == {
        "pkg:deb/debian/zlib1g@1:1.2?arch=amd64",
        "pkg:apk/debian/musl@1.2-r0?arch=x86_64",
        "pkg:apk/debian/busybox@1.36",
        "pkg:pypi/flask-thing@3.0",
    }
    ids = [each["SPDXID"] for each in bill["packages"]]
    assert len(set(ids)) == len(ids) == len(bill["relationships"])
    assert origin["builder"] == {"id": "https://ci.example/1"}
    assert origin["invocation"]["parameters"]["args"]["build-arg:PASS"] == "word"
    assert origin["invocation"]["parameters"]["secrets"] == [{"id": "token", "optional": True}]
    least = await yard.want(text, attest=Attest(provenance="min", version="v1"), args={"PASS": "word"})
    said = (await document(yard, (await document(yard, least.root)).manifests[1].digest)).layers[0]
    data = await yard.content.read(said.digest)
    assert b"slsa.dev/provenance/v1" in data
    assert b"word" not in data
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"pssst" in path.read_bytes()]
    assert kept == []


async def test_provenance_names_what_went_in(yard: Yard) -> None:
    base = await yard.want("FROM scratch\nCOPY <<E /f\nE\n", tags=["base:1"])
    image = await yard.want("FROM base:1\n", attest=Attest(provenance="min"), args={"SOURCE_DATE_EPOCH": "1"})
    same = await yard.want("FROM base:1\n", attest=Attest(provenance="min"), args={"SOURCE_DATE_EPOCH": "1"})
    assert image.root == same.root
    beside = (await document(yard, image.root)).manifests[1]
    said = msgspec.json.decode(await yard.content.read((await document(yard, beside.digest)).layers[0].digest))
    assert said["predicate"]["materials"] == [
        {
            "uri": f"pkg:docker/base@1?platform={str(OWN).replace('/', '%2F')}",
            "digest": {"sha256": base.digest.removeprefix("sha256:")},
        }
    ]


def test_records_of_packages_are_read_whatever_they_are() -> None:
    assert list(sbom.read({"var/lib/dpkg/status": "\n\n:\n x\nPackage\n", "lib/apk/db/installed": "P\n\n"})) == []
    found = sbom.read(
        {"var/lib/dpkg/status.d/base": "Package: base\nVersion: 1\n", "a/b.egg-info/PKG-INFO": "Name: b\n"}
    )
    assert [(each.kind, each.name) for each in found] == [("deb", "base"), ("pypi", "b")]


async def test_entitlements_are_asked_for(yard: Yard) -> None:
    with pytest.raises(Unsupported, match=r"Dockerfile:2: RUN --security=insecure without"):
        await yard.want("FROM scratch\nRUN --security=insecure a\n")
    await yard.want("FROM scratch\nRUN --security=insecure a\n", allow=frozenset({"security.insecure"}))
    assert yard.engine.ran[-1].privileged
    await yard.want("FROM scratch\nRUN a\n")
    assert not yard.cached
    assert not yard.engine.ran[-1].privileged
    with pytest.raises(Invalid, match=r"entitlement 'all': there are security\.insecure, network\.host"):
        await yard.want("FROM scratch\n", allow=frozenset({"all"}))
    with pytest.raises(Unsupported, match="BUILDKIT_SYNTAX"):
        await yard.want("FROM scratch\n", args={"BUILDKIT_SYNTAX": "example.org/frontend"})
