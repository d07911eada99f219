"""Layers: whatever tar writes we read, hostile ones stay inside, and what we pack unpacks to the same tree."""

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.content.images import DIR, FILE, LINK, SYMLINK, Row, tar

from wherry.content.digests import digest_of
from wherry.content.local import LocalContent
from wherry.content.pack import entries_of, pack_directory, pack_upper, write_layer
from wherry.content.tars import Member, Tar
from wherry.content.tarwrite import END, Entry, header, padding
from wherry.content.unpack import unpack_here
from wherry.content.unpack_child import unpack
from wherry.errors import Broken, Damaged, Invalid, Unsupported

names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=60)
paths = st.lists(names, min_size=1, max_size=5).map("/".join)
SQUEEZES: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "members": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(512),
}


def members(data: bytes, piece: int = 1000) -> list[tuple[Member, bytes]]:
    archive = Tar(iter([data[start : start + piece] for start in range(0, len(data), piece)]))
    return [(member, b"".join(bytes(part) for part in archive.data())) for member in archive]


@given(
    paths,
    st.binary(max_size=2000),
    st.integers(0, 2**40),
    st.integers(0, 2**33),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
@settings(max_examples=150, deadline=None)
def test_we_read_what_others_write(path: str, data: bytes, uid: int, mtime: int, format: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        info = tarfile.TarInfo(path)
        info.size, info.uid, info.mtime, info.mode = len(data), uid, mtime, 0o4751
        archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = SYMLINK, path
        archive.addfile(link)
    (member, read), (second, _) = members(out.getvalue())
    assert (member.path.rstrip("/"), read, member.uid, int(member.mtime), member.mode) == (
        path.rstrip("/"),
        data,
        uid,
        mtime,
        0o4751,
    )
    assert second.link.rstrip("/") == path.rstrip("/")


@given(
    paths,
    st.binary(max_size=2000),
    st.integers(0, 2**40),
    st.integers(0, 2**36),
    st.dictionaries(st.sampled_from(["user.a", "user.b"]), st.binary(max_size=40)),
)
@settings(max_examples=150, deadline=None)
def test_others_and_we_read_what_we_write(
    path: str, data: bytes, uid: int, mtime: int, xattrs: dict[str, bytes]
) -> None:
    entry = Entry(path, "file", 0o640, uid, 7, mtime, size=len(data), source=data, xattrs=xattrs)
    written = header(entry) + data + padding(len(data)) + header(Entry("l", "symlink", link=path)) + END
    (member, read), (second, _) = members(written)
    assert (member.path, read, member.uid, int(member.mtime), member.xattrs) == (path, data, uid, mtime, xattrs)
    assert second.link == path
    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        info = archive.getmembers()[0]
        extracted = archive.extractfile(info)
        assert extracted is not None
        assert (info.name, info.uid, info.mtime, extracted.read()) == (path.rstrip("/"), uid, mtime, data)


@given(st.binary(max_size=3000), st.integers(0, 10239), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_damaged_archive_is_refused_and_never_more(data: bytes, place: int, flip: int) -> None:
    good = bytearray(tar([("a/b", FILE, data), ("l", SYMLINK, "x" * 150), ("é" * 60, DIR, b"")]))
    good[place % len(good)] ^= flip
    for broken in (bytes(good), bytes(good[:place]), data):
        try:
            members(broken)
        except (Damaged, Unsupported, Invalid):
            continue


@given(
    st.sampled_from([tarfile.REGTYPE, DIR, LINK, SYMLINK, tarfile.CHRTYPE, tarfile.FIFOTYPE]),
    st.sampled_from([-1, 0, 7, 2**21, 2**32 - 1, 2**50]),
    st.sampled_from([-(2**40), -1, 0, 2**33, 2**60]),
    st.sampled_from(["", ".", "..", "/", "a", "a/b", "x" * 300]),
    st.sampled_from(["", ".", "a", "/etc", "x" * 300]),
    st.dictionaries(
        st.sampled_from(["mtime", "uid", "size", "path", "GNU.sparse.major"]),
        st.sampled_from(["nan", "1", "-1", "x", "1e400"]),
    ),
)
@settings(max_examples=150, deadline=None)
def test_odd_numbers_and_names_are_refused_in_our_words(
    kind: bytes, number: int, time: int, path: str, link: str, pax: dict[str, str]
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT if not pax else tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(path)
        info.type, info.uid, info.mtime, info.linkname, info.devmajor = kind, number, time, link, number % 2**21
        info.pax_headers = pax
        try:
            archive.addfile(info)
        except (ValueError, OverflowError):
            return
    with TemporaryDirectory() as folder:
        (Path(folder) / "t").mkdir()
        try:
            unpack_here(put(Path(folder), out.getvalue()), Path(folder) / "t")
        except (Invalid, Damaged, Unsupported, Broken):
            return


parts_of_paths = st.sampled_from(["a", "b", "..", ".", "", "l", ".wh.a", ".wh..wh..opq", ".wh.", "x" * 120])
hostile_paths = st.lists(parts_of_paths, min_size=1, max_size=4).map("/".join)
entries = st.tuples(
    st.one_of(hostile_paths, st.just("/etc/evil")),
    st.sampled_from([FILE, DIR, LINK, SYMLINK, tarfile.FIFOTYPE]),
    st.one_of(hostile_paths, st.sampled_from(["/", "/etc/passwd", "{out}", "{out}/secret", "../../../../../..{out}"])),
    st.binary(max_size=600),
)


@given(st.lists(entries, min_size=1, max_size=8))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_no_order_of_entries_leads_outside(rows: list[tuple[str, bytes, str, bytes]]) -> None:
    with TemporaryDirectory() as folder:
        outside, target = Path(folder) / "out", Path(folder) / "in/here"
        outside.mkdir()
        target.mkdir(parents=True)
        (outside / "secret").write_text("secret")
        made: list[Row] = [
            (path or "a", kind, data if kind == FILE else link.replace("{out}", str(outside)) or "a")
            for path, kind, link, data in rows
        ]
        with suppress(Invalid, Damaged, Broken, Unsupported):
            unpack_here(put(Path(folder), tar(made)), target)
        assert [path.name for path in outside.iterdir()] == ["secret"]
        assert (outside / "secret").read_text() == "secret"
        assert (outside / "secret").stat().st_nlink == 1
        assert sorted(path.name for path in Path(folder).iterdir()) == ["in", "layer", "out"]
        assert [path.name for path in (Path(folder) / "in").iterdir()] == ["here"]


def put(folder: Path, data: bytes) -> Path:
    path = folder / "layer"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("squeeze", SQUEEZES.values(), ids=SQUEEZES.keys())
async def test_each_compression_gives_the_same_diff_id(tmp_path: Path, squeeze: Callable[[bytes], bytes]) -> None:
    data = tar([("d", DIR, b""), ("d/f", FILE, os.urandom(2_500_000)), ("d/l", SYMLINK, "f"), ("h", LINK, "d/f")])
    for number, take in enumerate((unpack, unpack_here)):
        target = tmp_path / f"t{number}"
        target.mkdir()
        done = take(put(tmp_path, squeeze(data)), target)
        done = done if take is unpack_here else await done  # type: ignore[misc]
        assert (done.diff_id, done.size_bytes, done.entries) == (digest_of(data), len(data), 4)  # type: ignore[union-attr]
        assert (target / "d/f").stat().st_ino == (target / "h").stat().st_ino
        assert (target / "d").stat().st_mtime == 1_000_000


HOSTILE: list[tuple[str, list[Row]]] = [
    ("dots", [("../evil", FILE, b"1")]),
    ("dots inside", [("a/../../evil", FILE, b"1")]),
    ("an absolute path", [("/evil", FILE, b"1")]),
    ("an absolute link", [("l", SYMLINK, "{out}"), ("l/evil", FILE, b"1")]),
    ("a relative link", [("l", SYMLINK, "../../../../../../../..{out}"), ("l/evil", FILE, b"1")]),
    ("links to links", [("a", SYMLINK, "b"), ("b", SYMLINK, "{out}"), ("a/evil", FILE, b"1")]),
    ("a loop", [("a", SYMLINK, "b"), ("b", SYMLINK, "a"), ("a/evil", FILE, b"1")]),
    (
        "a link in the place of a directory",
        [("d", DIR, b""), ("d/x", FILE, b""), ("d", SYMLINK, "{out}"), ("d/evil", FILE, b"1")],
    ),
    ("a file through a link of its own name", [("f", SYMLINK, "{out}/evil"), ("f", FILE, b"1")]),
    ("a hard link out", [("h", LINK, "{out}/secret"), ("h", FILE, b"changed")]),
    ("a hard link through a link", [("l", SYMLINK, "{out}"), ("h", LINK, "l/secret")]),
    (
        "a hard link to a link, then written",
        [("l", SYMLINK, "{out}/secret"), ("h", LINK, "l"), ("h", FILE, b"changed")],
    ),
    ("a whiteout through a link", [("l", SYMLINK, "{out}"), ("l/.wh.secret", FILE, b"")]),
    ("an opaque mark through a link", [("l", SYMLINK, "{out}"), ("l/.wh..wh..opq", FILE, b"")]),
    ("a directory over a link", [("l", SYMLINK, "{out}"), ("l", DIR, b""), ("l/evil", FILE, b"1")]),
    ("a whiteout of dots", [(".wh...", FILE, b"")]),
]


@pytest.mark.parametrize(("name", "rows"), HOSTILE, ids=[name for name, _ in HOSTILE])
@pytest.mark.parametrize("confined", [False, True])
async def test_a_hostile_layer_stays_inside(tmp_path: Path, name: str, rows: list[Row], confined: bool) -> None:
    outside, target = tmp_path / "outside", tmp_path / "in/here"
    outside.mkdir()
    target.mkdir(parents=True)
    (outside / "secret").write_text("secret")
    made = [
        (path, kind, data.replace("{out}", str(outside)) if isinstance(data, str) else data)
        for path, kind, data in rows
    ]
    try:
        if confined:
            await unpack(put(tmp_path, tar(made)), target)
        else:
            unpack_here(put(tmp_path, tar(made)), target)
    except (Invalid, Broken):  # Broken: without root nothing can be marked opaque
        pass
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "layer", "outside"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["here"]


async def test_later_entries_replace_earlier_ones_and_links_keep_what_they_had(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("d/f", FILE, b"first"),
        ("e/h", LINK, "d/f"),
        ("d/f", FILE, b"second"),
        ("g", FILE, b"file"),
        ("g", DIR, b""),
        ("g/in", FILE, b"below"),
        ("s", SYMLINK, "d"),
        ("s", FILE, b"no link any more"),
        ("twice", FILE, b"1"),
        ("./twice", FILE, b"2"),
    ]
    target = tmp_path / "t"
    target.mkdir()
    await unpack(put(tmp_path, tar(rows)), target)
    assert (target / "e/h").read_bytes() == b"first"
    assert (target / "d/f").read_bytes() == b"second"
    assert (target / "g/in").read_bytes() == b"below"
    assert (target / "s").read_bytes() == b"no link any more"
    assert (target / "twice").read_bytes() == b"2"


async def test_a_hard_link_takes_the_place_of_a_directory_or_a_link(tmp_path: Path) -> None:
    """What it goes through may lead elsewhere then, so every directory is opened anew; its own, too."""
    rows: list[Row] = [
        ("d/f", FILE, b"first"),
        ("x/sub/below", FILE, b"gone"),
        ("x/link", SYMLINK, "sub"),
        ("x/link", LINK, "d/f"),
        ("x/sub", LINK, "d/f"),
    ]
    target = tmp_path / "t"
    target.mkdir()
    await unpack(put(tmp_path, tar(rows)), target)
    assert (target / "x/link").read_bytes() == b"first"
    assert not (target / "x/link").is_symlink()
    assert (target / "x/sub").samefile(target / "d/f")


async def test_more_directories_than_are_kept_open_and_deeper_ones(tmp_path: Path) -> None:
    deep = "/".join("abcdefghij" * 12)
    wide = [f"w{number}/in/{number % 3}" for number in range(300)]
    rows: list[Row] = [(f"{path}/f", FILE, path.encode()) for path in (*wide, deep, *wide[:5])]
    rows += [(f"{path}/same", LINK, f"{other}/f") for path, other in zip([*wide, deep], [deep, *wide], strict=True)]
    target = tmp_path / "t"
    target.mkdir()
    await unpack(put(tmp_path, tar(rows)), target)
    for path, other in zip([*wide, deep], [deep, *wide], strict=True):
        assert (target / path / "f").read_bytes() == path.encode()
        assert (target / path / "same").samefile(target / other / "f")


async def test_frames_that_other_formats_append_are_plain_layers(tmp_path: Path) -> None:
    """zstd:chunked ends with skippable frames, eStargz is many gzip members with an index file in the last ones."""
    data = tar([("f", FILE, os.urandom(300_000))])
    skippable = (0x184D2A50).to_bytes(4, "little") + (1000).to_bytes(4, "little") + bytes(1000)
    chunked = b"".join(zstandard.compress(data[start : start + 70_000]) for start in range(0, len(data), 70_000))
    stargz = b"".join(gzip.compress(data[start : start + 70_000]) for start in range(0, len(data), 70_000))
    for number, squeezed in enumerate((chunked + skippable * 3, skippable + chunked, stargz)):
        target = tmp_path / f"t{number}"
        target.mkdir()
        assert (await unpack(put(tmp_path, squeezed), target)).diff_id == digest_of(data)


@pytest.mark.root
async def test_whiteouts_become_overlay_marks_and_come_back(tmp_path: Path, content: LocalContent) -> None:
    rows: list[Row] = [
        ("gone/.wh.x", FILE, b""),
        ("cleared", DIR, b""),
        ("cleared/.wh..wh..opq", FILE, b""),
        ("cleared/new", FILE, b"1"),
        (".wh.replaced", FILE, b""),
        ("replaced/inside", FILE, b"2"),
        ("own", FILE, b"3"),
        (".wh.own", FILE, b""),
    ]
    for number, take in enumerate((unpack, unpack_here)):
        target = tmp_path / f"t{number}"
        target.mkdir()
        done = take(put(tmp_path, tar(rows)), target)
        done = done if take is unpack_here else await done  # type: ignore[misc]
        seen = (target / "gone/x").stat()
        assert stat.S_ISCHR(seen.st_mode)
        assert seen.st_rdev == 0
        assert os.getxattr(target / "cleared", "trusted.overlay.opaque") == b"y"
        assert os.getxattr(target / "replaced", "trusted.overlay.opaque") == b"y"
        assert (target / "own").read_bytes() == b"3"
        layer = await pack_upper(content, target, lease="", exclude=["own"])
        with content.path(layer.digest).open("rb") as file:
            names = [member.path for member, _ in members(gzip.decompress(file.read()))]
        assert names == [
            "cleared/", "cleared/.wh..wh..opq", "cleared/new", "gone/", "gone/.wh.x", "replaced/", "replaced/.wh..wh..opq",
            "replaced/inside",
        ]  # fmt: skip


@pytest.mark.root
async def test_owners_modes_attributes_and_devices_survive(tmp_path: Path, content: LocalContent) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "suid").write_bytes(b"x")
    os.chown(source / "suid", 5, 6)
    (source / "suid").chmod(0o6755)
    os.setxattr(source / "suid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    (source / "sticky").mkdir()
    (source / "sticky").chmod(0o1777)
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(source / "fifo", 0o640)
    (source / "ünï").symlink_to("nowhere")
    (source / "big").write_bytes(os.urandom(3_000_000))
    os.link(source / "big", source / "again")
    layer = await pack_directory(content, source, lease="", mtime=12345)
    target = tmp_path / "target"
    target.mkdir()
    done = await unpack(content.path(layer.digest), target)
    assert (done.diff_id, done.size_bytes) == (layer.diff_id, layer.tar_bytes)
    seen = (target / "suid").stat()
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode), int(seen.st_mtime)) == (5, 6, 0o6755, 12345)
    assert os.getxattr(target / "suid", "security.capability") == os.getxattr(source / "suid", "security.capability")
    assert stat.S_IMODE((target / "sticky").stat().st_mode) == 0o1777
    assert (target / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((target / "fifo").stat().st_mode)
    assert (target / "ünï").readlink() == Path("nowhere")
    assert (target / "again").stat().st_nlink == 2
    assert (target / "big").read_bytes() == (source / "big").read_bytes()
    again = await pack_directory(content, target, lease="", mtime=12345)
    assert again == layer  # the same tree, the same bytes


async def test_the_same_files_make_the_same_layer(tmp_path: Path, content: LocalContent) -> None:
    made: list[str] = []
    for names in (["b", "a", "c"], ["c", "b", "a"]):
        root = tmp_path / "".join(names)
        root.mkdir()
        for name in names:
            (root / name).write_text(name)
        made.append((await pack_directory(content, root, lease="", mtime=0)).digest)
    assert made[0] == made[1]


async def test_what_does_not_become_smaller_is_stored(tmp_path: Path, content: LocalContent) -> None:
    """Between what does: any reader of gzip has the same bytes, and the same files give the same layer."""
    dense, thin = os.urandom(3_500_000), b"so much the same " * 200_000
    for number, data in enumerate((thin, dense, thin, dense, b"", thin[:70_000], dense[:600_000])):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / f"files/{number}").write_bytes(data)
    layer = await pack_directory(content, tmp_path / "files", lease="", mtime=0)
    packed = content.path(layer.digest).read_bytes()
    plain = gzip.decompress(packed)
    assert digest_of(plain) == layer.diff_id
    assert any(dense[start : start + 20_000] in packed for start in (2_000_000, 2_025_000))  # no block begins in both
    assert len(packed) < 2 * len(dense) + len(dense[:600_000]) + 500_000
    target = tmp_path / "unpacked"
    target.mkdir()
    assert unpack_here(content.path(layer.digest), target).diff_id == layer.diff_id
    assert (target / "3").read_bytes() == dense
    again = await pack_directory(content, tmp_path / "files", lease="", mtime=0)
    assert again.digest == layer.digest


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", None, ""),
        (b"not a tar at all" * 100, Damaged, "tar"),
        (gzip.compress(tar([("a", FILE, b"x" * 5000)]))[:-20], Damaged, "too early|damaged"),
        (gzip.compress(b"x" * 5000)[:40] + b"\xff" * 40, Damaged, "damaged|too early"),
        (tar([("a", FILE, b"x" * 5000)])[:2000], Damaged, "middle of an entry"),
        (tar([("f", FILE, b"1"), ("f/below", FILE, b"2")]), Invalid, "is not a directory"),
        (tar([("h", LINK, "absent")]), Invalid, "no file of this layer"),
        (tar([("s", b"S", b"stored")]), Damaged, "map of a sparse file"),
        (tar([("v", b"V", b"")]), Unsupported, "type 'V'"),
    ],
)
async def test_a_layer_that_cannot_be_read_says_why(
    tmp_path: Path, data: bytes, kind: type[Exception] | None, words: str
) -> None:
    target = tmp_path / "t"
    target.mkdir()
    if kind is None:
        assert (await unpack(put(tmp_path, data), target)).entries == 0
        return
    with pytest.raises(kind, match=words):
        await unpack(put(tmp_path, data), target, name="layer sha256:x")


async def test_a_file_that_changes_while_it_is_packed_is_noticed(tmp_path: Path, content: LocalContent) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    entries = list(entries_of(tmp_path, exclude=["content"]))
    for other in (b"1234", b"123456"):
        (tmp_path / "f").write_bytes(other)
        with pytest.raises(Broken, match="became"):
            await write_layer(content, entries, lease="")


async def test_a_plain_archive_keeps_odd_names_and_brings_no_devices(tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.mkdir()
    await unpack(put(tmp_path, tar([(".wh.a", FILE, b"1")])), target, layer=False)
    assert (target / ".wh.a").read_bytes() == b"1"
    with pytest.raises(Invalid, match="a device"):
        await unpack(put(tmp_path, tar([("n", tarfile.CHRTYPE, b"")])), target, layer=False)


@pytest.mark.root
async def test_the_child_has_only_the_rights_it_needs(tmp_path: Path) -> None:
    """The same confinement, with a look at it from inside."""
    import sys

    from wherry.content.unpack_child import _import_paths  # pyright: ignore[reportPrivateUsage]
    from wherry.host import spawn

    code = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from wherry.content.unpack_child import confine\n"
        "status = os.open('/proc/self', os.O_RDONLY); confine(int(sys.argv[1]))\n"
        "print(os.listdir('/'), os.getuid(), os.getgroups())\n"
        "print(os.read(os.open('status', os.O_RDONLY, dir_fd=status), 9999).decode())\n"
    )
    (tmp_path / "only").write_text("")
    root = os.open(tmp_path, os.O_RDONLY)
    argv = [sys.executable, "-IS", "-c", code, str(root), *_import_paths()]
    said = (await spawn.plain.run(argv, timeout_s=20, pass_fds=[root])).check().out.decode()
    os.close(root)
    assert said.startswith("['only'] 65534 []")
    kept = f"{sum(1 << number for number in (0, 1, 3, 4, 27, 31)):016x}"
    assert f"CapEff:\t{kept}" in said
    assert f"CapBnd:\t{kept}" in said
    assert "NoNewPrivs:\t1" in said
