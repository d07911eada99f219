"""A network namespace that stands in for the machine's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry.host import kernel, namespaces


@contextmanager
def moved_into_one(place: Path) -> Iterator[str]:
    """Move this thread into a new network namespace, and back; give its path."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    pins = str(place / "host")
    path = namespaces.create(pins, ("net",))["net"]
    fd = os.open(path, os.O_RDONLY)
    kernel.setns(fd, kernel.CLONE_NEWNET, path)
    os.close(fd)
    yield path
    kernel.setns(home, kernel.CLONE_NEWNET, "the test's own network")
    os.close(home)
    namespaces.remove(pins)
