"""The tables of the registry's records, as a list of steps: each is done once, in order, by whoever opens the file."""

_FIRST = """
CREATE TABLE IF NOT EXISTS repositories (name TEXT PRIMARY KEY, created REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (repository TEXT, tag TEXT, digest TEXT NOT NULL, updated REAL NOT NULL,
  PRIMARY KEY (repository, tag)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tags_by_digest ON tags (repository, digest);
CREATE TABLE IF NOT EXISTS manifests (repository TEXT, digest TEXT, media_type TEXT NOT NULL, size INTEGER NOT NULL,
  pushed REAL NOT NULL, subject TEXT NOT NULL, artifact_type TEXT NOT NULL, descriptor BLOB NOT NULL,
  PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS manifests_by_subject ON manifests (repository, subject) WHERE subject != '';
CREATE TABLE IF NOT EXISTS children (repository TEXT, parent TEXT, child TEXT,
  PRIMARY KEY (repository, parent, child)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS children_by_child ON children (repository, child);
CREATE TABLE IF NOT EXISTS links (repository TEXT, digest TEXT, PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (id TEXT PRIMARY KEY, repository TEXT NOT NULL, started REAL NOT NULL) WITHOUT ROWID;
"""

# `size` of a link is -1 where an older format did not note it: start fills it in. `space` counts, for each scope (a
# repository, or `NAMESPACE/`), how many links and manifests name a digest; `usage` is the sum of the sizes in it.
_SECOND = """
ALTER TABLE repositories ADD COLUMN visibility TEXT NOT NULL DEFAULT '';
ALTER TABLE repositories ADD COLUMN settings BLOB NOT NULL DEFAULT '{}';
ALTER TABLE repositories ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE manifests ADD COLUMN pulled REAL NOT NULL DEFAULT 0;
ALTER TABLE manifests ADD COLUMN tagged REAL NOT NULL DEFAULT 0;
ALTER TABLE manifests ADD COLUMN hold TEXT NOT NULL DEFAULT '';
ALTER TABLE links ADD COLUMN size INTEGER NOT NULL DEFAULT -1;
ALTER TABLE links ADD COLUMN linked REAL NOT NULL DEFAULT 0;
CREATE INDEX links_by_digest ON links (digest);
CREATE TABLE space (scope TEXT, digest TEXT, n INTEGER NOT NULL, size INTEGER NOT NULL,
  PRIMARY KEY (scope, digest)) WITHOUT ROWID;
CREATE TABLE usage (scope TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE quotas (scope TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE templates (prefix TEXT PRIMARY KEY, settings BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, actor TEXT NOT NULL,
  address TEXT NOT NULL, action TEXT NOT NULL, repository TEXT NOT NULL, reference TEXT NOT NULL,
  digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX events_by_repository ON events (repository, seq);
CREATE INDEX events_by_actor ON events (actor, seq);
CREATE INDEX events_by_time ON events (at);
CREATE TABLE webhooks (id TEXT PRIMARY KEY, body BLOB NOT NULL, secret TEXT NOT NULL, position INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE TABLE deliveries (id INTEGER PRIMARY KEY AUTOINCREMENT, hook TEXT NOT NULL, event INTEGER NOT NULL,
  body BLOB NOT NULL, attempts INTEGER NOT NULL, due REAL NOT NULL, state TEXT NOT NULL, status INTEGER NOT NULL,
  answer TEXT NOT NULL, created REAL NOT NULL);
CREATE INDEX deliveries_by_hook ON deliveries (hook, id);
CREATE INDEX deliveries_due ON deliveries (due) WHERE state = 'waiting';
CREATE TABLE meter (repository TEXT, day TEXT, pulls INTEGER NOT NULL, pushes INTEGER NOT NULL,
  bytes_out INTEGER NOT NULL, bytes_in INTEGER NOT NULL, stored INTEGER NOT NULL,
  PRIMARY KEY (repository, day)) WITHOUT ROWID;
CREATE TABLE people (name TEXT PRIMARY KEY, kind TEXT NOT NULL, password TEXT NOT NULL, created REAL NOT NULL,
  admin INTEGER NOT NULL, disabled INTEGER NOT NULL, email TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE members (team TEXT, person TEXT, PRIMARY KEY (team, person)) WITHOUT ROWID;
CREATE INDEX members_by_person ON members (person);
CREATE TABLE tokens (id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, secret TEXT NOT NULL,
  scope BLOB NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX tokens_by_owner ON tokens (owner);
CREATE TABLE policies (target TEXT, name TEXT, document BLOB NOT NULL, PRIMARY KEY (target, name)) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""

# What registry/bucket.py keeps: `present` is 1 once a blob's object is whole.
_THIRD = """
CREATE TABLE pile_blobs (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, present INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE pile_holds (holder TEXT, digest TEXT, PRIMARY KEY (holder, digest)) WITHOUT ROWID;
CREATE TABLE pile_refs (parent TEXT, child TEXT, PRIMARY KEY (parent, child)) WITHOUT ROWID;
CREATE TABLE pile_leases (id TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE pile_covers (lease TEXT, digest TEXT, PRIMARY KEY (lease, digest)) WITHOUT ROWID;
CREATE TABLE pile_uploads (id TEXT PRIMARY KEY, touched REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE pile_segments (upload TEXT, start INTEGER, size INTEGER NOT NULL, object TEXT NOT NULL,
  PRIMARY KEY (upload, start)) WITHOUT ROWID;
"""

# Repositories that stand for another registry's, when each tag was last looked up there; copies to other registries.
_FOURTH = """
CREATE TABLE upstreams (prefix TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE upstream_tags (repository TEXT, tag TEXT, checked REAL NOT NULL, PRIMARY KEY (repository, tag)) WITHOUT ROWID;
CREATE TABLE replications (id TEXT PRIMARY KEY, body BLOB NOT NULL, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE copies (id INTEGER PRIMARY KEY AUTOINCREMENT, rule TEXT NOT NULL, action TEXT NOT NULL,
  repository TEXT NOT NULL, reference TEXT NOT NULL, digest TEXT NOT NULL, attempts INTEGER NOT NULL, due REAL NOT NULL,
  state TEXT NOT NULL, answer TEXT NOT NULL, created REAL NOT NULL);
CREATE INDEX copies_by_rule ON copies (rule, id);
CREATE INDEX copies_due ON copies (due) WHERE state = 'waiting';
"""

MIGRATIONS = (_FIRST, _SECOND, _THIRD, _FOURTH)
