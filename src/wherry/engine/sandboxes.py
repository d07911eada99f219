"""Sandboxes: namespaces pinned by mounts, an address, files for /etc, a cgroup. No process holds them.

A row with `ready` false is written first, and again with true when everything is made; what a kill leaves between the
two is taken away, and made again, by the next `ensure`. Everything here may be repeated.
"""

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from wherry.clock import machine
from wherry.engine import remaps
from wherry.engine.events import Events
from wherry.engine.networks import Networks
from wherry.engine.paths import Paths
from wherry.engine.records import Records, SandboxRecord
from wherry.engine.settings import EngineSettings
from wherry.engine.spec import DEFAULT_SHM_BYTES
from wherry.engine.types import Dns, Join, Limits, Sandbox, SandboxSpec
from wherry.errors import Broken, Conflict, Forbidden, Invalid, NotFound, Unsupported, WherryError
from wherry.host import cgroups, idmaps, mounts, namespaces, processes
from wherry.network.types import PodNetwork, PortBinding

log = logging.getLogger(__name__)

HOST_GATEWAY = "host-gateway"
_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_HOSTNAME = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9_])?|")
_ALLOWED_SYSCTLS = re.compile(r"net\..+|kernel\.(shm\w+|msg\w+|sem)|fs\.mqueue\..+")


class Sandboxes:
    """The sandboxes of one engine, by id."""

    def __init__(
        self,
        paths: Paths,
        records: Records,
        groups: cgroups.Cgroups,
        network: PodNetwork,
        events: Events,
        settings: EngineSettings,
        networks: Networks,
    ) -> None:
        self._paths = paths
        self._records = records
        self._groups = groups
        self._network = network
        self._events = events
        self._arrow = settings.arrow
        self.remap = remaps.read(settings.userns_remap)
        self._networks = networks
        self._networks.netns_of = self._netns_of
        self._rows: dict[str, SandboxRecord] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._boot_id = processes.boot_id()

    def open(self) -> None:
        """Read the rows; a sandbox of another boot, or with a pin missing, is not ready any more."""
        for record in self._records.sandboxes():
            whole = record.boot_id == self._boot_id and all(
                namespaces.is_pinned(str(self._pins(record.id) / kind)) for kind in _kinds(record)
            )
            if record.ready and not whole:
                record = replace(record, ready=False)
                self._records.put_sandbox(record)
            self._rows[record.id] = record
            if not any(_is_own(server) for server in record.spec.dns.servers):
                self._networks.resolvers[record.id] = list(record.spec.dns.servers)
        self._open_ways()

    def strays(self) -> Sequence[str]:
        """List directories of sandboxes that have no row."""
        directory = self._paths.run / "sandboxes"
        return [path.name for path in directory.iterdir() if path.name not in self._rows]

    def unfinished(self) -> Sequence[str]:
        """List the sandboxes whose removal a kill cut short."""
        return [record.id for record in self._rows.values() if record.removing]

    def find(self, id: str) -> Sandbox:
        """Find one. Raises NotFound."""
        return _sandbox(self.row(id), self._paths)

    def row(self, id: str) -> SandboxRecord:
        """Find a row. Raises NotFound."""
        record = self._rows.get(id)
        if record is None or record.removing:
            raise NotFound(f"sandbox {id}: there is none")
        return record

    def all(self) -> Sequence[Sandbox]:
        """List them, oldest first."""
        return [_sandbox(record, self._paths) for record in self._rows.values() if not record.removing]

    def states(self) -> Mapping[str, bool]:
        """Say of each that has a row, also of those that are being removed, whether it is ready."""
        return {id: record.ready for id, record in self._rows.items()}

    async def ensure(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox, or what is missing of it; return it at once when it is ready. Raises Invalid, Broken."""
        check(spec)
        async with self._lock(spec.id):
            record = self._rows.get(spec.id)
            if record is not None and record.removing:
                raise Conflict(f"sandbox {spec.id}: it is being removed")
            if record is not None and record.ready:
                return _sandbox(record, self._paths)
            is_new = record is None
            record = record or SandboxRecord(spec.id, spec, machine.now(), ids=self._choose_ids(spec))
            if spec.cgroup_parent and not record.made_parent:
                record = replace(record, made_parent=self._parent_to_make(spec))
            self._put(replace(record, boot_id=self._boot_id))
            self._arrow("sandbox:intent")
            try:
                address = await self._make(record)
            except BaseException:
                await asyncio.shield(self._unmake(record))
                if is_new:
                    self._drop(record.id)
                raise
            record = replace(record, ready=True, address=address, boot_id=self._boot_id)
            self._arrow("sandbox:made")
            self._put(record)
        if is_new:
            self._events.tell("sandbox", "create", spec.id, spec.labels)
        return _sandbox(record, self._paths)

    async def remove(self, id: str) -> None:
        """Take everything of a sandbox away (its containers are gone before); nothing if it is not there."""
        async with self._lock(id):
            record = self._rows.get(id)
            if record is None:
                return
            self._put(replace(record, removing=True))
            self._arrow("sandbox:removing")
            await self._unmake(record)
            self._drop(id)
        self._locks.pop(id, None)
        self._events.tell("sandbox", "destroy", id, record.spec.labels)

    async def about_to_run(self, id: str) -> None:
        """Publish the ports of a sandbox whose container is about to run. Raises Conflict when somebody has one."""
        record = self.row(id)
        address = record.address if _is_on_pods(record) else ""
        await self._networks.publish(id, record.spec, address, self._network.gateway)

    async def publish(self, id: str) -> None:
        """Publish the ports of a sandbox that several containers share, as long as it is there. Raises Conflict."""
        if not self._networks.ports_of(id):
            await self.about_to_run(id)

    def has_ended(self, id: str) -> None:
        """Give the ports of a sandbox back: its container has ended."""
        self._networks.unpublish(id)

    async def connect(self, id: str, join: Join) -> None:
        """Put a sandbox on one more network while it lives. Raises Forbidden, NotFound, Invalid, Broken."""
        async with self._lock(id):
            record = self._row_for_change(id)
            netns = self._netns(record)
            if self._networks.find(join.network).predefined:
                await self._connect_to_pods(record, netns)
                return
            await self._networks.join(id, netns, join, on_pods=_is_on_pods(record))
            await self._networks.lead(id, netns, self._on_pods(record))
            try:
                if self._networks.runs(id):  # until now it may have been on internal networks alone
                    await self.publish(id)
            except WherryError:
                await self._networks.leave(id, join.network)
                await self._networks.lead(id, netns, self._on_pods(record))
                raise
            self._refresh(record)

    async def disconnect(self, id: str, network: str) -> None:
        """Take a sandbox off a network while it lives. Raises Forbidden, NotFound, Broken."""
        async with self._lock(id):
            record = self._row_for_change(id)
            if not self._networks.find(network).predefined:
                await self._networks.leave(id, network)
            elif _is_on_pods(record):
                await self._network.detach(id)
                record = replace(record, off_pods=True)
            else:
                raise Forbidden(f"container {id} is not connected to network bridge")
            await self._networks.lead(id, self._netns(record), self._on_pods(record))
            self._refresh(record)

    async def _connect_to_pods(self, record: SandboxRecord, netns: str) -> None:
        if _is_on_pods(record):
            raise Forbidden(f"endpoint with name {record.id[:12]} already exists in network bridge")
        if any(each.interface == "eth0" for each in self._networks.endpoints_of(record.id)):
            raise Unsupported(
                "connecting to the default bridge beside networks of one's own is not supported by wherry: "
                "disconnect from those first"
            )
        if not netns:
            raise Conflict(f"container {record.id[:12]} was not started since the machine was: start it first")
        address = (await self._network.attach(record.id, netns, mac=record.spec.mac)).address
        record = replace(record, spec=replace(record.spec, network="pod"), off_pods=False, address=address)
        await self._networks.lead(record.id, netns, self._on_pods(record))
        self._refresh(record, address)

    def _netns(self, record: SandboxRecord) -> str:
        """The path of its network namespace; "" while it is to be made anew."""
        return str(self._pins(record.id) / "net") if record.ready else ""

    def _netns_of(self, id: str) -> tuple[str, bool]:
        record = self._rows.get(id)
        return (self._netns(record), _is_on_pods(record)) if record is not None and not record.removing else ("", False)

    def _on_pods(self, record: SandboxRecord) -> tuple[str, str] | None:
        """Its address and gateway on the pod network; None when it is not on that."""
        return (record.address, self._network.gateway) if _is_on_pods(record) else None

    def respec(self, id: str, ports: Sequence[PortBinding]) -> None:
        """Have other ports published when its container starts the next time."""
        record = self.row(id)
        self._put(replace(record, spec=replace(record.spec, ports=list(ports))))

    def address_towards(self, id: str, other: str) -> str:
        """Say where a sandbox finds another one: on a network that both are on; "" when there is none."""
        own, its = self.row(id), self.row(other)
        if _is_on_pods(own) and _is_on_pods(its):
            return its.address
        mine = {each.network for each in self._networks.endpoints_of(id)}
        return next((each.address for each in self._networks.endpoints_of(other) if each.network in mine), "")

    def link(self, id: str, lines: Sequence[str]) -> None:
        """Name other containers in a sandbox's hosts file, from now on."""
        record = self.row(id)
        if list(record.linked) != list(lines):
            self._refresh(replace(record, linked=list(lines)))

    def _row_for_change(self, id: str) -> SandboxRecord:
        record = self.row(id)
        if record.spec.network == "host":
            raise Forbidden("container cannot be disconnected from host network or connected to host network")
        if record.spec.network == "none":
            raise Forbidden(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
            )
        return record

    def _refresh(self, record: SandboxRecord, pod_address: str = "") -> None:
        """Write down a change of a sandbox's networks, and tell its containers by their files."""
        places = self._networks.endpoints_of(record.id)
        address = places[0].address if places else ""
        if _is_on_pods(record):
            address = pod_address or record.address
        record = replace(record, address=address)
        self._put(record)
        if record.ready:
            self._write_files(record, address)

    async def clear_stray(self, id: str) -> None:
        """Take away what is left of a sandbox without a row."""
        await self._network.detach(id)
        await self._networks.leave_all(id)
        await asyncio.to_thread(self._clear_directory, id)

    def cgroup(self, record: SandboxRecord) -> str:
        """Name a sandbox's group, relative to the engine's."""
        return self._cgroup_of(record.spec)

    def namespaces(self, record: SandboxRecord) -> dict[str, str]:
        """Name the pinned namespaces, by the OCI's kinds."""
        oci = {"user": "user", "net": "network", "ipc": "ipc", "uts": "uts"}
        return {oci[kind]: str(self._pins(record.id) / kind) for kind in _kinds(record)}

    def files(self, record: SandboxRecord) -> dict[str, str]:
        """Name the files that containers see below /etc, by their place there."""
        directory = self._paths.sandbox(record.id)
        return {f"/etc/{name}": str(directory / name) for name in ("hosts", "hostname", "resolv.conf")}

    def shm(self, record: SandboxRecord) -> str:
        """Name the shared memory of the sandbox's containers; "" when it is the machine's."""
        return "" if record.spec.host_ipc or record.spec.no_shm else str(self._paths.sandbox(record.id) / "shm")

    async def _make(self, record: SandboxRecord) -> str:
        spec = record.spec
        directory = self._paths.sandbox(spec.id)
        directory.mkdir(mode=0o700, exist_ok=True)
        if record.ids is not None:  # the runtime goes this way as the range's root
            os.chown(directory, 0, record.ids.base)
            directory.chmod(0o710)
        self._groups.create(self._cgroup_of(spec), None if spec.limits == Limits() else spec.limits)
        if record.ids is not None:
            await idmaps.create(
                str(self._pins(spec.id)),
                kinds_of(spec),
                record.ids,
                owner=self._owner(spec),
                hostname=spec.hostname,
                sysctls=_sysctls(spec),
            )
        elif kinds := kinds_of(spec):
            await namespaces.create_async(
                str(self._pins(spec.id)), kinds, hostname=spec.hostname, sysctls=_sysctls(spec)
            )
        self._arrow("sandbox:namespaces")
        address = ""
        netns = str(self._pins(spec.id) / "net")
        if _is_on_pods(record):
            address = (await self._network.attach(spec.id, netns, mac=spec.mac)).address
        if spec.network in ("pod", "user"):
            places = await self._networks.join_all(spec.id, netns, spec, on_pods=_is_on_pods(record))
            address = address or (places[0].address if places else "")
        if not spec.host_ipc and not spec.no_shm:
            shm = directory / "shm"
            is_new = not shm.exists()
            shm.mkdir(mode=0o1777, exist_ok=True)
            if is_new or not mounts.is_mounted(str(shm)):
                flags = mounts.NO_SUID | mounts.NO_DEV | mounts.NO_EXEC
                mounts.tmpfs(str(shm), size_bytes=spec.shm_bytes or DEFAULT_SHM_BYTES, mode=0o1777, flags=flags)
        self._write_files(record, address)
        return address

    def _write_files(self, record: SandboxRecord, address: str) -> None:
        """Write what containers see below /etc. In place: they have the files mounted."""
        spec, directory = record.spec, self._paths.sandbox(record.id)
        places = self._networks.endpoints_of(record.id)
        own = [each for place in places for each in (place.address, place.address6)]
        addresses = [each for each in dict.fromkeys((address, *own)) if each]
        gateway = self._network.gateway if _is_on_pods(record) else ""
        dns = spec.dns
        if places:
            gateway = places[0].gateway
            if not any(_is_own(server) for server in dns.servers):  # else it asks itself, and knows what it does
                self._networks.resolvers[record.id] = list(dns.servers)
                dns = replace(dns, servers=())
            dns = replace(dns, options=["ndots:0"]) if not dns.servers and not dns.options else dns
        (directory / "hostname").write_text(f"{spec.hostname or os.uname().nodename}\n")
        (directory / "hosts").write_text(hosts_file(spec, addresses, record.linked, gateway or self._network.gateway))
        (directory / "resolv.conf").write_text(resolv_conf(dns, gateway, _host_resolv_conf()))
        if record.ids is not None:
            for name in ("hostname", "hosts", "resolv.conf"):
                os.chown(directory / name, record.ids.base, record.ids.base)

    async def _unmake(self, record: SandboxRecord) -> None:
        """Undo `_make`, whatever of it was done. Raises Broken; it can then be done again."""
        if record.spec.network == "pod":
            await self._network.detach(record.id)
        await self._networks.leave_all(record.id)
        await asyncio.to_thread(self._clear_directory, record.id)
        group = self._cgroup_of(record.spec)
        await asyncio.to_thread(self._groups.kill, group)
        await asyncio.to_thread(self._groups.remove, group)
        if record.made_parent:
            await asyncio.to_thread(self._groups.remove_empty_above, group, record.made_parent)

    def _clear_directory(self, id: str) -> None:
        directory = self._paths.sandbox(id)
        namespaces.remove(str(self._pins(id)))
        mounts.unmount(str(directory / "shm"))
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)

    def _choose_ids(self, spec: SandboxSpec) -> idmaps.IdRange | None:
        if spec.userns.startswith(remaps.OF):
            return self.row(spec.userns.removeprefix(remaps.OF)).ids
        if self.remap is None or spec.userns == remaps.HOST:
            return None
        return self.remap.choose([row.ids for row in self._rows.values() if row.ids is not None])

    def _owner(self, spec: SandboxSpec) -> str:
        """Name the user namespace that a sandbox has of another; "" for one of its own."""
        if not spec.userns.startswith(remaps.OF):
            return ""
        return str(self._pins(spec.userns.removeprefix(remaps.OF)) / "user")

    def _open_ways(self) -> None:
        """Let the runtime pass to where remapped containers are: it goes there as the root of their range."""
        if self.remap is None:
            return
        run = self._paths.run
        if closed := idmaps.closed_to_others(str(run.parent)):
            raise Broken(
                f"userns-remap: the runtime of remapped containers cannot pass {closed}: chmod o+x {closed}, or choose another "
                "run directory"
            )
        for directory in (run, run / "sandboxes", self._paths.bundles):
            directory.chmod(0o711)
        for record in self._rows.values():
            directory = self._paths.sandbox(record.id)
            if record.ids is None and directory.is_dir():
                directory.chmod(0o700)

    def _parent_to_make(self, spec: SandboxSpec) -> str:
        """Name the topmost group above a sandbox's that is not there, or was made for one that has the same parent."""
        same = (row for row in self._rows.values() if row.spec.cgroup_parent == spec.cgroup_parent)
        return next((row.made_parent for row in same if row.made_parent), "") or self._groups.first_missing(
            self._cgroup_of(spec)
        )

    def _cgroup_of(self, spec: SandboxSpec) -> str:
        if spec.cgroup_parent:
            return f"{spec.cgroup_parent.rstrip('/')}/{spec.id}"
        return spec.cgroup or f"sandboxes/{spec.id}"

    def _pins(self, id: str) -> Path:
        return self._paths.sandbox(id) / "ns"

    def _lock(self, id: str) -> asyncio.Lock:
        return self._locks.setdefault(id, asyncio.Lock())

    def _put(self, record: SandboxRecord) -> None:
        self._records.put_sandbox(record)
        self._rows[record.id] = record

    def _drop(self, id: str) -> None:
        self._records.drop_sandbox(id)
        self._rows.pop(id, None)


def check(spec: SandboxSpec) -> None:
    """Refuse what cannot be. Raises Invalid, Unsupported."""
    if _ID.fullmatch(spec.id) is None:
        raise Invalid(f"sandbox id {spec.id!r}: letters, digits, '_', '.' and '-', at most 128")
    if spec.network not in ("pod", "user", "host", "none"):
        raise Invalid(f"sandbox {spec.id}: network {spec.network!r}: use pod, user, host or none")
    if _HOSTNAME.fullmatch(spec.hostname) is None:
        raise Invalid(f"sandbox {spec.id}: hostname {spec.hostname!r}: up to 64 letters, digits, '-', '_' and '.'")
    for name in spec.sysctls:
        if _ALLOWED_SYSCTLS.fullmatch(name) is None:
            raise Invalid(
                f"sandbox {spec.id}: sysctl {name} is not of a namespace: only net.*, kernel.shm*, kernel.msg*, "
                "kernel.sem and fs.mqueue.* are"
            )
        if name.startswith("net.") and spec.network == "host":
            raise Invalid(f"sysctl '{name}' not allowed in host network namespace: it would be the machine's")
        if not name.startswith("net.") and spec.host_ipc:
            raise Invalid(f"sysctl '{name}' not allowed in host ipc namespace: it would be the machine's")
    if spec.domain and _HOSTNAME.fullmatch(spec.domain) is None:
        raise Invalid(f"sandbox {spec.id}: domain name {spec.domain!r}: up to 64 letters, digits, '-' and '.'")
    if ".." in spec.cgroup_parent.split("/") or "\0" in spec.cgroup_parent:
        raise Invalid(f"sandbox {spec.id}: cgroup parent {spec.cgroup_parent!r}: a path without '..'")
    for name, address in spec.hosts:
        if address != HOST_GATEWAY and not _is_address(address):
            raise Invalid(f'invalid IP address in add-host: "{address}" for {name}')
    for server in spec.dns.servers:
        if not _is_address(server):
            raise Invalid(f"bad DNS server: {server} is not an ip address")
    if spec.share_pid:
        raise Unsupported(f"sandbox {spec.id}: one PID namespace for all containers is not supported yet")


def _is_address(text: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(text))
    return False


def kinds_of(spec: SandboxSpec) -> list[str]:
    """Say which namespaces a sandbox pins."""
    kinds = ["net"] if spec.network != "host" else []
    kinds += [] if spec.host_ipc else ["ipc"]
    return kinds + (["uts"] if spec.hostname and not spec.host_uts else [])


def _kinds(record: SandboxRecord) -> list[str]:
    return [*(["user"] if record.ids is not None else []), *kinds_of(record.spec)]


def _sysctls(spec: SandboxSpec) -> Mapping[str, str]:
    return (
        {**spec.sysctls, "kernel.domainname": spec.domain} if spec.domain and "uts" in kinds_of(spec) else spec.sysctls
    )


def full_name(spec: SandboxSpec) -> str:
    """Say the host name with its domain. Pure."""
    return f"{spec.hostname}.{spec.domain}" if spec.hostname and spec.domain else spec.hostname


def hosts_file(spec: SandboxSpec, addresses: Sequence[str], linked: Sequence[str] = (), host: str = "") -> str:
    """Write /etc/hosts: `spec.hosts` are names with their addresses, `linked` are lines of other containers. Pure.

    The address "host-gateway" is the machine's own (`host`).
    """
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", "fe00::0\tip6-localnet"]
    lines += ["ff02::1\tip6-allnodes", "ff02::2\tip6-allrouters"]
    if spec.hostname:
        names = dict.fromkeys((full_name(spec), full_name(spec).partition(".")[0]))  # with a domain, also without it
        lines += [f"{address}\t{' '.join(names)}" for address in addresses or ("127.0.1.1",)]
    lines += [f"{host if address == HOST_GATEWAY else address}\t{name}" for name, address in spec.hosts]
    lines += linked
    return "\n".join(lines) + "\n"


def resolv_conf(dns: Dns, gateway: str, host: str = "") -> str:
    """Write /etc/resolv.conf: the servers named, else `gateway`, else what the machine itself uses. Pure."""
    servers = list(dns.servers) or ([gateway] if gateway else [])
    lines = [f"nameserver {server}" for server in servers]
    if not servers:
        lines += [line for line in host.splitlines() if not dns.searches or not line.startswith("search")]
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "\n".join(lines) + "\n"


def _host_resolv_conf() -> str:
    with suppress(OSError):
        return Path("/etc/resolv.conf").read_text(errors="replace")
    return ""


def _is_own(server: str) -> bool:
    """Whether a DNS server is inside of the container that asks it."""
    return server.startswith("127.") or server == "::1"


def _is_on_pods(record: SandboxRecord) -> bool:
    return record.spec.network == "pod" and not record.off_pods


def _sandbox(record: SandboxRecord, paths: Paths) -> Sandbox:
    netns = str(paths.sandbox(record.id) / "ns" / "net") if record.spec.network != "host" else ""
    return Sandbox(record.id, record.spec, netns, record.address, record.created, record.ready)
