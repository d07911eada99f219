"""The schema file: the same bytes every time, quick to open, whole."""

import time
from pathlib import Path

import pytest

from wherry.errors import Broken
from wherry.model import build, schema


def test_it_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    build.build(tmp_path / "one")
    build.build(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    schema.load()
    assert (tmp_path / "one").read_bytes() == schema.PATH.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_it_opens_in_milliseconds() -> None:
    schema.load()
    best_s = 1.0
    for _ in range(5):
        start = time.perf_counter()
        schema.Schema(schema.PATH).get("io.k8s.api.core.v1.Pod")
        best_s = min(best_s, time.perf_counter() - start)
    assert best_s < 0.015


def test_nothing_that_is_referred_to_is_missing() -> None:
    opened = schema.load()
    for name in opened.names:
        for field in opened.get(name).fields:
            shape: schema.Shape | None = field.shape
            while shape is not None:
                assert not shape.ref or opened.has(shape.ref), f"{name}.{field.name}"
                shape = shape.item


def test_what_it_tells_of_a_field() -> None:
    spec = schema.load().get("io.k8s.api.core.v1.PodSpec")
    containers = spec.field("containers")
    assert containers is not None
    assert (containers.required, containers.strategy, containers.merge_key) == (True, "merge", "name")
    assert (containers.list_type, containers.map_keys) == ("map", ("name",))
    assert spec.field("nothing") is None
    assert schema.load().descriptions("io.k8s.api.core.v1.PodSpec")["containers"].startswith("List of containers")


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schema.bin"
    path.write_bytes(schema.MAGIC + b"somebody else's\n")
    with pytest.raises(Broken, match="made by another version"):
        schema.Schema(path)


def test_a_source_that_is_not_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SOURCE_SHA256", "0" * 64)
    with pytest.raises(Broken, match=r"install kubernetes-validate==1\.37\.0"):
        build.build(tmp_path / "schema.bin")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Broken, match="cannot be made"):
        build.build(tmp_path / "schema.bin")
