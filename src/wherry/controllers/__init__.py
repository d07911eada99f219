"""Controllers: loops that bring what is nearer to what was asked for, one file each, and the runner that drives them.

Each file has what wakes it, one reconcile, one pure plan. They reach the cluster only through the API, each as its
own identity. They do not place pods (`scheduler/`), run them (`node/`) or keep state of their own.
"""
