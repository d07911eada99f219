"""The SQLite store keeps the contract, with usual bounds and with tiny ones (many files, many merges)."""

from pathlib import Path

import pytest
from tests.store.conftest import Open
from tests.store.contract import StoreContract

from wherry.store.sqlite import SqliteStore


class TestSqlite(StoreContract):
    pass


class TestSqliteInTinyPieces(StoreContract):
    @pytest.fixture
    async def store(self, reopen: Open, tmp_path: Path) -> SqliteStore:
        return await reopen(tmp_path / "store", roll_bytes=1, merge_ratio=0.0, slice_rows=2, batch_writes=2)
