"""ADD and the later flags of COPY: what ends up in the layer."""

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import AsyncIterator

import pytest
from tests.builder.yard import Yard

from wherry.errors import Invalid
from wherry.wire.http import Request, Response
from wherry.wire.server import Server


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid, info.mode = len(data), 5, 6, 0o640
            made.addfile(info, io.BytesIO(data))
        folder = tarfile.TarInfo("dir/")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        made.addfile(folder)
        link = tarfile.TarInfo("dir/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../a"
        made.addfile(link)
        hard = tarfile.TarInfo("hard")
        hard.type, hard.linkname = tarfile.LNKTYPE, "a"
        made.addfile(hard)
    return out.getvalue()


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["tar", "gzip", "bzip2", "xz"]
)
async def test_add_unpacks_an_archive_by_its_bytes(yard: Yard, pack: object) -> None:
    yard.file("data.bin", pack(archive(a=b"1", b=b"2")))  # type: ignore[operator]
    image = await yard.build("FROM scratch\nADD data.bin /x/\n")
    rows = yard.rows(image.layers[0])
    assert sorted(rows) == ["x/", "x/a", "x/b", "x/dir/", "x/dir/link", "x/hard"]
    assert (rows["x/a"].uid, rows["x/a"].gid, rows["x/a"].mode) == (5, 6, 0o640)
    assert (rows["x/dir/"].mode, rows["x/dir/link"].link) == (0o700, "../a")
    assert yard.read(image, "x/hard") == b"1"
    assert list(yard.rows((await yard.build("FROM scratch\nCOPY data.bin /\n")).layers[0])) == ["data.bin"]
    assert list(yard.rows((await yard.build("FROM scratch\nADD --unpack=false data.bin /\n")).layers[0])) == [
        "data.bin"
    ]
    owned = yard.rows((await yard.build("FROM scratch\nADD --chown=7:8 data.bin /x/\n")).layers[0])
    assert (owned["x/a"].uid, owned["x/a"].gid) == (7, 8)


async def test_add_copies_what_only_looks_like_an_archive(yard: Yard) -> None:
    yard.file("a.tar", "no tar")
    yard.file("a.gz", gzip.compress(b"only text"))
    image = await yard.build("FROM scratch\nADD a.tar a.gz /\n")
    assert sorted(yard.rows(image.layers[0])) == ["a.gz", "a.tar"]


async def test_an_archive_cannot_lead_out_and_a_cut_one_is_refused(yard: Yard) -> None:
    yard.file("out.tar", archive(**{"../evil": b"1", "a": b""}))
    with pytest.raises(Invalid, match=r"Dockerfile:2: ADD out\.tar: an entry has '\.\.' in its path"):
        await yard.build("FROM scratch\nADD out.tar /\n")
    yard.file("cut.tar", archive(a=b"1" * 5000)[:2000])
    with pytest.raises(Invalid, match=r"Dockerfile:2: ADD cut\.tar"):
        await yard.build("FROM scratch\nADD cut.tar /\n")


@pytest.fixture
async def web() -> AsyncIterator[str]:
    async def handle(request: Request) -> Response:
        if request.path == "/missing":
            return Response.text("no", status=404)
        if request.path == "/a.tgz":
            return Response(200, {"Content-Type": "application/gzip"}, gzip.compress(archive(a=b"1"), mtime=0))
        return Response(200, {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}, b"fetched")

    async def fail(request: Request, error: Exception) -> Response:
        raise AssertionError(request.path) from error

    server = Server(handle, on_error=fail)  # type: ignore[arg-type]
    host, port = await server.start_tcp("127.0.0.1", 0)
    yield f"http://{host}:{port}"
    await server.close(1.0)


async def test_add_fetches_a_url(yard: Yard, web: str) -> None:
    image = await yard.build(f"FROM scratch\nADD {web}/dir/file.txt /d/\nADD --chmod=755 {web}/x /bin/tool\n")
    row = yard.rows(image.layers[0])["d/file.txt"]
    assert (row.mode, row.mtime) == (0o600, 1767225600)
    assert yard.rows(image.layers[1])["bin/tool"].mode == 0o755
    again = await yard.build(f"FROM scratch\nADD {web}/dir/file.txt /d/\nADD --chmod=755 {web}/x /bin/tool\n")
    assert (again.id, len(yard.cached)) == (image.id, 2)
    plain = await yard.build(f"FROM scratch\nADD {web}/a.tgz /d/\n")
    assert list(yard.rows(plain.layers[0])) == ["d/", "d/a.tgz"]
    unpacked = await yard.build(f"FROM scratch\nADD --unpack=true {web}/a.tgz /d/\n")
    assert "d/dir/link" in yard.rows(unpacked.layers[0])


async def test_a_fetched_file_is_what_its_sum_says(yard: Yard, web: str) -> None:
    right = "sha256:" + hashlib.sha256(b"fetched").hexdigest()
    image = await yard.build(f"FROM scratch\nADD --checksum={right} {web}/f /f\n")
    assert yard.read(image, "f") == b"fetched"
    with pytest.raises(Invalid, match=f"it is {right}, not sha256:000"):
        await yard.build(f"FROM scratch\nADD --checksum=sha256:{'0' * 64} {web}/f /f\n")
    with pytest.raises(Invalid, match="answered 404"):
        await yard.build(f"FROM scratch\nADD {web}/missing /f\n")
    with pytest.raises(Invalid, match="names no file"):
        await yard.build(f"FROM scratch\nADD {web}/ /d/\n")
    with pytest.raises(Invalid, match=r"Dockerfile:2: ADD http://127\.0\.0\.1:1/f") as refused:
        await yard.build("FROM scratch\nADD http://me:hidden@127.0.0.1:1/f?token=hidden /f\n")
    assert "hidden" not in refused.value.causes[0].message


async def test_heredocs_are_files(yard: Yard) -> None:
    image = await yard.build(
        'FROM scratch\nENV NAME=world\nCOPY <<EOF /etc/motd\nhello $NAME "\\$NAME"\nEOF\n'
        "COPY --chmod=755 <<'RUN' <<-two /bin/\n$NAME\nRUN\n\tx\n\ttwo\n"
    )
    assert yard.read(image, "etc/motd") == b'hello world "$NAME"\n'
    assert yard.read(image, "bin/RUN") == b"$NAME\n"
    assert yard.read(image, "bin/two") == b"x\n"
    assert yard.rows(image.layers[1])["bin/two"].mode == 0o755


async def test_parents_are_kept_from_the_pivot_on(yard: Yard) -> None:
    for path in ("x/a/1.txt", "x/b/1.txt", "x/b/2.md", "y/z/3.txt"):
        yard.file(path)
    (yard.context / "x").chmod(0o750)

    async def names(line: str) -> list[str]:
        image = await yard.build(f"FROM scratch\nCOPY --parents {line}\n")
        return [path for path in sorted(yard.rows(image.layers[0])) if not path.endswith("/")]

    assert await names("x/a/1.txt y/z /d/") == ["d/x/a/1.txt", "d/y/z/3.txt"]
    assert await names("x/./b/*.txt /d/") == ["d/b/1.txt"]
    assert await names("./**/*.txt /d/") == ["d/x/a/1.txt", "d/x/b/1.txt", "d/y/z/3.txt"]
    image = await yard.build("FROM scratch\nCOPY --parents x/a/1.txt /\n")
    assert yard.rows(image.layers[0])["x/"].mode == 0o750


async def test_excluded_files_are_neither_copied_nor_in_the_key(yard: Yard) -> None:
    for path in ("src/a.py", "src/a.md", "src/doc/b.md", "src/doc/c.py"):
        yard.file(path)
    text = "FROM scratch\nCOPY --exclude=*.md --exclude=doc/*.md src /s/\n"
    image = await yard.build(text)
    assert sorted(yard.rows(image.layers[0])) == ["s/", "s/a.py", "s/doc/", "s/doc/c.py"]
    yard.file("src/a.md", "other")
    await yard.build(text)
    assert len(yard.cached) == 1


async def test_symbolic_modes_are_laid_on_each_file(yard: Yard) -> None:
    yard.file("d/run", mode=0o744)
    yard.file("d/text", mode=0o600)
    image = await yard.build("FROM scratch\nCOPY --chmod=u=rwX,go=rX d /d\nCOPY --chmod=a-w,u+s d /e\n")
    first, second = yard.rows(image.layers[0]), yard.rows(image.layers[1])
    assert [first[path].mode for path in ("d/run", "d/text")] == [0o755, 0o644]
    assert [second[path].mode for path in ("e/run", "e/text")] == [0o4544, 0o4400]


async def test_a_linked_copy_stands_on_nothing(yard: Yard) -> None:
    yard.file("a")
    text = "FROM scratch\nRUN {0}\nCOPY --link --chown=1:2 a /x/\n"
    one = await yard.build(text.format("one"))
    two = await yard.build(text.format("two"))
    assert yard.cached == ["COPY --link --chown=1:2 a /x/"]
    assert one.layers[-1] == two.layers[-1]
    assert one.layers[0] != two.layers[0]


async def test_named_contexts_are_directories_and_images(yard: Yard) -> None:
    other = yard.root / "other"
    (other / "sub").mkdir(parents=True)
    (other / "sub/f").write_text("from there")
    (other / "hidden").write_text("x")
    (other / ".dockerignore").write_text("hidden\n")
    image = await yard.want("FROM scratch\nCOPY --from=lib / /l\n", contexts={"lib": other})
    assert sorted(yard.rows(image.layers[0])) == ["l/", "l/.dockerignore", "l/sub/", "l/sub/f"]
    made = await yard.want(
        "FROM nowhere:9\nCOPY --from=second /l/sub/f /f\n",
        contexts={"nowhere:9": "docker-image://web:1", "second": "web:1"},
        tags=["two:1"],
    )
    assert made.layers[0] == image.layers[0]
    assert yard.read(made, "f") == b"from there"
    with pytest.raises(Invalid, match="not a directory"):
        await yard.want("FROM scratch\n", contexts={"lib": yard.root / "absent"})


async def test_the_dockerfiles_own_ignore_file_wins(yard: Yard) -> None:
    yard.file("a")
    yard.file("b")
    yard.file(".dockerignore", "a\n")
    yard.file("Dockerfile.dockerignore", "b\nDockerfile*\n.dockerignore\n")
    image = await yard.build("FROM scratch\nCOPY . /\n")
    assert sorted(yard.rows(image.layers[0])) == ["a"]
    with pytest.raises(Invalid, match=r"Dockerfile\.dockerignore leaves it out"):
        await yard.build("FROM scratch\nCOPY b /\n")
    assert "Dockerfile:2: 'b' is left out by Dockerfile.dockerignore (CopyIgnoredFile)" in yard.warnings
