"""Secrets at rest: nobody reads them from the files, and a deleted one nobody reads at all."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from tests.store.conftest import Open
from tests.store.contract import NOTE, collect

from wherry.errors import Damaged, Expired
from wherry.store.protocol import Write
from wherry.store.seals import Sealer
from wherry.store.sqlite import SqliteStore

PLAIN = b"correct horse battery staple"
NAME = "/core/secrets/default/db"


def holds(root: Path, text: bytes) -> list[str]:
    """The files below `root` in which `text` is found."""
    return [path.name for path in root.rglob("*") if path.is_file() and text in path.read_bytes()]


async def test_a_secret_is_read_by_its_owner_and_by_nobody_from_the_files(store: SqliteStore, reopen: Open) -> None:
    await store.put("/core/configmaps/default/a", b"in the open", expect=0, note=NOTE)
    await store.put(NAME, PLAIN, expect=0, note=NOTE)
    await store.put(NAME, PLAIN + b" 2", expect=2, note=NOTE)
    assert holds(store.root, b"in the open")
    assert not holds(store.root, PLAIN)
    assert (store.root / "root.key").stat().st_mode & 0o777 == 0o600
    assert (store.root / "keys.db").stat().st_mode & 0o777 == 0o600
    await store.close()
    again = await reopen(store.root)
    entry = await again.get(NAME)
    assert entry is not None
    assert entry.value == PLAIN + b" 2"
    assert [event.value for event in await collect(again, NAME, 0, 2)] == [PLAIN, PLAIN + b" 2"]
    assert not holds(store.root, PLAIN)


async def test_each_secret_has_a_key_of_its_own(store: SqliteStore) -> None:
    await store.txn([Write(f"/core/secrets/default/{i}", PLAIN, 0) for i in range(3)], note=NOTE)
    sealed = [store.sealed(1, f"/core/secrets/default/{i}") for i in range(3)]
    assert len({text[-20:] for text in sealed if text}) == 3
    assert [store.unseal(f"/core/secrets/default/{i}", text) for i, text in enumerate(sealed) if text] == [PLAIN] * 3
    with pytest.raises(Damaged, match="does not decrypt"):
        store.unseal("/core/secrets/default/1", sealed[0] or b"")  # not under another name
    with pytest.raises(Damaged, match="not a sealed value"):
        store.unseal(NAME, PLAIN)


async def test_a_deleted_secret_can_be_read_from_no_old_file(store: SqliteStore, tmp_path: Path, reopen: Open) -> None:
    await store.put(NAME, PLAIN, expect=0, note=NOTE)
    sealed = store.sealed(1, NAME)
    assert sealed is not None
    await store.fork(0, tmp_path / "before")
    assert sealed in (tmp_path / "before" / "log-00000000000000000001.db").read_bytes()
    await store.delete(NAME, expect=1, note=NOTE)
    assert store.unseal(NAME, sealed) is None
    await store.fork(1, tmp_path / "after", keys=True)  # the state had it; its key is gone
    assert await (await reopen(tmp_path / "after")).get(NAME) is None
    await store.close()
    again = await reopen(store.root)
    assert again.unseal(NAME, sealed) is None
    with pytest.raises(Expired):  # who saw it live must list again: its past cannot be told
        await anext(again.watch(NAME, after=1))
    assert await again.put(NAME, b"another", expect=0, note=NOTE) == 3
    assert again.unseal(NAME, sealed) is None  # a new life has a new key


async def test_a_new_life_in_the_same_commit_keeps_its_key(store: SqliteStore, reopen: Open) -> None:
    await store.put(NAME, PLAIN, expect=0, note=NOTE)
    old = store.sealed(1, NAME)
    await asyncio.gather(
        store.delete(NAME, expect=1, note=NOTE),
        store.put(NAME, b"second life", expect=0, note=NOTE),
    )
    assert old is not None
    assert store.unseal(NAME, old) is None
    await store.close()
    entry = await (await reopen(store.root)).get(NAME)
    assert entry is not None
    assert entry.value == b"second life"


async def test_a_dropped_key_is_overwritten(store: SqliteStore, tmp_path: Path) -> None:
    sealer = Sealer(tmp_path)
    sealer.seal(NAME, 1, PLAIN)
    sealer.flush()
    connection = sealer._open()  # pyright: ignore[reportPrivateUsage]
    (wrapped,) = connection.execute("SELECT wrapped FROM keys").fetchone()
    assert holds(tmp_path, wrapped) == ["keys.db"]
    sealer.drop([(NAME, 1)])
    assert not holds(tmp_path, wrapped)
    sealer.close()
    assert not holds(tmp_path, wrapped)


async def test_a_death_between_deletion_and_dropping_is_made_good(
    store: SqliteStore, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(NAME, PLAIN, expect=0, note=NOTE)
    sealed = store.sealed(1, NAME)
    assert sealed is not None

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store._sealer, "drop", refuse)  # pyright: ignore[reportPrivateUsage]
    await store.delete(NAME, expect=1, note=NOTE)  # the deletion stands
    assert store.unseal(NAME, sealed) == PLAIN
    await store.close()
    again = await reopen(store.root)
    assert again.unseal(NAME, sealed) is None


async def test_a_fork_has_secrets_only_when_told(store: SqliteStore, tmp_path: Path, reopen: Open) -> None:
    await store.put(NAME, PLAIN, expect=0, note=NOTE)
    await store.put("/core/pods/default/a", b"pod", expect=0, note=NOTE)
    await store.fork(0, tmp_path / "without")
    await store.fork(0, tmp_path / "with", keys=True)
    assert not holds(tmp_path, PLAIN)
    without, with_ = await reopen(tmp_path / "without"), await reopen(tmp_path / "with")
    assert [entry.key for entry in (await without.list("")).entries] == ["/core/pods/default/a"]
    entry = await with_.get(NAME)
    assert entry is not None
    assert entry.value == PLAIN
    assert (tmp_path / "with" / "root.key").read_bytes() != (store.root / "root.key").read_bytes()
    # on both sides the name can be used on
    assert await without.put(NAME, b"new", expect=0, note=NOTE) == 3
    assert await with_.delete(NAME, expect=1, note=NOTE) == 3
    assert (await store.get(NAME)) is not None
    await without.close()
    entry = await (await reopen(tmp_path / "without")).get(NAME)
    assert entry is not None
    assert entry.value == b"new"


async def test_a_merge_moves_sealed_values_unread(tmp_path: Path, reopen: Open) -> None:
    store = await reopen(tmp_path / "store", roll_bytes=1, merge_ratio=0.0)
    for i in range(5):
        await store.put(f"/core/secrets/ns/{i}", PLAIN, expect=0, note=NOTE)
    await store.fork(0, tmp_path / "roll")
    await store.compact(5)
    assert list(store.root.glob("snapshot-*"))
    assert not holds(tmp_path, PLAIN)
    await store.close()
    again = await reopen(store.root)
    assert [entry.value for entry in (await again.list("/core/secrets/")).entries] == [PLAIN] * 5


async def test_another_root_key_is_told(store: SqliteStore, reopen: Open) -> None:
    await store.put(NAME, PLAIN, expect=0, note=NOTE)
    await store.close()
    (store.root / "root.key").write_bytes(b"x" * 32)
    with pytest.raises(Damaged, match=r"root\.key"):
        await reopen(store.root)
    (store.root / "root.key").write_bytes(b"short")
    with pytest.raises(Damaged, match=r"root\.key: 5 bytes"):
        await reopen(store.root)


def test_a_store_without_secrets_does_not_load_cryptography(tmp_path: Path) -> None:
    program = f"""
import asyncio, pathlib, sys
from wherry.clock import RealClock
from wherry.store.protocol import Note
from wherry.store.sqlite import SqliteStore
async def main():
    store = await SqliteStore.open(pathlib.Path({str(tmp_path / "s")!r}), clock=RealClock())
    await store.put("/pods/a", b"", expect=0, note=Note(0.0, "", ""))
    await store.fork(0, pathlib.Path({str(tmp_path / "f")!r}), keys=True)
    await store.close()
asyncio.run(main())
assert "cryptography" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
