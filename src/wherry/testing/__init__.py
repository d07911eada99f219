"""A real cluster inside a test: `Cluster`, and a pytest plugin with the fixtures `cluster` and `namespace`.

This room starts instances and speaks to them as people do, by the command and the API; it knows nothing of their inside.
"""

from wherry.testing.cluster import Cluster, ClusterError

__all__ = ["Cluster", "ClusterError"]
