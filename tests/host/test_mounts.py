"""Mounts: made, listed, taken away, in a mount namespace of the test's own."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wherry.errors import Broken
from wherry.host import kernel, mounts, namespaces


def apart(function: Callable[[], None]) -> None:
    """Run in a thread with a private mount namespace."""

    def body() -> None:
        kernel.unshare(kernel.CLONE_FS)
        kernel.unshare(kernel.CLONE_NEWNS)
        mounts.propagate("/", "private", recursive=True)
        function()

    namespaces.in_thread(body, "mounts under test")


def layers(directory: Path, count: int, name: str = "layer") -> list[str]:
    made: list[str] = []
    for number in range(count):
        layer = directory / f"{name}{number}"
        layer.mkdir()
        (layer / f"file{number}").write_text(str(number))
        (layer / "same").write_text(str(number))
        made.append(str(layer))
    return made


def test_mountinfo_is_read_with_strange_names(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "36 35 98:0 /a\\040b /mnt\\011x rw,noatime shared:7 master:1 - ext4 /dev/root rw,errors=continue\n"
        "37 36 0:5 / /mnt\\011x/deep ro - tmpfs tmpfs rw\n"
    )
    first, second = mounts.table(str(table))
    assert (first.root, first.target, first.shared, first.kind) == ("/a b", "/mnt\tx", 7, "ext4")
    assert second.options == frozenset({"ro"})
    assert mounts.containing("/mnt\tx/deep/er", [first, second]) is second
    assert mounts.containing("/mnt\tx/deeper", [first, second]) is first


@pytest.mark.root
def test_a_follower_sees_what_comes_and_never_spreads_back(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source / "before", source / "after", target):
        directory.mkdir(parents=True)

    def body() -> None:
        mounts.bind(str(source), str(source))
        mounts.propagate(str(source), "shared")
        mounts.tmpfs(str(source / "before"))
        mounts.bind(str(tmp_path), str(tmp_path), recursive=True)
        mounts.propagate(str(tmp_path), "shared")
        mounts.follow(str(source), str(target), recursive=True)
        mounts.tmpfs(str(source / "after"))
        assert mounts.is_mounted(str(target / "before"))
        assert mounts.is_mounted(str(target / "after"))
        mounts.unmount(str(target / "after"))
        mounts.unmount(str(target))
        assert mounts.is_mounted(str(source / "before"))
        assert mounts.is_mounted(str(source / "after"))

    apart(body)


@pytest.mark.root
def test_an_overlay_shows_the_top_layer_first(tmp_path: Path) -> None:
    lower = layers(tmp_path, 3)
    for name in ("upper", "work", "target"):
        (tmp_path / name).mkdir()
    target = tmp_path / "target"

    def body() -> None:
        mounts.overlay(str(target), lower, str(tmp_path / "upper"), str(tmp_path / "work"))
        assert (target / "same").read_text() == "0"
        (target / "new").write_text("x")
        assert mounts.is_mounted(str(target))
        assert mounts.unmount(str(target))
        assert not mounts.unmount(str(target))
        assert (tmp_path / "upper" / "new").read_text() == "x"

    apart(body)


@pytest.mark.root
@pytest.mark.parametrize("way", ["overlay", "_overlay_from_inside"])
def test_an_overlay_takes_more_layers_than_fit_in_a_page(tmp_path: Path, way: str) -> None:
    lower = layers(tmp_path, 80, "a-layer-with-a-long-name-")
    (tmp_path / "target").mkdir()

    def body() -> None:
        if way == "overlay":
            mounts.overlay(str(tmp_path / "target"), lower)
        else:
            mounts._overlay_from_inside(str(tmp_path / "target"), lower, "", "", {})
        assert len(os.listdir(tmp_path / "target")) == 81

    apart(body)


@pytest.mark.root
def test_layers_with_colons_and_commas_in_their_names(tmp_path: Path) -> None:
    lower = layers(tmp_path, 2, "odd:name,with\\all-")
    (tmp_path / "target").mkdir()

    def body() -> None:
        mounts.overlay(str(tmp_path / "target"), lower)
        assert sorted(os.listdir(tmp_path / "target")) == ["file0", "file1", "same"]

    apart(body)


@pytest.mark.root
def test_a_read_only_bind_takes_no_writes_and_its_source_does(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()

    def body() -> None:
        mounts.bind(str(source), str(target), read_only=True)
        with pytest.raises(OSError, match="Read-only"):
            (target / "x").write_text("")
        (source / "x").write_text("seen")
        assert (target / "x").read_text() == "seen"

    apart(body)


@pytest.mark.root
def test_everything_below_a_directory_goes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    def body() -> None:
        mounts.tmpfs(str(tmp_path / "a"), size_bytes=1 << 20)
        (tmp_path / "a" / "b c").mkdir()
        mounts.tmpfs(str(tmp_path / "a" / "b c"))
        mounts.tmpfs(str(tmp_path / "a" / "b c"))
        assert mounts.unmount_below(str(tmp_path)) == 3
        assert mounts.unmount_below(str(tmp_path)) == 0

    apart(body)


@pytest.mark.root
def test_a_refusal_has_the_kernels_words(tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"mount nofs on .*: No such device \(ENODEV\)") as caught:
        mounts.mount("none", str(tmp_path), "nofs")
    assert kernel.errno_of(caught.value) == 19


@pytest.mark.root
def test_mounts_below_a_shared_directory_show_in_copies_made_before(tmp_path: Path) -> None:
    base, inner = tmp_path / "base", tmp_path / "base" / "inner"
    inner.mkdir(parents=True)

    def body() -> None:
        assert mounts.share(str(base))
        assert not mounts.share(str(base))

        def copy() -> tuple[int, int]:
            kernel.unshare(kernel.CLONE_FS)
            kernel.unshare(kernel.CLONE_NEWNS)
            mounts.propagate("/", "slave", recursive=True)
            return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY), 0

        namespace, _ = namespaces.in_thread(copy, "copy of mounts")
        mounts.tmpfs(str(inner))
        (inner / "late").write_text("x")
        path = f"/proc/self/fd/{namespace}"
        assert namespaces.inside(path, lambda: os.listdir(inner), kind="mnt") == ["late"]
        mounts.unmount(str(inner))
        assert namespaces.inside(path, lambda: os.listdir(inner), kind="mnt") == []
        os.close(namespace)

    apart(body)
