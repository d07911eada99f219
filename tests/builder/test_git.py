"""Git repositories, archives and Dockerfiles from an address: as contexts, as named contexts, and for ADD."""

import gzip
import io
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builder.gits import Repository, served
from tests.builder.yard import Yard

from wherry.builder.gitnames import parse_git
from wherry.builder.operations import is_git
from wherry.builder.service import Wanted
from wherry.engine.types import Image
from wherry.errors import Broken, Invalid, NotFound, Unavailable, WherryError

DOCKERFILE = "FROM scratch\nCOPY . /c\n"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repositories/web.git")
    made.file("Dockerfile", DOCKERFILE)
    made.file("run.sh", "#!/bin/sh\n", 0o755)
    made.file("app/Dockerfile", "FROM scratch\nCOPY a /a\n")
    made.file("app/a", "one")
    (made.root / "out").symlink_to("/etc")
    made.commit()
    made.git("tag", "-a", "-m", "x", "v1")
    made.file("app/a", "two")
    made.commit()
    made.git("branch", "feature/b")
    return made


async def build(yard: Yard, url: str, dockerfile: str = "Dockerfile", **wanted: Any) -> Image:
    yard.events.clear()
    words: dict[str, Any] = {"tags": ["web:1"], **wanted}
    return await yard.builder.build(url, dockerfile, wanted=Wanted(**words), progress=yard.events.append)


async def test_a_repository_is_a_context(yard: Yard, repository: Repository) -> None:
    image = await build(yard, repository.url)
    rows = yard.rows(image.layers[0])
    assert sorted(rows) == ["c/", "c/Dockerfile", "c/app/", "c/app/Dockerfile", "c/app/a", "c/out", "c/run.sh"]
    assert (rows["c/run.sh"].mode, rows["c/app/a"].mode, rows["c/app/a"].mtime) == (0o755, 0o644, 1_000_000_000)
    assert yard.read(image, "c/app/a") == b"two"
    for reference in (
        "#v1:app",
        "#refs/tags/v1:app",
        "?tag=v1&subdir=app",
        f"#{repository.git('rev-parse', 'v1^{}')}:app",
    ):
        assert yard.read(await build(yard, repository.url + reference), "a") == b"one"
    assert yard.read(await build(yard, f"{repository.url}#feature/b:app"), "a") == b"two"
    await build(yard, repository.url)
    assert yard.cached == ["COPY . /c"]
    assert not list((yard.root / "builder/tmp").iterdir())


@pytest.mark.parametrize(
    ("reference", "kind", "words"),
    [
        ("#nope", NotFound, "it has no branch or tag 'nope'"),
        (f"#{'0' * 40}", NotFound, f"it has no commit {'0' * 40}"),
        ("#main:absent", NotFound, "it has no directory 'absent'"),
        ("#main:../..", Invalid, "lies outside of it"),
        ("#main:out", Invalid, "lies outside of it"),
        ("#--upload-pack=x", Invalid, "no name of a branch"),
        ("?checksum=0000000", Invalid, "not 0000000"),
        ("?depth=1", Invalid, "'depth' is none of"),
        ("#main:app", Invalid, r"there is no Dockerfile\.prod in the build context"),
    ],
)
async def test_what_a_repository_does_not_have_is_named(
    yard: Yard, repository: Repository, reference: str, kind: type[WherryError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await build(yard, repository.url + reference, "Dockerfile.prod")
    assert not list((yard.root / "builder/tmp").iterdir())


async def test_nothing_of_the_machine_or_the_repository_runs(
    yard: Yard, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (hooks / "post-checkout").chmod(0o755)
    (tmp_path / "config").write_text(f'[core]\n\thooksPath = {hooks}\n[url "file:///nowhere"]\n\tinsteadOf = file://\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(tmp_path / "config"))
    await build(yard, repository.url)
    assert not (tmp_path / "ran").exists()
    repository.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", repository.url, "sub")
    repository.commit()
    with pytest.raises(Invalid, match="transport 'file' not allowed"):
        await build(yard, repository.url)  # a repository chooses no path of this machine
    with pytest.raises(Invalid, match="neither a git repository"):
        await build(yard, "ext::sh -c touch% /tmp/x .git")


async def test_without_git_it_says_so(yard: Yard, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Broken, match="there is no git program on this machine"):
        await build(yard, repository.url)


async def test_a_repository_is_added_by_its_commit(yard: Yard, repository: Repository) -> None:
    async with served(repository.root.parent) as web:
        text = f"FROM scratch\nADD {web}/web.git#{{}} /src/\n"
        image = await yard.build(text.format("v1"))
        rows = yard.rows(image.layers[0])
        assert sorted(rows)[:3] == ["src/", "src/Dockerfile", "src/app/"]
        assert yard.read(image, "src/app/a") == b"one"
        again = await yard.build(text.format(repository.git("rev-parse", "v1^{}")))
        assert (again.layers, len(yard.cached)) == (image.layers, 1)  # another name of the same commit
        await yard.build(text.format("main"))
        assert yard.cached == []
        repository.file("app/a", "three")
        commit = repository.commit()
        assert yard.read(await yard.build(text.format("main")), "src/app/a") == b"three"
        kept = await yard.build(f"FROM scratch\nADD --keep-git-dir --checksum={commit[:12]} {web}/web.git /src\n")
        assert "src/.git/HEAD" in yard.rows(kept.layers[0])
        part = await yard.build(f"FROM scratch\nADD --exclude=a {web}/web.git#main:app /src\n")
        assert sorted(yard.rows(part.layers[0])) == ["src/", "src/Dockerfile"]
        with pytest.raises(Invalid, match=r"Dockerfile:2: ADD: git repository .*is the commit .*, not 0000000"):
            await yard.build(f"FROM scratch\nADD --checksum=0000000 {web}/web.git /src\n")
        with pytest.raises(Invalid, match=r"Dockerfile:2: ADD: .*no branch or tag 'nope'"):
            await yard.build(text.format("nope"))


async def test_a_token_opens_a_repository_and_is_kept_nowhere(yard: Yard, repository: Repository) -> None:
    async with served(repository.root.parent, "very-hidden") as web:
        with pytest.raises(Broken, match="give a secret GIT_AUTH_TOKEN"):
            await build(yard, f"{web}/web.git")
        image = await build(yard, f"{web}/web.git", secrets={"GIT_AUTH_HEADER": b"Bearer very-hidden"})
        assert yard.read(image, "c/app/a") == b"two"
        await yard.want(
            f"FROM scratch\nADD {web}/web.git /\n", secrets={"GIT_AUTH_HEADER.127.0.0.1": b"Bearer very-hidden"}
        )
    kept = [path for path in yard.root.rglob("*") if path.is_file() and b"very-hidden" in path.read_bytes()]
    assert kept == []


async def test_submodules_come_along(yard: Yard, repository: Repository, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "repositories/inner.git")
    inner.file("deep/f", "inner")
    inner.commit()
    repository.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner.url, "sub")
    async with served(tmp_path / "repositories") as web:
        repository.git("config", "-f", ".gitmodules", "submodule.sub.url", "../inner.git")
        repository.commit()
        image = await build(yard, f"{web}/web.git")
        assert yard.read(image, "c/sub/deep/f") == b"inner"
        assert "c/sub/.git" not in yard.rows(image.layers[0])
        without = await build(yard, f"{web}/web.git?submodules=false")
        assert "c/sub/deep/f" not in yard.rows(without.layers[0])


def archive(**texts: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, text in texts.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            made.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


async def test_archives_and_lone_dockerfiles_are_contexts(yard: Yard, tmp_path: Path) -> None:
    plain = tmp_path / "web/plain"
    plain.mkdir(parents=True)
    packed = archive(Dockerfile="FROM scratch\nCOPY a /a\n", a="from an archive", other="FROM scratch\nCOPY a /b\n")
    (plain / "c.tgz").write_bytes(gzip.compress(packed))
    (plain / "c.tar.xz").write_bytes(lzma.compress(packed))
    (plain / "Dockerfile.web").write_text("FROM scratch\nCOPY <<E /a\nalone\nE\n")
    async with served(tmp_path / "web") as web:
        assert yard.read(await build(yard, f"{web}/plain/c.tgz"), "a") == b"from an archive"
        assert yard.read(await build(yard, f"{web}/plain/c.tar.xz", "other"), "b") == b"from an archive"
        assert yard.read(await build(yard, f"{web}/plain/Dockerfile.web"), "a") == b"alone\n"
        named = await yard.want("FROM scratch\nCOPY --from=lib a /x\n", contexts={"lib": f"{web}/plain/c.tgz"})
        assert yard.read(named, "x") == b"from an archive"
        (plain / "c.tgz").write_bytes(gzip.compress(archive(**{"../out": "x"})))
        with pytest.raises(Invalid, match=r"'\.\.' in its path"):
            await build(yard, f"{web}/plain/c.tgz")
    with pytest.raises(Unavailable, match=r"build context http://127\.0\.0\.1:1/x"):
        await build(yard, "http://me:hidden@127.0.0.1:1/x?token=hidden")
    with pytest.raises(Invalid, match="neither a git repository nor an http address"):
        await build(yard, "ftp://example.org/x")


async def test_a_repository_is_a_named_context_and_a_base(yard: Yard, repository: Repository) -> None:
    image = await yard.want(
        "FROM lib AS files\nFROM scratch\nCOPY --from=files /a /one\nCOPY --from=lib a /two\n",
        contexts={"lib": f"{repository.url}#main:app"},
    )
    assert yard.read(image, "one") == yard.read(image, "two") == b"two"


@given(st.text(alphabet="ab:/#?=&.@-~^\\ \x00git", max_size=40))
def test_any_address_is_read_or_refused(text: str) -> None:
    try:
        found = parse_git(f"https://a.example/{text}")
    except Invalid:
        return
    assert not found.ref.startswith("-")
    assert not any(each in found.url + found.ref for each in " \x00")


def test_what_is_a_repository() -> None:
    for text in (
        "git@a:b",
        "git://a/b",
        "ssh://a/b",
        "https://a/b.git",
        "https://a/b.git#c:d",
        "https://a/b.git?ref=c",
    ):
        assert is_git(text)
    for text in ("https://a/b", "b.git", "https://a/b.git.tgz", "a:b", "user@host"):
        assert not is_git(text)
    assert parse_git("https://me:pw@a/b.git").shown == "https://a/b.git"
