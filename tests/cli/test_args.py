"""The option parser and the help of every command."""

import subprocess
import sys
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.cli import containers, images
from wherry.cli.args import Option, Spec, help_text, parse
from wherry.cli.main import COMMANDS

SPECS = [value for module in (containers, images) for value in vars(module).values() if isinstance(value, Spec)]
RUN = containers.RUN


def wherry(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "wherry.cli.main", *argv], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["-m64m", "i"], "memory", "64m"),
        (["-m=64m", "i"], "memory", "64m"),
        (["--memory", "64m", "i"], "memory", "64m"),
        (["--memory=64m", "i"], "memory", "64m"),
        (["-it", "i"], "interactive", True),
        (["-itm", "1m", "i"], "memory", "1m"),
        (["--rm=false", "i"], "rm", False),
        (["-e", "A=1", "-e", "B=2", "i"], "env", ["A=1", "B=2"]),
        (["--pids-limit", "-1", "i"], "pids-limit", -1),
        (["i", "--rm"], "rm", False),
        (["-h", "host", "i"], "hostname", "host"),
    ],
)
def test_options_are_read(argv: list[str], name: str, value: object) -> None:
    parsed = parse(RUN, argv)
    assert parsed[name] == value
    assert parsed.words[0] == "i"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--memroy", "1m"], "did you mean --memory"),
        (["-X", "i"], "unknown option -X"),
        (["--memory"], "needs a value"),
        (["-m"], "needs a value"),
        (["--pull", "often", "i"], "one of missing, always, never"),
        (["--pids-limit", "²", "i"], "not a whole number"),
        (["--pids-limit", "--5", "i"], "not a whole number"),
        (["--rm=perhaps", "i"], "true or false"),
        ([], "usage: wherry run"),
    ],
)
def test_wrong_words_end_with_2(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(RUN, argv)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


WORD = st.one_of(
    st.sampled_from(["-", "--", "-e", "--env", "-it", "--rm", "-m", "--help", "--rm=", "="]), st.text(max_size=6)
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SPECS), st.lists(WORD, max_size=6))
def test_any_words_are_read_or_refused(spec: Spec, argv: list[str]) -> None:
    code: object = 0
    try:
        parse(spec, argv)
    except SystemExit as end:
        code = end.code
    assert code in (0, 2)


def test_an_option_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec(
        "x", "", "", (Option("many-things", "", shape="many", env=True), Option("n", "", shape="number", env=True))
    )
    monkeypatch.setenv("WHERRY_MANY_THINGS", "one")
    monkeypatch.setenv("WHERRY_N", "5")
    assert (parse(spec, []).many("many-things"), parse(spec, [])["n"]) == (["one"], 5)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_help_shows_usage_options_examples(spec: Spec) -> None:
    lines = help_text(spec).splitlines()
    assert lines[0].startswith(f"Usage: wherry {spec.name} ")
    assert ("Options:" in lines) == bool(spec.options)
    assert all(any(f"--{option.name}" in line for line in lines) for option in spec.options)
    assert any(line.startswith(f"  wherry {spec.name}") for line in lines[lines.index("Examples:") :])


def test_every_command_of_the_table_is_there() -> None:
    for name, (module, summary) in COMMANDS.items():
        assert callable(getattr(import_module(module), f"{name}_command")), name
        assert summary


def test_the_command_itself() -> None:
    assert "run a command in a new container" in wherry("--help").stdout
    assert wherry().returncode == 2
    wrong = wherry("biuld", ".")
    assert (wrong.returncode, "did you mean 'build'" in wrong.stderr) == (2, True)
    assert wherry("ps", "--help").stdout.startswith("Usage: wherry ps")
    assert wherry("--root").returncode == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [("64m", 64 << 20), ("1g", 1 << 30), ("1.5k", 1536), ("7", 7), ("2MB", 2 << 20), ("1GiB", 1 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert containers.size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1m", "nan", "inf", "1x", "1e9", "²"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(SystemExit):
        containers.size_bytes(text)
