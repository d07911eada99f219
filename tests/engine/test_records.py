"""Rows on the disk: those of earlier versions are read as well, those that nobody can read are left alone."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from wherry.engine.records import Records, SandboxRecord
from wherry.engine.types import SandboxSpec


def rewrite(path: Path, **spec: Any) -> None:
    """Change the spec of the one sandbox's row, as another version would have written it."""
    with closing(sqlite3.connect(path)) as database, database:
        (body,) = database.execute("SELECT body FROM sandboxes").fetchone()
        row = json.loads(body)
        row["spec"] |= spec
        database.execute("UPDATE sandboxes SET body = ?", (json.dumps(row).encode(),))


def test_a_row_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Names of hosts were an object once: a container made then must not be gone after an update."""
    path = tmp_path / "engine.db"
    record = SandboxRecord(
        "s", created=1.0, spec=SandboxSpec(id="s", hostname="h", hosts=[("db", "10.0.0.9"), ("db", "10.0.0.8")])
    )
    with closing(Records(path)) as records:
        records.put_sandbox(record)
        (same,) = records.sandboxes()
        assert [tuple(each) for each in same.spec.hosts] == [("db", "10.0.0.9"), ("db", "10.0.0.8")]
    rewrite(path, hosts={"db": "10.0.0.9", "web": "10.0.0.7"})
    with closing(Records(path)) as records:
        (older,) = records.sandboxes()
        assert [tuple(each) for each in older.spec.hosts] == [("db", "10.0.0.9"), ("web", "10.0.0.7")]
        assert records.unreadable == set()
    rewrite(path, hosts=7)
    with closing(Records(path)) as records:
        assert records.sandboxes() == []
        assert records.unreadable == {"s"}
