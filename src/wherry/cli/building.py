"""What `wherry build` can be asked for beyond docker's classic builder, in the words of buildx."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from wherry.cli.args import Option, Parsed, Usage
from wherry.cli.engine import Refused, call, part
from wherry.wire.blocking import Answer

MORE_OPTIONS = (
    Option("no-cache-filter", "a stage that is built without the cache", shape="many", metavar="STAGE"),
    Option("pull", "ask registries for newer base images", shape="flag"),
    Option("build-context", "NAME=DIRECTORY or NAME=docker-image://IMAGE", shape="many"),
    Option("secret", "id=ID,src=FILE or id=ID,env=NAME", shape="many"),
    Option("annotation", "KEY=VALUE, in the manifest", shape="many"),
    Option("network", "of RUN steps that name none", default="", choices=("", "default", "none", "host")),
    Option("cache-from", "type=local,src=DIRECTORY", shape="many"),
    Option("cache-to", "type=local,dest=DIRECTORY", default=""),
    Option(
        "output",
        "type=image|oci|docker|tar|local[,dest=PATH][,compression=gzip|zstd][,compression-level=N]",
        "o",
        "many",
    ),
    Option("check", "only say what the build checks find", shape="flag"),
)
OUTPUTS = ("image", "oci", "docker", "tar", "local")
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


def more_of(args: Parsed, outputs: Sequence[Mapping[str, str]]) -> str:
    """The door's own parameter, as JSON. Raises Usage."""
    import json

    contexts: dict[str, str] = {}
    for text in args.many("build-context"):
        name, equals, place = text.partition("=")
        if not equals or not name or not place:
            raise Usage("build", f"--build-context {text}: write NAME=DIRECTORY or NAME=docker-image://IMAGE")
        if "://" not in place and not os.path.isdir(place):
            raise Refused(f"--build-context {name}={place}: no such directory", 0)
        if "://" in place and not place.startswith("docker-image://"):
            raise Refused(f"--build-context {name}={place}: only directories and docker-image:// are supported", 0)
        contexts[name] = place if "://" in place else os.path.abspath(place)
    squeezed = next((each for each in outputs if "compression" in each), {})
    more: dict[str, object] = {
        "freshStages": args.many("no-cache-filter"),
        "pull": args.flag("pull"),
        "contexts": contexts,
        "annotations": dict(_pair("annotation", text) for text in args.many("annotation")),
        "network": args.text("network"),
        "cacheFrom": [_cache("cache-from", text, "src") for text in args.many("cache-from")],
        "cacheTo": _cache("cache-to", args.text("cache-to"), "dest") if args.text("cache-to") else "",
        "compression": squeezed.get("compression", ""),
        "compressionLevel": squeezed.get("compression-level", ""),
        "check": args.flag("check"),
    }
    return json.dumps({key: value for key, value in more.items() if value})


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


def write_output(id: str, output: Mapping[str, str]) -> None:
    """Write one output of a build that is done. Raises Refused."""
    kind, dest = output["type"], output["dest"]
    if kind == "image" or not id:
        return
    answer = call("GET", f"/images/{part(id)}/{'get' if kind in ('oci', 'docker') else 'rootfs'}", timeout_s=None)
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


def _cache(option: str, text: str, place: str) -> str:
    words = words_of(option, text, ("type", "src", "dest", "mode"))
    if words.get("type", "local") != "local" or place not in words:
        raise Refused(f"--{option} {text}: only type=local,{place}=DIRECTORY is supported", 0)
    return os.path.abspath(words[place])
