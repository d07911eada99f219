"""What a container uses while it runs, as events tell of it: networks and volumes."""

from collections.abc import Iterator, Mapping

from wherry.engine.lives import Life
from wherry.engine.networks import PREDEFINED, Networks
from wherry.engine.records import SandboxRecord

POD_NETWORK = "bridge"
"""What the pod network is called where Docker's names are used."""


def uses(life: Life, sandbox: SandboxRecord | None, networks: Networks) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Yield (kind, id, attributes) of each network and volume. Source: Docker's events, as a dockerd 20.10 tells them."""
    record = life.record
    if sandbox is not None and record.owns_sandbox and "network" not in record.spec.join:
        joined = [each.name for each in networks.endpoints_of(sandbox.id)]
        if sandbox.spec.network == "pod" and not sandbox.off_pods:
            joined.insert(0, POD_NETWORK)
        elif sandbox.spec.network in PREDEFINED:
            joined.insert(0, sandbox.spec.network)
        for name in joined:
            network = networks.find(name)
            yield "network", network.id, {"container": record.id, "name": name, "type": network.driver}
    for mount in record.spec.mounts:
        if mount.kind == "volume":
            said = {
                "container": record.id, "destination": mount.target, "driver": "local", "propagation": "",
                "read/write": "false" if mount.read_only else "true",
            }  # fmt: skip
            yield "volume", mount.source, said
