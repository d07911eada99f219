"""Dockerfiles and what they mean: what Docker makes of them, in our words."""

from dataclasses import dataclass, field
from typing import Any

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "Env": ["PATH=/bin", "LANG=C"],
        "Cmd": ["/bin/sh"],
        "WorkingDir": "/base",
        "User": "app",
        "Labels": {"of": "base"},
    },
    "rootfs": {"type": "layers", "diff_ids": []},
}


@dataclass(frozen=True)
class Good:
    """A Dockerfile, the operations of its target (`created_by`, in order), and what its config holds."""

    name: str
    text: str
    history: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    target: str = ""
    stages: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Bad:
    """A Dockerfile that is refused, the line, and words of the message; `caret` is the text that it points at."""

    name: str
    text: str
    line: int
    words: str
    caret: str = ""
    args: dict[str, str] = field(default_factory=dict)
    target: str = ""


GOOD = (
    Good("nothing but scratch", "FROM scratch\n", (), {"Env": [PATH]}),
    Good("lower case and tabs", "from\tscratch\ncopy\ta\t/b\n", ("COPY a /b",)),
    Good("exec form", 'FROM scratch\nCMD ["/app", "-v"]\n', ('CMD ["/app" "-v"]',), {"Cmd": ["/app", "-v"]}),
    Good(
        "shell form",
        "FROM scratch\nCMD echo $HOME\n",
        ('CMD ["/bin/sh" "-c" "echo $HOME"]',),
        {"Cmd": ["/bin/sh", "-c", "echo $HOME"]},
    ),
    Good(
        "brackets that are no JSON are for the shell",
        "FROM scratch\nRUN [ -f a ] && true\n",
        ("RUN /bin/sh -c [ -f a ] && true",),
    ),
    Good("run by exec form", 'FROM scratch\nRUN ["/a", "b c"]\n', ("RUN /a b c",)),
    Good(
        "continued lines, comments and blanks between",
        "FROM scratch\nRUN a \\\n  # a comment\n\n  && b \\  \n  && c\n",
        ("RUN /bin/sh -c a   && b   && c",),
    ),
    Good(
        "escape directive",
        "# escape=`\nFROM scratch\nRUN a `\n b\\\nRUN c\n",
        ("RUN /bin/sh -c a  b\\", "RUN /bin/sh -c c"),
    ),
    Good("syntax directive of docker's own", "# syntax=docker/dockerfile:1.7\nFROM scratch\n", ()),
    Good(
        "a directive after a comment is a comment",
        "# hello\n# escape=`\nFROM scratch\nRUN a \\\n b\n",
        ("RUN /bin/sh -c a  b",),
    ),
    Good(
        "windows line ends and a byte order mark",
        "\ufeffFROM scratch\r\nENV A=1\r\n",
        ("ENV A=1",),
        {"Env": [PATH, "A=1"]},
    ),
    Good(
        "several variables at once",
        "FROM scratch\nENV A=1 B=\"two words\" C=a\\ b D='$A'\n",
        ("ENV A=1 B=two words C=a b D=$A",),
        {"Env": [PATH, "A=1", "B=two words", "C=a b", "D=$A"]},
    ),
    Good("the old form of ENV", "FROM scratch\nENV A b  c\n", ("ENV A=b  c",), {"Env": [PATH, "A=b  c"]}),
    Good(
        "an ENV sees the values before its line",
        "FROM scratch\nENV A=1\nENV A=2 B=$A\nENV C=$A\n",
        ("ENV A=1", "ENV A=2 B=1", "ENV C=2"),
        {"Env": [PATH, "A=2", "B=1", "C=2"]},
    ),
    Good(
        "defaults and alternatives",
        "FROM scratch\nENV A=1 E=\nENV B=${A:-x} C=${N:-x} D=${N-y} F=${E:-z} G=${E-z} H=${A:+s} I=${N:+s} J=${A+s}\n",
        ("ENV A=1 E=", "ENV B=1 C=x D=y F=z G= H=s I= J=s"),
    ),
    Good(
        "cutting values",
        "FROM scratch\nENV F=dir/a.tar.gz\nENV A=${F#*/} B=${F##*.} C=${F%.*} D=${F%%.*} E=${F/a/b} G=${F//./-}\n",
        ("ENV F=dir/a.tar.gz", "ENV A=a.tar.gz B=gz C=dir/a.tar D=dir/a E=dir/b.tar.gz G=dir/a-tar-gz"),
    ),
    Good(
        "escaped dollars and inner variables",
        'FROM scratch\nENV A=x\nENV B=\\$A C=${N:-$A-${A}} D="q\\"$A"\n',
        ("ENV A=x", 'ENV B=$A C=x-x D=q"x'),
    ),
    Good(
        "an ARG before FROM names the base",
        "ARG V=1\nFROM base:$V\n",
        (),
        {"Env": ["PATH=/bin", "LANG=C"], "Cmd": ["/bin/sh"]},
    ),
    Good(
        "a given ARG wins over its default",
        "ARG V=1\nFROM base:${V}\nARG V\nLABEL v=$V\n",
        ("ARG V=2", "LABEL v=2"),
        args={"V": "2"},
    ),
    Good(
        "an outer ARG is unknown inside until it is declared",
        "ARG V=1\nFROM scratch\nLABEL a=$V\nARG V\nLABEL b=$V\n",
        ("LABEL a=", "ARG V=1", "LABEL b=1"),
    ),
    Good(
        "ENV wins over ARG",
        "FROM scratch\nARG A=arg\nENV A=env\nRUN x\nLABEL a=$A\n",
        ("ARG A=arg", "ENV A=env", "RUN /bin/sh -c x", "LABEL a=env"),
    ),
    Good(
        "ARGs are in RUN's history, proxies are not",
        "FROM scratch\nARG A=1\nARG B\nRUN x\n",
        ("ARG A=1", "ARG B", "RUN |1 A=1 /bin/sh -c x"),
        args={"HTTP_PROXY": "http://p"},
    ),
    Good(
        "platform ARGs",
        "FROM scratch\nARG TARGETARCH TARGETOS\nLABEL p=$TARGETOS/$TARGETARCH\n",
        ("ARG TARGETARCH=amd64 TARGETOS=linux", "LABEL p=linux/amd64"),
    ),
    Good("this platform by name", "FROM --platform=$TARGETPLATFORM scratch\n", ()),
    Good(
        "WORKDIR is relative to the last one",
        "FROM base\nWORKDIR a\nWORKDIR ../b/./c\nWORKDIR /d\n",
        ("WORKDIR /base/a", "WORKDIR /base/b/c", "WORKDIR /d"),
        {"WorkingDir": "/d"},
    ),
    Good(
        "COPY is relative to WORKDIR",
        "FROM scratch\nWORKDIR /w\nCOPY a b/\nCOPY a .\n",
        ("WORKDIR /w", "COPY a b/", "COPY a ."),
        {"WorkingDir": "/w"},
    ),
    Good("COPY in JSON form with spaces", 'FROM scratch\nCOPY ["a b", "/c d/"]\n', ("COPY a b /c d/",)),
    Good(
        "COPY with flags and variables",
        "FROM scratch\nARG U=1000\nCOPY --chown=$U:g --chmod=0755 a* /d/\n",
        ("ARG U=1000", "COPY --chown=$U:g --chmod=0755 a* /d/"),
    ),
    Good(
        "only the needed stages",
        "FROM base AS a\nRUN one\nFROM base AS b\nRUN two\nFROM scratch\nCOPY --from=a /x /y\n",
        ("COPY --from=a /x /y",),
        stages=(0, 2),
    ),
    Good(
        "a stage on a stage keeps its config",
        "FROM base AS a\nENV X=1\nFROM A\nLABEL l=$X\n",
        ("LABEL l=1",),
        {"Env": ["PATH=/bin", "LANG=C", "X=1"], "Labels": {"of": "base", "l": "1"}},
        stages=(0, 1),
    ),
    Good(
        "COPY --from by number",
        "FROM scratch\nFROM scratch\nCOPY --from=0 / /\n",
        ("COPY --from=0 / /",),
        stages=(0, 1),
    ),
    Good("a target in the middle", "FROM scratch AS a\nENV A=1\nFROM scratch\nRUN x\n", ("ENV A=1",), target="a"),
    Good("a target by number", "FROM scratch AS a\nENV A=1\nFROM scratch\nRUN x\n", ("ENV A=1",), target="0"),
    Good(
        "ENTRYPOINT drops the base's CMD",
        'FROM base\nENTRYPOINT ["/e"]\n',
        ('ENTRYPOINT ["/e"]',),
        {"Entrypoint": ["/e"], "Cmd": None},
    ),
    Good(
        "ENTRYPOINT keeps this stage's CMD",
        'FROM base\nCMD ["c"]\nENTRYPOINT ["/e"]\n',
        ('CMD ["c"]', 'ENTRYPOINT ["/e"]'),
        {"Entrypoint": ["/e"], "Cmd": ["c"]},
    ),
    Good(
        "EXPOSE ranges and protocols",
        "FROM scratch\nENV P=53\nEXPOSE 80 $P/udp 8000-8001\n",
        ("ENV P=53", "EXPOSE 80/tcp 53/udp 8000/tcp 8001/tcp"),
        {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}},
    ),
    Good(
        "USER and LABEL",
        "FROM scratch\nUSER 1000:100\nLABEL a.b=\"c d\" e='f'\n",
        ("USER 1000:100", "LABEL a.b=c d e=f"),
        {"User": "1000:100", "Labels": {"a.b": "c d", "e": "f"}},
    ),
    Good(
        "what looks like a heredoc and is none",
        "FROM scratch\nRUN x=$((1<<3)) && cat <<<word\n",
        ("RUN /bin/sh -c x=$((1<<3)) && cat <<<word",),
    ),
)

BAD = (
    Bad("an empty file", "", 1, "no FROM"),
    Bad("only comments", "# nothing\n", 2, "no FROM"),
    Bad("a typing error", "FROM scratch\nRUNN x\n", 2, "did you mean RUN", "RUNN"),
    Bad("something before FROM", "RUN x\nFROM scratch\n", 1, "before the first FROM", "RUN"),
    Bad("no argument", "FROM scratch\nRUN\n", 2, "at least one argument", "RUN"),
    Bad("an unknown flag", "FROM scratch\nCOPY --form=a b /c\n", 2, "no flag --form", "--form"),
    Bad("a mode that is none", "FROM scratch\nCOPY --chmod=999 a /b\n", 2, "octal", "999"),
    Bad("one word for COPY", "FROM scratch\nCOPY a\n", 2, "a source and a destination"),
    Bad("two sources, no folder", "FROM scratch\nCOPY a b /c\n", 2, "ends with '/'", "/c"),
    Bad("an open quote", 'FROM scratch\nENV A="x\n', 2, "not closed"),
    Bad("an open brace", "FROM scratch\nENV A=${B\n", 2, "not closed"),
    Bad("a required variable", 'FROM scratch\nENV A="${B:?must be given}"\n', 2, "B: must be given", '"${B:?must'),
    Bad("a later line of a long instruction", "FROM scratch\nENV A=1 \\\n  B\n", 3, "'B' is not NAME=VALUE", "B"),
    Bad("a stage name twice", "FROM scratch AS a\nFROM scratch AS a\n", 2, "taken", "a"),
    Bad("a stage name that is none", "FROM scratch AS 1a\n", 1, "stage name", "1a"),
    Bad("FROM with too much", "FROM a b\n", 1, "FROM IMAGE AS NAME"),
    Bad("FROM of an unset variable", "FROM $X\n", 1, "name is empty", "$X"),
    Bad("FROM of a bad name", "FROM UPPER\n", 1, "lower-case", "UPPER"),
    Bad("another system", "FROM --platform=windows/amd64 scratch\n", 1, "another system than linux", "windows/amd64"),
    Bad("COPY from this stage", "FROM scratch AS a\nCOPY --from=a /x /y\n", 2, "this stage itself", "a"),
    Bad(
        "COPY from a later stage",
        "FROM scratch\nCOPY --from=b /x /y\nFROM scratch AS b\n",
        2,
        "a later stage",
        target="0",
    ),
    Bad("COPY from a number too high", "FROM scratch\nCOPY --from=3 /x /y\n", 2, "0 stages before", "3"),
    Bad("a port that is none", "FROM scratch\nEXPOSE 99999\n", 2, "from 1 to 65535", "99999"),
    Bad("a protocol that is none", "FROM scratch\nEXPOSE 80/http\n", 2, "tcp, udp or sctp", "80/http"),
    Bad("foreign syntax", "# syntax=example.com/my/frontend\nFROM scratch\n", 1, "only docker/dockerfile's own"),
    Bad("a wrong escape", "# escape=x\nFROM scratch\n", 1, "backslash or a backtick"),
    Bad("an ARG that is none", "FROM scratch\nARG 1x=2\n", 2, "a name is", "1x"),
)
