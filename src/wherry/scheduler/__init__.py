"""The scheduler: which node each pod goes to, and why a pod goes nowhere.

Filters and scores are pure functions of a pod and a snapshot; each refusal is data with a stable code. The loop binds
through the API like anybody else. It does not start pods (`node/`), evict them (`controllers/`) or add nodes.
"""
