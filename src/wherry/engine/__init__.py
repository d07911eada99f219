"""Containers of this machine: images by name, snapshots, sandboxes, containers, exec, logs.

`types` has the nouns and the `Engine` protocol, `local.LocalEngine` is the one implementation; README.md draws the states.
It is not: a cluster's node (that decides what should run, and when again), nor a door (that speaks somebody's wire format).
"""
