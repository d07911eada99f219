"""Build checks: what a Dockerfile says that it probably does not mean, by the names of the published rules. Pure.

Source: Docker, "Build checks". What needs variables or the base's config is found while a stage is read (`reading.py`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from wherry.builder.instructions import Dockerfile, Instruction, Stage
from wherry.builder.source import Source
from wherry.content.oci import parse_platform
from wherry.errors import Invalid

RULES = (
    *(
        "ConsistentInstructionCasing",
        "CopyIgnoredFile",
        "DuplicateStageName",
        "ExposeInvalidFormat",
        "ExposeProtoCasing",
    ),
    *("FromAsCasing", "FromPlatformFlagConstDisallowed", "InvalidDefaultArgInFrom", "JSONArgsRecommended"),
    *("LegacyKeyValueFormat", "MaintainerDeprecated", "MultipleInstructionsDisallowed", "NoEmptyContinuation"),
    *("RedundantTargetPlatform", "ReservedStageName", "SecretsUsedInArgOrEnv", "StageNameCasing", "UndefinedArgInFrom"),
    *("UndefinedVar", "WorkdirRelativePath"),
)
"""The rules that are checked; a stage name that is taken (DuplicateStageName) is an error."""
RESERVED_STAGES = ("scratch", "context")
_SECRET = re.compile(r"(?:^|_)(?:apikey|auth|credentials?|git_token|key|password|passwd|pword|secret|token|pat)(?:_|$)")
_PUBLIC = re.compile(r"(?:^|_)public(?:_|$)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: its rule, its line's number, what was seen."""

    rule: str
    number: int
    text: str

    def said(self, source: Source) -> str:
        """Write it as `Dockerfile:LINE: TEXT (RULE)`."""
        return f"{source.name}:{self.number}: {self.text} ({self.rule})"


def of_file(dockerfile: Dockerfile) -> Iterator[Finding]:
    """What the text alone tells, of every stage, needed or not."""
    for number in dockerfile.source.gaps:
        yield Finding("NoEmptyContinuation", number, "a blank line within a continued line")
    yield from _casing(dockerfile)
    for stage in dockerfile.stages:
        yield from _of_from(stage.origin)
        yield from _of_stage(dockerfile, stage)
    for one in dockerfile.globals:
        yield from _secrets(one)


def _casing(dockerfile: Dockerfile) -> Iterator[Finding]:
    every = [*dockerfile.globals]
    for stage in dockerfile.stages:
        every += [stage.origin, *stage.instructions]
    upper = sum(one.word.isupper() for one in every)
    wanted = "upper" if upper >= sum(one.word.islower() for one in every) else "lower"
    for one in every:
        if not (one.word.isupper() if wanted == "upper" else one.word.islower()):
            text = f"{one.word!r}: the other instructions are in {wanted} case"
            yield Finding("ConsistentInstructionCasing", one.line.first, text)


def _of_from(one: Instruction) -> Iterator[Finding]:
    number = one.line.first
    platform = one.flags.get("platform", "")
    name = one.args[2] if len(one.args) > 2 else ""
    if name != name.lower():
        yield Finding("StageNameCasing", number, f"the stage name {name!r} should be lower case")
    if name.lower() in RESERVED_STAGES:
        yield Finding("ReservedStageName", number, f"the stage name {name!r} is reserved")
    if name and one.word.isupper() != one.args[1].isupper():
        yield Finding("FromAsCasing", number, f"{one.args[1]!r} and {one.word!r} should have the same case")
    if platform in ("$TARGETPLATFORM", "${TARGETPLATFORM}"):
        yield Finding("RedundantTargetPlatform", number, f"--platform={platform} is what FROM does by itself")
    elif platform and "$" not in platform:
        try:
            asked = parse_platform(platform)
        except Invalid:
            return
        if asked.os not in name and asked.architecture not in name:
            text = f"--platform={platform} is a constant: the image can be built for one platform only"
            yield Finding("FromPlatformFlagConstDisallowed", number, text)


def _of_stage(dockerfile: Dockerfile, stage: Stage) -> Iterator[Finding]:
    last: dict[str, Instruction] = {}
    has_shell = False
    for one in stage.instructions:
        number = one.line.first
        match one.name:
            case "SHELL":
                has_shell = True
            case "MAINTAINER":
                text = "MAINTAINER is deprecated: use LABEL org.opencontainers.image.authors"
                yield Finding("MaintainerDeprecated", number, text)
            case "CMD" | "ENTRYPOINT" if one.shell and not has_shell:
                text = f"{one.name} in the shell form: signals reach the shell only; write it as JSON"
                yield Finding("JSONArgsRecommended", number, text)
            case "ENV" | "LABEL" if one.legacy:
                yield Finding("LegacyKeyValueFormat", number, f"{one.name} KEY VALUE: write {one.name} KEY=VALUE")
            case _:
                pass
        yield from _secrets(one)
        if one.name in ("CMD", "ENTRYPOINT", "HEALTHCHECK"):
            if one.name in last:
                text = f"{one.name} stands more than once in this stage; only the last one counts"
                yield Finding("MultipleInstructionsDisallowed", last[one.name].line.first, text)
            last[one.name] = one
    for one in stage.instructions:
        if one.name == "WORKDIR":
            if not one.args[0].startswith(("/", "$", '"', "'")) and not _has_workdir(dockerfile, stage):
                text = f"WORKDIR {one.args[0]} is relative, and no absolute one is set before it"
                yield Finding("WorkdirRelativePath", one.line.first, text)
            break


def _has_workdir(dockerfile: Dockerfile, stage: Stage) -> bool:
    """Say whether a stage below it sets a WORKDIR."""
    for below in dockerfile.stages[: stage.index]:
        if below.name and below.name == stage.origin.args[0].lower():
            return any(one.name == "WORKDIR" for one in below.instructions) or _has_workdir(dockerfile, below)
    return False


def _secrets(one: Instruction) -> Iterator[Finding]:
    if one.name not in ("ARG", "ENV"):
        return
    for key, _ in one.pairs:
        name = key.lower()
        if _SECRET.search(name) and not _PUBLIC.search(name):
            text = f"{one.name} {key!r} looks like a secret, and would be in the image: use RUN --mount=type=secret"
            yield Finding("SecretsUsedInArgOrEnv", one.line.first, text)
