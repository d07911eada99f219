"""The corpus: what Dockerfiles mean, and how wrong ones are refused."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builder import corpus, corpus_later
from tests.builder.corpus import BASE, Bad, Good
from tests.builder.corpus_later import WARNED, Warned

from wherry.builder.checks import RULES
from wherry.builder.graph import Plan, images, plan
from wherry.builder.ignore import Ignore
from wherry.builder.instructions import parse
from wherry.builder.source import read
from wherry.builder.words import Expander, WordError, fields
from wherry.content.oci import Platform
from wherry.errors import Invalid, Unsupported, WherryError

AMD64 = Platform("amd64", "linux")


def planned(text: str, args: dict[str, str] | None = None, target: str = "") -> Plan:
    dockerfile = parse(read(text))
    names = images(dockerfile, args=args or {}, target=target, platform=AMD64)
    return plan(dockerfile, args=args or {}, target=target, platform=AMD64, bases=dict.fromkeys(names, BASE))


@pytest.mark.parametrize("case", [*corpus.GOOD, *corpus_later.GOOD], ids=lambda case: case.name)
def test_what_it_means(case: Good) -> None:
    made = planned(case.text, case.args, case.target)
    assert tuple(stage.index for stage in made.stages) == case.stages
    target = made.stages[-1]
    assert tuple(operation.created_by for operation in target.operations) == case.history
    for key, value in case.config.items():
        assert target.config.get(key) == value


@pytest.mark.parametrize("case", [*corpus.BAD, *corpus_later.BAD], ids=lambda case: case.name)
def test_how_it_is_refused(case: Bad) -> None:
    with pytest.raises((Invalid, Unsupported)) as refused:
        planned(case.text, case.args, case.target)
    message = refused.value.message
    head, *excerpt = message.split("\n")
    assert head.startswith(f"Dockerfile:{case.line}: ")
    assert case.words in head
    assert refused.value.causes[0].field == f"Dockerfile:{case.line}"
    if case.caret:
        row, caret = excerpt
        assert row.split("| ", 1)[1] == case.text.split("\n")[case.line - 1]
        start = caret.index("^") - row.index("| ") - 2
        assert row.split("| ", 1)[1][start:].startswith(case.caret)
        assert caret.count("^") >= len(case.caret) or " " in case.caret


@pytest.mark.parametrize("case", WARNED, ids=lambda case: case.name)
def test_what_it_is_warned_of(case: Warned) -> None:
    said = [text for text in planned(case.text, case.args).warnings if text.startswith("Dockerfile:")]
    expected = [f"Dockerfile:{number}: ({rule})" for rule, number in case.rules]
    assert [re.sub(r": .* \(", ": (", text) for text in said] == expected


def test_every_rule_is_in_the_corpus() -> None:
    told = {rule for case in WARNED for rule, _ in case.rules}
    assert told | {"CopyIgnoredFile", "DuplicateStageName"} == set(RULES)


def test_a_target_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(Invalid, match="there are a, b") as refused:
        planned("FROM scratch AS a\nFROM scratch AS b\n", target="c")
    assert refused.value.causes[0].field == "target"


def test_warnings_say_what_was_not_used() -> None:
    made = planned("FROM scratch\nLABEL a=$NOPE\n", {"UNUSED": "1", "http_proxy": "x"})
    assert list(made.warnings) == [
        "Dockerfile:2: the variable NOPE is not set here (UndefinedVar)",
        "build arguments that no ARG declares: UNUSED",
    ]


def test_the_images_that_are_needed_are_named_whole() -> None:
    dockerfile = parse(
        read("FROM base AS a\nFROM unused:1\nFROM ghcr.io/x/y\nCOPY --from=a / /\nCOPY --from=busybox:1 /b /b\n")
    )
    names = images(dockerfile, args={}, target="", platform=AMD64)
    assert list(names) == ["docker.io/library/base:latest", "ghcr.io/x/y:latest", "docker.io/library/busybox:1"]


def test_a_bases_triggers_come_first_and_are_not_handed_on() -> None:
    dockerfile = parse(read("FROM base\nRUN own\n"))
    base = {**BASE, "config": {"OnBuild": ["COPY --from=tools:1 /a /b", "RUN x"], "Env": ["A=1"]}}
    known = {"docker.io/library/base:latest": base}
    assert list(images(dockerfile, args={}, target="", platform=AMD64, bases=known)) == [
        "docker.io/library/base:latest",
        "docker.io/library/tools:1",
    ]
    known["docker.io/library/tools:1"] = BASE
    stage = plan(dockerfile, args={}, target="", platform=AMD64, bases=known).stages[0]
    assert [one.created_by for one in stage.operations] == [
        "COPY --from=tools:1 /a /b",
        "RUN /bin/sh -c x",
        "RUN /bin/sh -c own",
    ]
    assert "OnBuild" not in stage.config


@given(st.text(alphabet="FROMscratch\n\\ #=\"'${}[]ENVRUNCOPY-/a.,:<`\t", max_size=80))
@settings(max_examples=400, deadline=None)
def test_any_text_is_planned_or_refused_with_a_line(text: str) -> None:
    refused = ""
    try:
        planned("FROM scratch\n" + text)
    except WherryError as error:
        refused = error.message
    assert not refused or refused.startswith("Dockerfile:")


@given(
    st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True), st.text(max_size=12), max_size=4),
    st.text(max_size=30),
)
@settings(max_examples=300, deadline=None)
def test_a_quoted_value_comes_back_as_it_was(values: dict[str, str], text: str) -> None:
    quoted = "'" + text.replace("'", "") + "'"
    assert Expander(values).word(quoted) == text.replace("'", "")
    for name, value in values.items():
        assert Expander(values).word(f"${{{name}}}") == value
        assert Expander(values).word(f'"${name}"') == value
    try:
        Expander(values).words(text)
        fields(text)
    except WordError:
        return


@pytest.mark.parametrize(
    ("rules", "hidden", "seen"),
    [
        ("node_modules\n", ["node_modules", "node_modules/a/b"], ["src/node_modules", "a"]),
        ("**/node_modules\n", ["node_modules", "x/y/node_modules/z"], ["a"]),
        ("*.log\n!keep.log\n", ["a.log"], ["keep.log", "d/a.log"]),
        ("**/*.log", ["a.log", "d/e/a.log"], ["log"]),
        ("*\n!src\n", ["a", "b/c"], ["src", "src/a"]),
        ("/root\n# comment\n\n", ["root"], ["a/root", "# comment"]),
        ("a?c\n[x-z]1\n", ["abc", "y1"], ["a/c", "w1", "ac"]),
        ("dir/**\n", ["dir/a", "dir/b/c"], ["dir2"]),
        ("!only\n", [], ["only", "x"]),
        ("docs/../secret\n", ["secret"], ["docs"]),
        ("src/**/*.py\n!src/keep/a.py", ["src/a.py", "src/x/y.py"], ["src/keep/a.py", "a.py"]),
    ],
)
def test_dockerignore(rules: str, hidden: list[str], seen: list[str]) -> None:
    ignore = Ignore(rules)
    assert [path for path in hidden if not ignore.hides(path)] == []
    assert [path for path in seen if ignore.hides(path)] == []


@pytest.mark.parametrize("rules", ["[a", "a\\", "!"])
def test_a_wrong_dockerignore_names_its_line(rules: str) -> None:
    with pytest.raises(Invalid, match=r"\.dockerignore:2:"):
        Ignore(f"fine\n{rules}\n")
