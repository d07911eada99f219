"""The present of a cluster: every key, its version, and a short complete window of writes.

It is not the past (that is `history`, a reader of this window) and knows no Kubernetes: keys are paths, values bytes.
`protocol.py` says what holds for every backend, `sqlite.py` is the embedded one. README.md shows the files on disk.
"""
