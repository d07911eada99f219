"""What the API fills in where an object says nothing: by hand, a file for each group. It checks nothing.

Defaults that need a clock, other objects or the cluster's settings (addresses, uids, a service account's name) belong to
admission in `api/`. Source: the descriptions of the API reference, and upstream's behaviour (1.37).
"""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.model.defaults import admission, apps, autoscaling, batch, core, networking, policy, storage
from wherry.model.kinds import Kind

TABLE: Mapping[Kind, Callable[[dict[str, Any]], None]] = {
    **core.TABLE,
    **apps.TABLE,
    **batch.TABLE,
    **autoscaling.TABLE,
    **networking.TABLE,
    **policy.TABLE,
    **storage.TABLE,
    **admission.TABLE,
}
"""For each kind that has defaults, the function that fills them in, in place."""
