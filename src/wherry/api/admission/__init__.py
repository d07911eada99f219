"""Admission: what the cluster adds to an object, and what it refuses, after authorisation and before the store.

`chain.PLUGINS` is the whole table. A plug-in is a module with plain functions on a `Call`; it reads the cache and changes
`call.obj` in place, or raises. No plug-in writes.
"""

from wherry.api.admission.call import Call, forbidden, immutable
from wherry.api.admission.chain import PLUGINS, allocate, mutate, needs_lock, validate

__all__ = ["PLUGINS", "Call", "allocate", "forbidden", "immutable", "mutate", "needs_lock", "validate"]
