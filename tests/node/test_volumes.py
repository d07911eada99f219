"""Volumes as files: whole versions, safe paths, clear words for what is missing."""

import os
from pathlib import Path

import pytest

from tests.node.pods import pod
from wherry.errors import Invalid
from wherry.node import volumes
from wherry.node.pods import HostPath, Pod

KEYS = {("ConfigMap", "settings"): {"a": b"1", "b": b"2"}, ("Secret", "keys"): {"token": b"\x00s"}}


async def keys(kind: str, name: str):
    return KEYS.get((kind, name))


async def token(audience: str, seconds: int) -> str:
    return f"token-for-{audience or 'api'}-{seconds}"


SOURCES = volumes.Sources(keys, token, "10.1.0.5", "10.0.0.1", {})


async def files(subject: Pod) -> dict[str, tuple[bytes, int]]:
    return await volumes.render(subject, subject.spec.volumes[0], SOURCES)


async def test_a_projected_volume_holds_all_its_sources() -> None:
    sources = [
        {"serviceAccountToken": {"path": "api", "expirationSeconds": 600}},
        {"configMap": {"name": "settings", "items": [{"key": "a", "path": "conf/a.txt"}]}},
        {"secret": {"name": "keys"}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]
    found = await files(pod(volumes=[{"name": "v", "projected": {"sources": sources, "defaultMode": 0o400}}]))
    assert found == {
        "api": (b"token-for-api-600", 0o400),
        "conf/a.txt": (b"1", 0o400), "token": (b"\x00s", 0o400),
        "name": (b"web", 0o400),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        ({"configMap": {"name": "nope"}}, 'configmap "nope" not found'),
        ({"secret": {"secretName": "nope"}}, 'secret "nope" not found'),
        ({"configMap": {"name": "settings", "items": [{"key": "z", "path": "z"}]}}, "key 'z' not found"),
        ({"configMap": {"name": "settings", "items": [{"key": "a", "path": "../../etc/x"}]}}, "stay inside the volume"),
    ],
)
async def test_what_is_wrong_is_named(volume: dict[str, object], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        await files(pod(volumes=[{"name": "v", **volume}]))


async def test_an_optional_source_may_be_missing() -> None:
    assert await files(pod(volumes=[{"name": "v", "configMap": {"name": "nope", "optional": True}}])) == {}


def test_a_new_version_replaces_the_old_one_whole(tmp_path: Path) -> None:
    place = tmp_path / "v"
    assert volumes.write_files(place, {"a": (b"1", 0o644), "d/b": (b"2", 0o600)}, uid=None, gid=None)
    assert not volumes.write_files(place, {"a": (b"1", 0o644), "d/b": (b"2", 0o600)}, uid=None, gid=None)
    assert (place / "d" / "b").read_bytes() == b"2"
    first = os.readlink(place / "..data")
    assert volumes.write_files(place, {"a": (b"3", 0o644)}, uid=None, gid=None)
    assert (place / "a").read_bytes() == b"3"
    assert sorted(entry.name for entry in place.iterdir()) == sorted(["..data", os.readlink(place / "..data"), "a"])
    assert first != os.readlink(place / "..data")


def test_a_host_path_is_checked_by_its_type(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert volumes.check_host_path(HostPath(path=str(tmp_path / "new"), type="DirectoryOrCreate"))
    with pytest.raises(Invalid, match="is not a directory"):
        volumes.check_host_path(HostPath(path=str(tmp_path / "file"), type="Directory"))


def test_a_sub_path_cannot_leave_its_volume(tmp_path: Path) -> None:
    place = tmp_path / "v"
    place.mkdir()
    (place / "out").symlink_to("/etc")
    definition = {"name": "app", "volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": "out"}]}
    subject = pod(definition, volumes=[{"name": "v", "emptyDir": {}}])
    with pytest.raises(Invalid, match="leads out of the volume"):
        volumes.mounts_of(subject, subject.spec.containers[0], {"v": str(place)}, {})
