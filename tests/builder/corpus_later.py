"""Dockerfiles of the later language: what each means, how each is refused, what each is warned of."""

from dataclasses import dataclass, field
from typing import Any

from tests.builder.corpus import PATH, Bad, Good


@dataclass(frozen=True)
class Warned:
    """A Dockerfile, and the rules (with lines) that it is warned by."""

    name: str
    text: str
    rules: tuple[tuple[str, int], ...]
    args: dict[str, str] = field(default_factory=dict[str, str])


def health(**more: Any) -> dict[str, Any]:
    """The config of a health check."""
    return {"Healthcheck": more}


S = "FROM scratch\n"

GOOD = (
    Good("ADD of a file", S + "ADD a /b\n", ("ADD a /b",)),
    Good("ADD in JSON form", S + 'ADD ["a b", "/c/"]\n', ("ADD a b /c/",)),
    Good(
        "ADD of a URL with its sum",
        S + f"ADD --checksum=sha256:{'0' * 64} https://example.com/a.tgz /a/\n",
        (f"ADD --checksum=sha256:{'0' * 64} https://example.com/a.tgz /a/",),
    ),
    Good(
        "ADD with its flags",
        S + "ADD --chown=1:2 --chmod=644 --link a /\n",
        ("ADD --chown=1:2 --chmod=644 --link=true a /",),
    ),
    Good("HEALTHCHECK NONE", S + "HEALTHCHECK NONE\n", ("HEALTHCHECK NONE",), health(Test=["NONE"])),
    Good(
        "HEALTHCHECK in shell form",
        S + "HEALTHCHECK CMD curl -f http://localhost/ || exit 1\n",
        ("HEALTHCHECK CMD curl -f http://localhost/ || exit 1",),
        health(Test=["CMD-SHELL", "curl -f http://localhost/ || exit 1"]),
    ),
    Good(
        "HEALTHCHECK with its times",
        S
        + 'HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=0 --start-interval=2s --retries=5 CMD ["/check"]\n',
        ("HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=0 --start-interval=2s --retries=5 CMD /check",),
        health(
            Test=["CMD", "/check"],
            Interval=90_000_000_000,
            Timeout=500_000_000,
            StartPeriod=0,
            StartInterval=2_000_000_000,
            Retries=5,
        ),
    ),
    Good(
        "the last HEALTHCHECK wins",
        S + "HEALTHCHECK CMD a\nHEALTHCHECK NONE\n",
        ("HEALTHCHECK CMD a", "HEALTHCHECK NONE"),
        health(Test=["NONE"]),
    ),
    Good(
        "VOLUME of words",
        S + "ENV V=/c\nVOLUME /a $V\n",
        ("ENV V=/c", "VOLUME [/a /c]"),
        {"Volumes": {"/a": {}, "/c": {}}},
    ),
    Good("VOLUME in JSON form", S + 'VOLUME ["/a b"]\n', ("VOLUME [/a b]",), {"Volumes": {"/a b": {}}}),
    Good("STOPSIGNAL by name", S + "STOPSIGNAL SIGQUIT\n", ("STOPSIGNAL SIGQUIT",), {"StopSignal": "SIGQUIT"}),
    Good(
        "STOPSIGNAL by number and variable",
        S + "ARG N=9\nSTOPSIGNAL $N\n",
        ("ARG N=9", "STOPSIGNAL 9"),
        {"StopSignal": "9"},
    ),
    Good(
        "SHELL is for what follows it",
        S + 'RUN a\nSHELL ["/bin/bash", "-c"]\nRUN b\nCMD c\n',
        ("RUN /bin/sh -c a", 'SHELL ["/bin/bash" "-c"]', "RUN /bin/bash -c b", 'CMD ["/bin/bash" "-c" "c"]'),
        {"Shell": ["/bin/bash", "-c"], "Cmd": ["/bin/bash", "-c", "c"]},
    ),
    Good("exec form needs no SHELL", S + 'SHELL ["/b"]\nRUN ["a"]\n', ('SHELL ["/b"]', "RUN a")),
    Good(
        "ONBUILD is kept for later",
        S + "ONBUILD RUN a $B\nONBUILD COPY . /\n",
        ("ONBUILD RUN a $B", "ONBUILD COPY . /"),
        {"OnBuild": ["RUN a $B", "COPY . /"]},
    ),
    Good(
        "ONBUILD of a stage",
        "FROM scratch AS a\nONBUILD ENV A=1\nFROM a\nRUN b\n",
        ("ENV A=1", "RUN /bin/sh -c b"),
        {"Env": [PATH, "A=1"], "OnBuild": None},
        stages=(0, 1),
    ),
    Good("MAINTAINER", S + "MAINTAINER me <me@example.com>\n", ("MAINTAINER me <me@example.com>",)),
    Good(
        "a heredoc is a script",
        S + "RUN <<EOF\necho a\necho $b\nEOF\nRUN c\n",
        ("RUN /bin/sh -c echo a\necho $b\n", "RUN /bin/sh -c c"),
    ),
    Good("a heredoc without tabs", S + "RUN <<-END\n\t\ta\n\tEND\n", ("RUN /bin/sh -c a\n",)),
    Good("a heredoc with its own interpreter", S + "RUN <<EOF\n#!/bin/ash\na\nEOF\n", ("RUN <<EOF (#!/bin/ash\na)",)),
    Good(
        "a heredoc for a command",
        S + "RUN cat <<EOF > /x\na # no comment\n\nb \\\nEOF\n",
        ("RUN /bin/sh -c cat <<EOF > /x\na # no comment\n\nb \\\nEOF\n",),
    ),
    Good(
        "two heredocs",
        S + "RUN a <<A b <<B\n1\nA\n2\nB\nRUN c\n",
        ("RUN /bin/sh -c a <<A b <<B\n1\nA\n2\nB\n", "RUN /bin/sh -c c"),
    ),
    Good("COPY of a heredoc", S + "COPY <<EOF /a\nx\nEOF\n", ("COPY <<EOF /a",)),
    Good("COPY of two heredocs", S + "COPY <<a <<b /d/\n1\na\n2\nb\n", ("COPY <<a <<b /d/",)),
    Good("ADD of a heredoc", S + "ADD <<EOF /a\nEOF\n", ("ADD <<EOF /a",)),
    Good("ONBUILD with a heredoc's mark in quotes", S + "ONBUILD RUN echo '<<EOF'\n", ("ONBUILD RUN echo '<<EOF'",)),
    Good("a cache mount", S + "RUN --mount=type=cache,target=/c a\n", ("RUN /bin/sh -c a",)),
    Good(
        "mounts of every kind",
        S + "RUN --mount=target=/b --mount=type=tmpfs,dst=/t,size=1m --mount=type=secret,id=s a\n",
        ("RUN /bin/sh -c a",),
    ),
    Good(
        "a mount with variables",
        S + "ARG D=/x\nRUN --mount=type=cache,id=$D,target=$D/y a\n",
        ("ARG D=/x", "RUN |1 D=/x /bin/sh -c a"),
    ),
    Good(
        "a mount from a stage needs the stage",
        "FROM base AS a\nRUN one\nFROM base AS b\nFROM scratch\nRUN --mount=from=a,target=/a x\n",
        ("RUN /bin/sh -c x",),
        stages=(0, 2),
    ),
    Good(
        "networks",
        S + "RUN --network=none a\nRUN --network=host b\nRUN --network=default c\n",
        ("RUN /bin/sh -c a", "RUN /bin/sh -c b", "RUN /bin/sh -c c"),
    ),
    Good(
        "ADD of git repositories",
        S
        + "ADD https://a.example/b.git#v1:sub git@a.example:b/c.git /c/\nADD --keep-git-dir --checksum=0123456 git://a/b /d\n",
        (
            "ADD https://a.example/b.git#v1:sub git@a.example:b/c.git /c/",
            "ADD --keep-git-dir=true --checksum=0123456 git://a/b /d",
        ),
    ),
    Good("a mount of ssh", S + "RUN --mount=type=ssh a\n", ("RUN /bin/sh -c a",)),
    Good("another platform", "FROM --platform=linux/s390x scratch\n", ()),
    Good("the default security", S + "RUN --security=sandbox a\n", ("RUN /bin/sh -c a",)),
    Good("COPY --link", S + "COPY --link a /\n", ("COPY --link=true a /",)),
    Good("COPY --link=false", S + "COPY --link=false a /\n", ("COPY --link=false a /",)),
    Good("COPY --parents", S + "COPY --parents ./x/a y/./b /d/\n", ("COPY --parents=true ./x/a y/./b /d/",)),
    Good("COPY --exclude twice", S + "COPY --exclude=*.md --exclude=b . /\n", ("COPY --exclude=*.md --exclude=b . /",)),
    Good("a symbolic mode", S + "COPY --chmod=u=rwX,go=rX a /\n", ("COPY --chmod=u=rwX,go=rX a /",)),
    Good("a mode from a variable", S + "ARG M=755\nCOPY --chmod=$M a /\n", ("ARG M=755", "COPY --chmod=$M a /")),
    Good("a check directive", "# check=skip=all\nFROM scratch AS A\n", ()),
    Good("all directives", "# syntax=docker/dockerfile:1\n# escape=`\n# check=error=false\nFROM scratch\n", ()),
    Good(
        "a hash bang before the directives",
        "#!/usr/bin/env docker\n# escape=`\nFROM scratch\nRUN a `\n b\n",
        ("RUN /bin/sh -c a  b",),
    ),
    Good("several ARGs in one line", S + "ARG A=1 B C=3\nLABEL x=$A$B$C\n", ("ARG A=1 B C=3", "LABEL x=13")),
    Good(
        "an ARG's default from an outer ARG",
        "ARG A=1\nFROM scratch\nARG A\nARG B=${A}2\nLABEL b=$B\n",
        ("ARG A=1", "ARG B=12", "LABEL b=12"),
    ),
    Good(
        "a proxy's value is in no history",
        S + "ARG HTTP_PROXY\nRUN a\n",
        ("ARG HTTP_PROXY", "RUN /bin/sh -c a"),
        args={"HTTP_PROXY": "http://secret"},
    ),
    Good(
        "EXPOSE with a host's port",
        S + "EXPOSE 127.0.0.1:80:8080/TCP\n",
        ("EXPOSE 8080/tcp",),
        {"ExposedPorts": {"8080/tcp": {}}},
    ),
    Good("words around AS", "FROM scratch as x\nFROM x As y\n", (), stages=(0, 1)),
    Good(
        "ENTRYPOINT in shell form",
        S + "ENTRYPOINT exec a\n",
        ('ENTRYPOINT ["/bin/sh" "-c" "exec a"]',),
        {"Entrypoint": ["/bin/sh", "-c", "exec a"]},
    ),
    Good("an empty CMD", S + "CMD []\n", ("CMD []",), {"Cmd": []}),
    Good("the last of several CMDs", S + 'CMD ["a"]\nCMD ["b"]\n', ('CMD ["a"]', 'CMD ["b"]'), {"Cmd": ["b"]}),
    Good(
        "USER with a group from variables",
        S + "ARG U=7 G=8\nUSER $U:$G\n",
        ("ARG U=7 G=8", "USER 7:8"),
        {"User": "7:8"},
    ),
    Good(
        "WORKDIR with a variable", S + "ENV D=/d\nWORKDIR $D/e\n", ("ENV D=/d", "WORKDIR /d/e"), {"WorkingDir": "/d/e"}
    ),
    Good(
        "a label with dots, quotes and a line's end",
        S + 'LABEL a="1 \\\n2"\n',
        ("LABEL a=1 2",),
        {"Labels": {"a": "1 2"}},
    ),
    Good("the required modifier on what is set", S + "ARG A=1\nLABEL a=${A:?no}\n", ("ARG A=1", "LABEL a=1")),
    Good(
        "patterns with any number of names",
        S + "ENV A=a/b/c\nLABEL x=${A##*/} y=${A%%/*} z=${A//b/x}\n",
        ("ENV A=a/b/c", "LABEL x=c y=a z=a/x/c"),
    ),
)

BAD = (
    Bad(
        "ADD of the builder's own repository",
        S + "ADD file:///a/b.git /c\n",
        2,
        "is no part of the build",
        "file:///a/b.git",
    ),
    Bad("ADD of a reference that is none", S + "ADD https://a.example/b.git#-x /c\n", 2, "no name of a branch"),
    Bad("ADD of git with a word that is none", S + "ADD https://a.example/b.git?depth=1 /c\n", 2, "'depth' is none of"),
    Bad(
        "a commit that is none", S + "ADD --checksum=main https://a.example/b.git /c\n", 2, "7 to 64 hex digits", "main"
    ),
    Bad(
        "ADD --keep-git-dir",
        S + "ADD --keep-git-dir=true a /c\n",
        2,
        "a is no git repository",
        "--keep-git-dir",
    ),
    Bad("a sum that is none", S + "ADD --checksum=md5:1 https://a/b /c\n", 2, "sha256:HEX", "md5:1"),
    Bad("a sum of a file", S + f"ADD --checksum=sha256:{'0' * 64} a /c\n", 2, "one source that is a URL", "--checksum"),
    Bad("COPY of a URL", S + "COPY https://a/b /c\n", 2, "only ADD takes a URL", "https://a/b"),
    Bad("HEALTHCHECK of nothing", S + "HEALTHCHECK CMD\n", 2, "no command", "CMD"),
    Bad("HEALTHCHECK of another kind", S + "HEALTHCHECK TCP 80\n", 2, "HEALTHCHECK NONE", "TCP"),
    Bad("HEALTHCHECK NONE with more", S + "HEALTHCHECK NONE x\n", 2, "takes nothing", "x"),
    Bad("a duration that is none", S + "HEALTHCHECK --interval=5 CMD a\n", 2, "30s or 1m30s", "5"),
    Bad("a duration that is too short", S + "HEALTHCHECK --interval=1us CMD a\n", 2, "at least 1ms", "1us"),
    Bad("retries that are none", S + "HEALTHCHECK --retries=0 CMD a\n", 2, "from 1"),
    Bad("SHELL in shell form", S + "SHELL /bin/sh\n", 2, "JSON form", "/bin/sh"),
    Bad("an empty SHELL", S + "SHELL []\n", 2, "JSON form"),
    Bad("a signal that is none", S + "STOPSIGNAL SIGNOPE\n", 2, "a signal's name or number", "SIGNOPE"),
    Bad("a signal's number that is none", S + "STOPSIGNAL 99\n", 2, "a signal's name or number", "99"),
    Bad("an empty VOLUME", S + 'VOLUME [""]\n', 2, "a path is empty"),
    Bad("ONBUILD of ONBUILD", S + "ONBUILD ONBUILD RUN a\n", 2, "ONBUILD ONBUILD is not allowed"),
    Bad("ONBUILD of FROM", S + "ONBUILD FROM a\n", 2, "ONBUILD FROM is not allowed", "FROM"),
    Bad("ONBUILD of what is none", S + "ONBUILD RUM a\n", 2, "did you mean RUN", "RUM"),
    Bad("a heredoc without an end", S + "RUN <<EOF\na\n", 2, "no end", "<<EOF"),
    Bad("a heredoc as the destination", S + "COPY a <<EOF\nEOF\n", 2, "cannot be a heredoc", "<<EOF"),
    Bad("a variable in a heredoc that is required", S + "COPY <<EOF /a\n${X:?is needed}\nEOF\n", 2, "X: is needed"),
    Bad("a mount of an unknown kind", S + "RUN --mount=type=disk,target=/a x\n", 2, "there are bind, cache", "disk"),
    Bad("a mount of ssh with a wrong option", S + "RUN --mount=type=ssh,env=A x\n", 2, "no option 'env'", "env"),
    Bad("a mount without a target", S + "RUN --mount=type=cache x\n", 2, "needs a target", "cache"),
    Bad("a mount over all", S + "RUN --mount=type=tmpfs,target=/ x\n", 2, "hide the image", "target"),
    Bad("a mount with a wrong option", S + "RUN --mount=type=tmpfs,target=/a,id=1 x\n", 2, "no option 'id'", "id"),
    Bad(
        "a mount with a wrong sharing",
        S + "RUN --mount=type=cache,target=/a,sharing=some x\n",
        2,
        "shared, private, locked",
        "some",
    ),
    Bad("a mount with a wrong mode", S + "RUN --mount=type=cache,target=/a,mode=9 x\n", 2, "octal", "9"),
    Bad("a secret without a name", S + "RUN --mount=type=secret x\n", 2, "needs an id", "secret"),
    Bad(
        "a mount from a later stage",
        "FROM scratch\nRUN --mount=from=b,target=/b x\nFROM scratch AS b\n",
        2,
        "a later stage",
        "b",
        target="0",
    ),
    Bad("a network that is none", S + "RUN --network=web x\n", 2, "default, none, host", "web"),
    Bad("insecure steps", S + "RUN --security=insecure x\n", 2, "security=insecure", "insecure"),
    Bad("devices", S + "RUN --device=vendor x\n", 2, "RUN --device is not supported", "--device"),
    Bad("a switch that is neither", S + "COPY --link=maybe a /\n", 2, "true or false", "--link"),
    Bad("a symbolic mode that is none", S + "COPY --chmod=u+q a /\n", 2, "octal mode", "u+q"),
    Bad("a flag twice", S + "COPY --chown=1 --chown=2 a /\n", 2, "given twice", "--chown"),
    Bad("a flag without a value", S + "COPY --chown= a /\n", 2, "needs a value", "--chown"),
    Bad("a flag with a typing error", S + "COPY --exlude=a b /\n", 2, "did you mean --exclude", "--exlude"),
    Bad("a directive twice", "# escape=`\n# escape=`\nFROM scratch\n", 2, "given twice", "escape"),
    Bad("a check that is none", "# check=loud=true\nFROM scratch\n", 1, "skip=RULE", "loud=true"),
    Bad("a finding that is an error", "# check=error=true\nFROM scratch\nMAINTAINER me\n", 3, "MaintainerDeprecated"),
    Bad("COPY from scratch", S + "COPY --from=scratch /a /b\n", 2, "nothing in it", "scratch"),
    Bad("COPY from a variable", S + "ARG A=x\nCOPY --from=$A /a /b\n", 3, "not expanded here", "$A"),
    Bad("WORKDIR of nothing", S + "WORKDIR $NOPE\n", 2, "is its variable set", "$NOPE"),
    Bad("USER of nothing", S + "USER $NOPE\n", 2, "USER ''", "$NOPE"),
    Bad("LABEL without a value", S + "LABEL a\n", 2, "LABEL a=VALUE", "a"),
    Bad("an owner that is none", S + "COPY --chown=a:b:c x /\n", 2, "USER:GROUP", "a:b:c"),
    Bad("an unknown modifier", S + "LABEL a=${B^^}\n", 2, "the modifier '^'"),
)

WARNED = (
    Warned("nothing", S + 'CMD ["a"]\n', ()),
    Warned("a stage in upper case", "FROM scratch AS Build\n", (("StageNameCasing", 1),)),
    Warned("as in another case", "FROM scratch as b\n", (("FromAsCasing", 1),)),
    Warned("a reserved name", "FROM scratch AS context\n", (("ReservedStageName", 1),)),
    Warned("a gap in a continued line", S + "RUN a \\\n\n  b\n", (("NoEmptyContinuation", 3),)),
    Warned("mixed casing", S + "run a\nENV B=1\n", (("ConsistentInstructionCasing", 2),)),
    Warned("a word in mixed case", S + "Run a\n", (("ConsistentInstructionCasing", 2),)),
    Warned("shell form of CMD", S + "CMD a\n", (("JSONArgsRecommended", 2),)),
    Warned("shell form with a SHELL", S + 'SHELL ["/b", "-c"]\nCMD a\n', ()),
    Warned("MAINTAINER", S + "MAINTAINER me\n", (("MaintainerDeprecated", 2),)),
    Warned("an undeclared ARG in FROM", "FROM base$V\n", (("UndefinedArgInFrom", 1),)),
    Warned("an ARG in FROM without a default", "ARG V\nFROM base:$V\n", (("InvalidDefaultArgInFrom", 2),), {"V": "1"}),
    Warned("an ARG in FROM with a default", "ARG V=1\nFROM base:$V\n", ()),
    Warned("a relative WORKDIR", S + "WORKDIR a\n", (("WorkdirRelativePath", 2),)),
    Warned("a relative WORKDIR on a stage's", "FROM scratch AS a\nWORKDIR /a\nFROM a\nWORKDIR b\n", ()),
    Warned("an unset variable", S + "LABEL a=$B\n", (("UndefinedVar", 2),)),
    Warned("a variable with a default", S + "LABEL a=${B:-1}\n", ()),
    Warned("several CMDs", S + 'CMD ["a"]\nCMD ["b"]\n', (("MultipleInstructionsDisallowed", 2),)),
    Warned("old ENV", S + "ENV A b\n", (("LegacyKeyValueFormat", 2),)),
    Warned(
        "a platform that needs no word", "FROM --platform=$TARGETPLATFORM scratch\n", (("RedundantTargetPlatform", 1),)
    ),
    Warned("a constant platform", "FROM --platform=linux/amd64 scratch\n", (("FromPlatformFlagConstDisallowed", 1),)),
    Warned("a constant platform by name", "FROM --platform=linux/amd64 scratch AS build-amd64\n", ()),
    Warned(
        "a secret in an ARG",
        S + "ARG DB_PASSWORD\nENV PUBLIC_KEY=1 AWS_SECRET_ACCESS=2\n",
        (("SecretsUsedInArgOrEnv", 2), ("SecretsUsedInArgOrEnv", 3)),
    ),
    Warned("a host's port", S + "EXPOSE 80:8080\n", (("ExposeInvalidFormat", 2),)),
    Warned("a protocol in upper case", S + "EXPOSE 80/TCP\n", (("ExposeProtoCasing", 2),)),
    Warned(
        "a rule that is skipped", "# check=skip=JSONArgsRecommended,StageNameCasing\nFROM scratch AS A\nCMD a\n", ()
    ),
    Warned("all rules skipped by an argument", S + "CMD a\n", (), {"BUILDKIT_DOCKERFILE_CHECK": "skip=all"}),
)
