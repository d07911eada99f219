"""Secrets at rest: each is encrypted with a key of its own, and to forget a secret is to drop its key.

What lies in logs, snapshots, forks and the history is sealed: version byte, revision of the secret's creation
(8 bytes), nonce (12 bytes), AES-256-GCM of the value, bound to the store key's name. The data keys lie aside in
`keys.db`, one for each life of a secret (its name and creation), encrypted by `root.key` (32 bytes, mode 0600).
The sealed text without its data key is noise, wherever a copy of it may be.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.errors import Damaged
from wherry.store.files import sync_directory

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SECRETS = "/core/secrets/"
_VERSION = b"\x01"
_NONCE_BYTES = 12
_HEAD_BYTES = 1 + 8 + _NONCE_BYTES

Life = tuple[str, int]
"""One life of a secret: its key and the revision of its creation. The next secret of that name has another key."""


class Sealer:
    """The data keys of one store. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._root_key: AESGCM | None = None
        self._keys: dict[Life, bytes] = {}

    def seal(self, key: str, created: int, value: bytes) -> bytes:
        """Encrypt; a new life gets a new data key, which is durable only after `flush`."""
        with self._lock:
            nonce = os.urandom(_NONCE_BYTES)
            head = _VERSION + created.to_bytes(8, "big") + nonce
            return head + self._cipher(self._data_key((key, created), make=True)).encrypt(nonce, value, key.encode())

    def unseal(self, key: str, sealed: bytes) -> bytes | None:
        """Decrypt; None when the data key has been dropped (or was never here). Raises Damaged."""
        if len(sealed) < _HEAD_BYTES or not sealed.startswith(_VERSION):
            raise Damaged(f"{key}: not a sealed value")
        created = int.from_bytes(sealed[1:9], "big")
        with self._lock:
            data_key = self._data_key((key, created), make=False)
            if not data_key:
                return None
            return self._decrypt(data_key, sealed[9:], key.encode(), f"{key}: the sealed value")

    def flush(self) -> None:
        """Make new data keys durable: called before the log that needs them is committed."""
        with self._lock:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("COMMIT")

    def drop(self, lives: Iterable[Life]) -> None:
        """Forget the data keys of these lives: nothing sealed with them can be read again."""
        with self._lock:
            connection = self._open()
            for life in lives:
                self._keys.pop(life, None)
                connection.execute("DELETE FROM keys WHERE name = ? AND created = ?", life)
            self.flush()

    def keep(self, lives: Iterable[Life]) -> int:
        """Drop all data keys but these; say how many went. For the start, after a death between delete and drop."""
        if not self.exists:
            return 0
        with self._lock:
            kept = set(lives)
            rows = self._open().execute("SELECT name, created FROM keys").fetchall()
            dead: list[Life] = [(name, created) for name, created in rows if (name, created) not in kept]
            if dead:
                self.drop(dead)
            return len(dead)

    def copy_to(self, root: Path, until: int) -> None:
        """Give a fork the data keys of all lives that began up to revision `until`, under a root key of its own."""
        if not self.exists:
            return
        with self._lock:
            rows = self._open().execute("SELECT name, created FROM keys WHERE created <= ?", (until,)).fetchall()
            other = Sealer(root)
            try:
                for name, created in rows:
                    data_key = self._data_key((name, created), make=False)
                    if data_key:
                        other._store((name, created), data_key)
                other.flush()
            finally:
                other.close()

    @property
    def exists(self) -> bool:
        """Whether there has been a secret yet."""
        return self._connection is not None or (self._root / "keys.db").exists()

    def close(self) -> None:
        """Flush and forget what is in memory."""
        with self._lock:
            if self._connection is not None:
                self.flush()
                self._connection.close()
                self._connection = None
            self._keys.clear()
            self._root_key = None

    def _data_key(self, life: Life, *, make: bool) -> bytes:
        found = self._keys.get(life)
        if found:
            return found
        if not make and not self.exists:
            return b""
        row = self._open().execute("SELECT wrapped FROM keys WHERE name = ? AND created = ?", life).fetchone()
        if row is not None:
            found = self._decrypt(self._wrapping(), row[0], _bound(life), f"{life[0]}: its data key in keys.db")
        elif make:
            found = os.urandom(32)
            self._store(life, found)
        else:
            return b""
        self._keys[life] = found
        return found

    def _store(self, life: Life, data_key: bytes) -> None:
        nonce = os.urandom(_NONCE_BYTES)
        wrapped = nonce + self._wrapping().encrypt(nonce, data_key, _bound(life))
        connection = self._open()
        if not connection.in_transaction:
            connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", (*life, wrapped))

    def _decrypt(self, key: "bytes | AESGCM", text: bytes, bound: bytes, what: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        cipher = self._cipher(key) if isinstance(key, bytes) else key
        try:
            return cipher.decrypt(text[:_NONCE_BYTES], text[_NONCE_BYTES:], bound)
        except InvalidTag:
            raise Damaged(
                f"{what} does not decrypt: it was changed, or root.key is not the one it was made with"
            ) from None

    def _cipher(self, key: bytes) -> "AESGCM":
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 30 ms: only where there are secrets

        return AESGCM(key)

    def _wrapping(self) -> "AESGCM":
        if self._root_key is None:
            self._root_key = self._cipher(self._read_root_key())
        return self._root_key

    def _read_root_key(self) -> bytes:
        path = self._root / "root.key"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            key = path.read_bytes()
            if len(key) == 32:
                return key
            if key or self._has_keys():
                raise Damaged(
                    f"{path}: {len(key)} bytes instead of 32; the secrets cannot be read without it"
                ) from None
            path.unlink()  # we died while making it, and nothing was sealed with it
            return self._read_root_key()
        key = os.urandom(32)
        try:
            os.write(fd, key)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(self._root)
        return key

    def _has_keys(self) -> bool:
        return self._open().execute("SELECT 1 FROM keys LIMIT 1").fetchone() is not None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            path = self._root / "keys.db"
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA synchronous = FULL")
            # A dropped key is overwritten in its page. The journal that may bring it back is unlinked at commit: for
            # that the locking mode must be NORMAL (EXCLUSIVE keeps the journal's file, old page and all).
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS keys (name TEXT, created INTEGER, wrapped BLOB NOT NULL,"
                " PRIMARY KEY (name, created))"
            )
            self._connection = connection
        return self._connection


def _bound(life: Life) -> bytes:
    return f"{life[1]} {life[0]}".encode()
