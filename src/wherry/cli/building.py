"""What `wherry build` can be asked for beyond docker's classic builder, in the words of buildx."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from wherry.cli.args import Option, Parsed, Usage
from wherry.cli.containers import size_bytes
from wherry.cli.contexts import is_address
from wherry.cli.engine import Refused, call, part
from wherry.wire.blocking import Answer

MORE_OPTIONS = (
    Option("no-cache-filter", "a stage that is built without the cache", shape="many", metavar="STAGE"),
    Option("pull", "ask registries for newer base images", shape="flag"),
    Option(
        "build-context",
        "NAME=DIRECTORY, docker-image://IMAGE, oci-layout://DIRECTORY[:TAG], or an address",
        shape="many",
    ),
    Option("secret", "id=ID,src=FILE or id=ID,env=NAME", shape="many"),
    Option("ssh", "default, or ID[=SOCKET|KEY,...]: an agent for steps that mount it, and for git", shape="many"),
    Option("platform", "build for these, into one index: linux/amd64,linux/arm64", shape="many"),
    Option("allow", "security.insecure: privileged steps; network.host", shape="many", metavar="RIGHT"),
    Option("annotation", "KEY=VALUE, in the manifest", shape="many"),
    Option("network", "of RUN steps that name none: default, none, host, or a network's name", default=""),
    Option("add-host", "NAME:ADDRESS, for RUN steps", shape="many"),
    Option("shm-size", "shared memory of RUN steps, such as 64m"),
    Option("ulimit", "NAME=SOFT[:HARD], for RUN steps", shape="many"),
    Option("memory", "limit of a RUN step, such as 512m", "m"),
    Option("cpuset-cpus", "the processors of RUN steps, such as 0-1", default=""),
    Option("cpu-shares", "their weight", shape="number"),
    Option("cpu-period", "of their quota, in microseconds", shape="number"),
    Option("cpu-quota", "microseconds in each period", shape="number"),
    Option("cache-from", "type=local,src=DIRECTORY or type=registry,ref=NAME", shape="many"),
    Option("cache-to", "type=local,dest=DIRECTORY, type=registry,ref=NAME or type=inline[,mode=min|max]", shape="many"),
    Option("sbom", "true: list the packages of the image beside it", default="", metavar="BOOL"),
    Option(
        "provenance",
        "true, mode=min or mode=max[,version=v1][,builder-id=ID]: say beside it how it was made",
        default="",
    ),
    Option("attest", "type=sbom, or type=provenance[,mode=min|max][,version=v0.2|v1]", shape="many"),
    Option(
        "output",
        "type=image|registry|oci|docker|tar|local[,dest=PATH][,compression=gzip|zstd][,compression-level=N]",
        "o",
        "many",
    ),
    Option("push", "send the image to its registry, too", shape="flag"),
    Option("load", "keep the image on this machine, which is done anyway", shape="flag"),
    Option("iidfile", "write the image's id into a file", default="", metavar="FILE"),
    Option("metadata-file", "write what came out into a file, as JSON", default="", metavar="FILE"),
    Option("progress", "how it is shown", default="auto", choices=("auto", "tty", "plain", "rawjson", "quiet")),
    Option("check", "only say what the build checks find", shape="flag"),
)
OUTPUTS = ("image", "registry", "oci", "docker", "tar", "local")
LAYOUT = "oci-layout://"
SEND_IT = 409
"""The engine sees another directory, or none, where we see the context."""
SECRETS_MAX_BYTES = 24 * 1024
"""All secrets of a build together: they travel in a header."""


def words_of(option: str, text: str, known: Sequence[str]) -> dict[str, str]:
    """Read `key=value,key=value`. Raises Usage."""
    found: dict[str, str] = {}
    for word in text.split(","):
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise Usage("build", f"--{option} {text}: {word!r} is none of {', '.join(f'{name}=' for name in known)}")
        found[key] = value
    return found


def outputs_of(args: Parsed) -> list[dict[str, str]]:
    """The outputs, with their defaults. Raises Usage."""
    made: list[dict[str, str]] = []
    for text in args.many("output"):
        if "=" not in text:
            text = "type=tar,dest=-" if text == "-" else f"type=local,dest={text}"
        words = words_of("output", text, ("type", "dest", "compression", "compression-level", "name"))
        kind = words.get("type", "image")
        if kind not in OUTPUTS:
            raise Usage("build", f"--output type={kind}: there are {', '.join(OUTPUTS)}")
        if "name" in words:
            raise Usage("build", "--output name=: name the image with -t")
        if kind == "local" and not words.get("dest"):
            raise Usage("build", "--output type=local needs dest=DIRECTORY")
        made.append({"type": kind, "dest": words.get("dest", "-"), **words})
    return made


def more_of(args: Parsed, outputs: Sequence[Mapping[str, str]]) -> dict[str, object]:
    """The door's own parameter. Raises Usage, Refused."""
    contexts: dict[str, str] = {}
    for text in args.many("build-context"):
        name, equals, place = text.partition("=")
        if not equals or not name or not place:
            raise Usage("build", f"--build-context {text}: write NAME=DIRECTORY or NAME=docker-image://IMAGE")
        if not is_address(place) and not os.path.isdir(place):
            raise Refused(f"--build-context {name}={place}: no such directory", 0)
        if place.startswith(LAYOUT):
            place = LAYOUT + os.path.abspath(place.removeprefix(LAYOUT))
        contexts[name] = place if is_address(place) else os.path.abspath(place)
    squeezed = next((each for each in outputs if "compression" in each), {})
    more: dict[str, object] = {
        "freshStages": args.many("no-cache-filter"),
        "pull": args.flag("pull"),
        "contexts": contexts,
        "annotations": dict(_pair("annotation", text) for text in args.many("annotation")),
        "network": args.text("network"),
        "cacheFrom": [_cache(text, "src") for text in args.many("cache-from")],
        "cacheTo": [_cache(text, "dest") for text in args.many("cache-to")],
        "platforms": platforms_of(args),
        "allow": [name for text in args.many("allow") for name in text.split(",")],
        **_attest(args),
        "compression": squeezed.get("compression", ""),
        "compressionLevel": squeezed.get("compression-level", ""),
        "check": args.flag("check"),
    }
    return {key: value for key, value in more.items() if value}


def around_of(args: Parsed) -> dict[str, object]:
    """What RUN steps find round them, in the words of the classic API. Raises Usage."""
    import json

    found: dict[str, object] = {"extrahosts": args.many("add-host")}
    for name in ("memory", "shm-size"):
        if args.text(name):
            found[name.replace("-", "")] = size_bytes(args.text(name))
    for name in ("cpuset-cpus", "cpu-shares", "cpu-period", "cpu-quota"):
        if args.text(name):
            found[name.replace("-", "")] = args[name]
    limits: list[dict[str, object]] = []
    for text in args.many("ulimit"):
        name, equals, values = text.partition("=")
        soft, _, hard = values.partition(":")
        if not equals or not re.fullmatch(r"-?\d+", soft) or not re.fullmatch(r"-?\d+", hard or soft):
            raise Usage("build", f"--ulimit {text}: write NAME=SOFT[:HARD], such as nofile=1024:2048")
        limits.append({"Name": name, "Soft": int(soft), "Hard": int(hard or soft)})
    if limits:
        found["ulimits"] = json.dumps(limits)
    return found


def platforms_of(args: Parsed) -> list[str]:
    """The platforms, each once."""
    return list(dict.fromkeys(name for text in args.many("platform") for name in text.split(",") if name))


def _attest(args: Parsed) -> dict[str, object]:
    """What is said of the image beside it. Raises Usage."""
    asked = args.many("attest")
    for option in ("sbom", "provenance"):
        text = args.text(option)
        if text.lower() in ("true", "1"):
            asked.append(f"type={option}")
        elif text and text.lower() not in ("false", "0"):
            asked.append(f"type={option},{text}")
    found: dict[str, object] = {}
    for text in asked:
        words = words_of("attest", text, ("type", "mode", "version", "builder-id"))
        kind = words.pop("type", "")
        if kind == "sbom" and not words:
            found["sbom"] = True
        elif kind == "provenance":
            if words.get("mode", "min") not in ("min", "max") or words.get("version", "v0.2") not in ("v0.2", "v1"):
                raise Usage("build", f"--attest {text}: mode is min or max, version v0.2 or v1")
            found["provenance"] = words.get("mode", "min")
            found |= {"provenanceVersion": words.get("version", ""), "builderId": words.get("builder-id", "")}
        else:
            raise Usage("build", f"--attest {text}: write type=sbom, or type=provenance[,mode=min|max]")
    return found


def ask_for_build(query: dict[str, object], headers: Mapping[str, str], tar: Iterator[bytes], place: str) -> Answer:
    """Ask for a build. An engine that sees the directory `place` too reads it by itself, and only what has changed.

    To another, and without a `place`, the context is sent as a tar. Raises Refused.
    """
    import json

    if place:
        from wherry.host.places import mark

        here = os.path.realpath(place)
        more = {**json.loads(str(query["wherry"])), "directory": here, "directoryMark": mark(here)}
        try:
            return call("POST", "/build", query={**query, "wherry": json.dumps(more)}, headers=headers, timeout_s=None)
        except Refused as refused:
            if refused.status != SEND_IT:
                raise
    return call("POST", "/build", query=query, data=tar, headers=headers, timeout_s=None)


def secrets_of(args: Parsed) -> dict[str, str]:
    """The header that carries the secrets; none without any. Raises Usage, Refused."""
    import base64
    import json

    values: dict[str, str] = {}
    total = 0
    for text in args.many("secret"):
        words = words_of("secret", text, ("id", "src", "source", "env", "type"))
        place = words.get("src") or words.get("source") or ""
        id = words.get("id") or os.path.basename(place)
        if not id:
            raise Usage("build", f"--secret {text}: write id=ID,src=FILE or id=ID,env=NAME")
        name = words.get("env") or ("" if place else id)
        if name in os.environ and not place:
            data = os.environ[name].encode(errors="surrogateescape")
        else:
            try:
                with open(place or id, "rb") as file:
                    data = file.read(SECRETS_MAX_BYTES + 1)
            except OSError as error:
                raise Refused(f"--secret id={id}: {place or name}: {error.strerror}", 0) from None
        total += len(data)
        values[id] = base64.b64encode(data).decode()
    if total > SECRETS_MAX_BYTES:
        raise Refused(f"--secret: all secrets together have more than {SECRETS_MAX_BYTES} bytes", 0)
    return {"X-Wherry-Secrets": base64.b64encode(json.dumps(values).encode()).decode()} if values else {}


def unpack(chunks: Iterable[bytes], dest: str, name: str) -> None:
    """Unpack a tar into a directory, by the same hands as layers: no entry comes to lie outside of it."""
    import tempfile

    from wherry.content.unpack import extract

    os.makedirs(dest, exist_ok=True)
    root = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tempfile.TemporaryFile() as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            file.seek(0)
            extract(file.fileno(), root, name=name, owners=os.geteuid() == 0, layer=False)
    finally:
        os.close(root)


def write_output(id: str, output: Mapping[str, str], tags: Sequence[str]) -> None:
    """Write one output of a build that is done; archives have its names in them. Raises Refused."""
    kind, dest = output["type"], output["dest"]
    if kind in ("image", "registry") or not id:
        return
    if kind in ("oci", "docker"):
        answer = call("GET", "/images/get", query={"names": list(tags) or [id]}, timeout_s=None)
    else:
        answer = call("GET", f"/images/{part(id)}/rootfs", timeout_s=None)
    try:
        if kind == "local":
            unpack(answer.chunks(), dest, "the image")
        elif dest == "-":
            for chunk in answer.chunks():
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        else:
            with open(dest, "wb") as file:
                for chunk in answer.chunks():
                    file.write(chunk)
    except OSError as error:
        raise Refused(f"--output {dest}: {error.strerror or error}", 0) from None
    finally:
        answer.close()


def _pair(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise Usage("build", f"--{option} {text}: write KEY=VALUE")
    return key, value


def _cache(text: str, place: str) -> str:
    """The words, with a directory as the engine sees it; the engine says what is wrong with them."""
    parts = text.split(",")
    return ",".join(
        f"{place}={os.path.abspath(part.partition('=')[2])}" if part.startswith(f"{place}=") else part for part in parts
    )
