"""How an image came to be, as SLSA provenance 0.2 or 1: from what, with which parameters. Pure.

Source: SLSA, "Provenance" 0.2 and 1.0; Docker, "SLSA definitions". With `whole` (mode=max) the build arguments and the
Dockerfile are in it, which must not hold secrets; without they are not. Values of secrets never are.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.builder.config import Json
from wherry.clock import rfc3339
from wherry.content.names import parse_name

TYPES = {"v0.2": "https://slsa.dev/provenance/v0.2", "v1": "https://slsa.dev/provenance/v1"}
BUILD_TYPE = "https://wherry.invalid/builder/v1"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a build. `images` are digests by (whole name, platform), `commits` by address. Times in unix seconds."""

    images: Mapping[tuple[str, str], str]
    commits: Mapping[str, str]
    context: str
    commit: str
    entry: str
    target: str
    platform: str
    args: Mapping[str, str]
    labels: Mapping[str, str]
    dockerfile: str
    started: float
    finished: float
    urls: Mapping[str, str] = field(default_factory=dict[str, str])
    secrets: Sequence[str] = ()
    agents: Sequence[str] = ()
    builder: str = ""
    invocation: str = ""


def materials(facts: Facts) -> list[Json]:
    """What went in: base images, repositories, fetched files with their check sums."""
    found: list[Json] = []
    for (name, platform), digest in sorted(facts.images.items()):
        parsed = parse_name(name)
        algorithm, _, value = digest.partition(":")
        version = f"@{parsed.tag}" if parsed.tag else ""
        path = parsed.repository.removeprefix("docker.io/library/").removeprefix("docker.io/")
        uri = f"pkg:docker/{path}{version}?platform={platform.replace('/', '%2F')}"
        found.append({"uri": uri, "digest": {algorithm: value}})
    commits = {**facts.commits, **({facts.context: facts.commit} if facts.commit else {})}
    found += [{"uri": uri, "digest": {"sha1": commit}} for uri, commit in sorted(commits.items())]
    for uri, checksum in sorted(facts.urls.items()):
        algorithm, _, value = checksum.partition(":")
        found.append({"uri": uri, "digest": {algorithm: value}} if value else {"uri": uri})
    return found


def predicate(facts: Facts, *, whole: bool, version: str) -> Json:
    """What is said of the build, in one of TYPES."""
    source: Json = {}
    if facts.context:
        source["uri"] = facts.context
    if facts.commit:
        source["digest"] = {"sha1": facts.commit}
    request: Json = {"frontend": "dockerfile.v0"}
    if whole:
        words = {"target": facts.target} if facts.target else {}
        words |= {f"build-arg:{name}": value for name, value in facts.args.items()}
        words |= {f"label:{name}": value for name, value in facts.labels.items()}
        request["args"] = words
        request["secrets"] = [{"id": id, "optional": True} for id in sorted(facts.secrets)]
        request["ssh"] = [{"id": id, "optional": True} for id in sorted(facts.agents)]
        request = {key: value for key, value in request.items() if value}
    text = {
        "filename": facts.entry,
        "sha256": hashlib.sha256(facts.dockerfile.encode()).hexdigest(),
        **({"data": facts.dockerfile} if whole else {}),
    }
    made = materials(facts)
    if version == "v1":
        return {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"configSource": {**source, "path": facts.entry}, "request": request},
                "internalParameters": {"builderPlatform": facts.platform, "dockerfile": text},
                "resolvedDependencies": made,
            },
            "runDetails": {
                "builder": {"id": facts.builder},
                "metadata": {
                    "invocationId": facts.invocation,
                    "startedOn": rfc3339(facts.started),
                    "finishedOn": rfc3339(facts.finished),
                },
            },
        }
    return {
        "builder": {"id": facts.builder},
        "buildType": BUILD_TYPE,
        "materials": made,
        "invocation": {
            "configSource": {**source, "entryPoint": facts.entry},
            "parameters": request,
            "environment": {"platform": facts.platform},
        },
        "metadata": {
            "buildInvocationID": facts.invocation,
            "buildStartedOn": rfc3339(facts.started),
            "buildFinishedOn": rfc3339(facts.finished),
            "completeness": {"parameters": whole, "environment": True, "materials": False},
            "reproducible": False,
            "https://wherry.invalid/metadata": {"dockerfile": text},
        },
    }
