"""An engine and a registry that each stand alone on one root: they share a content store, so nothing is sent between them.

The registry says in a file where it listens; the engine looks there when an image's name says that address, and speaks to the
registry's socket: what is pushed is told of by its manifests alone, and what is pulled is there.
"""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SOCKET = "registry.sock"
ADDRESS = "registry-address"
PROBE_S = 1.0
EVERYWHERE = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def tell(root: Path, host: str, port: int) -> Callable[[], None]:
    """Say that a registry listens there; what is returned takes that back."""
    place = root / ADDRESS
    fresh = place.with_suffix(".new")
    fresh.write_text(f"{host} {port}\n")
    os.replace(fresh, place)
    return lambda: place.unlink(missing_ok=True)


def endpoint(root: Path, domain: str) -> str:
    """Give the endpoint of the registry on `root` where an image's `domain` says it; "" where it does not, or none runs."""
    with suppress(OSError, ValueError):
        host, port = (root / ADDRESS).read_text().split()
        if domain in names(host, int(port)):
            with socket.socket(socket.AF_UNIX) as probe:  # one that was killed has left its files
                probe.settimeout(PROBE_S)
                probe.connect(str(root / SOCKET))
            return f"unix:{root / SOCKET}"
    return ""


def names(host: str, port: int) -> frozenset[str]:
    """Say by which names images can mean a registry that listens on an address. Pure."""
    shown = f"[{host}]" if ":" in host else host
    all_names = (*LOOPBACK, shown) if host in EVERYWHERE or shown in LOOPBACK else (shown,)
    return frozenset(f"{name}:{port}" for name in all_names)
