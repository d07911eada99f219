"""The past: what objects were, who changed them, when and how, by a budget for each kind.

It reads the store's window like any watcher and files what it reads; it is not the store, and losing it loses no state.
README.md has its layout and what it promises.
"""
