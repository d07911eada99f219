"""What the engine writes, held against the schemas that the Open Container Initiative publishes.

    python -m tests.engine.schemas RUNTIME_SPEC/schema IMAGE_SPEC/schema

The two directories are those of the repositories opencontainers/runtime-spec and opencontainers/image-spec. It runs
containers of many kinds and reads the runtime's `config.json` of each; builds, commits, saves and imports images and reads
the layout, index, manifests and configs. It prints a line for each document and ends with 1 when one does not fit. Needs root
and the package jsonschema. test_documents.py pins, without these files, what this has shown.
"""

import asyncio
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from tests.engine.boxes import Place, put_image, spec

from wherry.engine.local import LocalEngine
from wherry.engine.types import DeviceMap, Limits, Mount, SandboxSpec, Ulimit

KINDS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "limited": {
        "limits": Limits(
            cpu_quota_us=50_000, cpu_shares=512, memory_bytes=64 << 20, memory_swap_bytes=128 << 20, pids=33, cpuset_cpus="0",
            cpuset_mems="0", memory_reservation_bytes=32 << 20,
        ),
        "ulimits": [Ulimit("nofile", 100, 200)], "oom_score_adj": 500,
    },
    "mounted": {
        "mounts": [
            Mount("/v", "named", kind="volume"), Mount("/a", kind="volume"), Mount("/t", kind="tmpfs", options=["size=1m"]),
            Mount("/b", "/etc", read_only=True),
        ],
        "read_only_root": True, "init": True,
    },
    "privileged": {"privileged": True, "tty": True, "stdin": True},
    "held": {
        "cap_drop": ["ALL"], "cap_add": ["CAP_CHOWN"], "no_new_privileges": True, "user": "ann", "groups": [7],
        "devices": [DeviceMap("/dev/null", "/dev/nothing")], "device_rules": ["c 189:* rwm"], "seccomp": "unconfined",
    },
    "of the machine": {
        "sandbox_spec": SandboxSpec(id="", hostname="", network="host", host_pid=True, host_ipc=True, userns="host")
    },
}  # fmt: skip


async def documents(place: Place, **settings: Any) -> AsyncIterator[tuple[str, str, Any]]:
    """Yield (name, schema, document) for everything that an engine writes."""
    content = place.content()
    async with place.engine(content, **settings) as engine:
        await put_image(content, engine, place.base / "source")
        for name, further in KINDS.items():
            if settings.get("userns_remap") and further.get("privileged"):
                continue
            made = await engine.create(spec("/bin/sleep", "9", name="c", **further))
            yield (
                f"config.json, {name}",
                "config",
                json.loads((place.run / "containers" / made.id / "config.json").read_bytes()),
            )
            if name == "plain":
                await engine.commit("c", ["new:1"], {"Cmd": ["/bin/true"]}, author="a", message="m", pause=False)
            await engine.remove("c", force=True)
        await engine.import_image(_tar(), ["flat:1"], {}, message="", platform="linux/arm64")
        async for found in _layout(engine, ["box:1", "new:1", "flat:1"]):
            yield found
        await engine.settled()
    await content.close()


async def _layout(engine: LocalEngine, names: list[str]) -> AsyncIterator[tuple[str, str, Any]]:
    data = b"".join([piece async for piece in engine.save(names)])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:

        def read(path: str) -> Any:
            file = tar.extractfile(path)
            assert file is not None
            return json.loads(file.read())

        yield "oci-layout", "layout", read("oci-layout")
        index = read("index.json")
        yield "index.json", "index", index
        for entry in index["manifests"]:
            name = entry.get("annotations", {}).get("io.containerd.image.name", entry["digest"])
            manifest = read("blobs/" + entry["digest"].replace(":", "/"))
            yield f"manifest of {name}", "manifest", manifest
            yield f"config of {name}", "image", read("blobs/" + manifest["config"]["digest"].replace(":", "/"))


async def _tar() -> AsyncIterator[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    yield buffer.getvalue()


def checkers(runtime: Path, image: Path) -> Mapping[str, Any]:
    """Load a validator for each schema; references between the files of a directory are followed."""
    import jsonschema
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT4

    def load(directory: Path, name: str) -> Any:
        bodies = {file.name: json.loads(file.read_bytes()) for file in directory.glob("*.json")}
        bodies = {name: _without_ids(body) for name, body in bodies.items()}
        made = [(at, Resource.from_contents(body, default_specification=DRAFT4)) for at, body in bodies.items()]
        registry: Any = Registry().with_resources(made)
        return jsonschema.Draft4Validator(bodies[name], registry=registry)

    return {
        "config": load(runtime, "config-schema.json"),
        "layout": load(image, "image-layout-schema.json"),
        "index": load(image, "image-index-schema.json"),
        "manifest": load(image, "image-manifest-schema.json"),
        "image": load(image, "config-schema.json"),
    }


def _without_ids(body: Any) -> Any:
    """Leave out the addresses that schemas give themselves: they refer to each other by file."""
    if isinstance(body, list):
        return [_without_ids(each) for each in body]
    if not isinstance(body, dict):
        return body
    return {
        key: _without_ids(value)
        for key, value in body.items()
        if not (key == "id" and isinstance(value, str) and value.startswith("https://opencontainers.org/"))
    }


async def main(runtime: Path, image: Path) -> int:
    found = 0
    known = checkers(runtime, image)
    for settings in ({}, {"runtime": "runc"}, {"userns_remap": "auto:300000:655360"}):
        with tempfile.TemporaryDirectory(prefix="wherry-schemas-") as base:
            Path(base).chmod(0o711)
            place = Place(Path(base))
            try:
                async for name, schema, document in documents(place, **settings):
                    errors = list(known[schema].iter_errors(document))
                    print(f"{'does not fit' if errors else 'fits':14}{name} {settings or ''}")
                    for error in errors:
                        print(f"    {'/'.join(map(str, error.absolute_path))}: {error.message[:300]}")
                    found += bool(errors)
            finally:
                place.clear()
    return min(found, 1)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]))))
