"""The pytest plugin: fixtures `cluster` (one real cluster for the session) and `namespace` (a fresh one for each test)."""
