"""Logs: drivers and their options, and what `docker logs` makes of them."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doors.conftest import Docker
from tests.doors.raw import call, frames
from wherry.clock import machine
from wherry.doors.docker.logconfig import read_log, read_size
from wherry.errors import WherryError

REFUSED = {
    ("nosuch",): 'error looking up logging plugin nosuch: plugin "nosuch" not found',
    ("syslog",): "log driver 'syslog' is not supported by wherry",
    ("json-file", "nosuch=1"): "unknown log opt 'nosuch' for json-file log driver",
    ("json-file", "max-size=0"): "failed to initialize logging driver: max-size must be a positive number",
    ("json-file", "max-size=abc"): "failed to initialize logging driver: invalid size: 'abc'",
    ("json-file", "max-file=0"): "failed to initialize logging driver: max-file cannot be less than 1",
    ("json-file", "max-file=x"): 'failed to initialize logging driver: strconv.Atoi: parsing "x": invalid syntax',
    ("json-file", "compress=maybe"): 'strconv.ParseBool: parsing "maybe": invalid syntax',
    ("json-file", "compress=true", "max-file=1"): "compress cannot be true when max-file is less than 2 or max-size",
    ("json-file", "max-buffer-size=4m"): "max-buffer-size option is only supported with 'mode=non-blocking'",
    ("json-file", "mode=odd"): "logger: logging mode not supported: odd",
    (
        "json-file",
        "mode=non-blocking",
        "max-buffer-size=zz",
    ): "error parsing option max-buffer-size: invalid size: 'zz'",
    ("json-file", "tag={{.Nope}}"): "can't evaluate field Nope in type *logger.Info",
    ("json-file", "env-regex=("): "failed to initialize logging driver: error parsing regexp",
    ("local", "labels=a"): "unknown log opt 'labels' for log driver local",
    ("none", "max-size=1m"): "unknown log opt 'max-size' for none log driver",
    ("journald", "labels=a"): "log opt 'labels' of journald is not supported by wherry",
    ("journald", "mode=non-blocking"): "mode=non-blocking is not supported by wherry for journald",
}
"""Driver and options, and what a dockerd 20.10 says to them (or we, by name)."""


@pytest.mark.parametrize(("asked", "said"), REFUSED.items(), ids=" ".join)
def test_what_is_refused(asked: tuple[str, ...], said: str) -> None:
    config = dict(each.split("=", 1) for each in asked[1:])
    with pytest.raises(WherryError) as refused:
        read_log({"Type": asked[0], "Config": config})
    assert said in refused.value.message


def test_limits() -> None:
    def limits(driver: str, **options: str) -> tuple[object, ...]:
        made = read_log({"Type": driver, "Config": {name.replace("_", "-"): text for name, text in options.items()}})
        return made.get("log_max_bytes"), made.get("log_max_files"), made.get("log_compress")

    assert limits("json-file") == (None, None, False)  # what ContainerSpec has
    assert limits("json-file", max_size="10k") == (10240, 1, False)
    assert limits("json-file", max_size="1.5g", max_file="3", compress="true") == (1610612736, 3, True)
    assert limits("json-file", max_size="-1") == (0, 1, False)
    assert limits("local") == (None, None, True)
    assert limits("local", max_size="1m") == (1048576, 5, True)
    assert limits("local", max_size="1m", compress="false") == (1048576, 5, False)


@given(st.integers(0, 10**6), st.sampled_from(["", "b", "k", "K", "kb", "KiB", "m", "MB", "g", "GiB", "t"]))
def test_sizes(number: int, unit: str) -> None:
    power = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}[unit[:1].lower()]
    assert read_size(f"{number}{unit}") == number * 1024**power


@pytest.mark.root
def test_what_logs_shows(newest: Docker) -> None:
    script = "echo one; echo two >&2; seq -s x 20000; sleep 0.01; echo last; sleep 0.01; echo -n cut"
    newest(
        "run", "--name", "web", "-l", "a=b", "-l", "c=d e", "-e", "X=1", "--log-opt", "labels=a,c", "--log-opt", "env-regex=^X",
        "--log-opt", "tag={{.Name}}/{{.ImageName}}", "web:1", "sh", "-c", script, code=None,
    )  # fmt: skip
    long = "x".join(str(number) for number in range(1, 20001)) + "\n"
    done = newest("logs", "web")
    assert (done.out, done.err) == (f"one\n{long}last\ncut", "two\n")
    assert newest("logs", "--tail", "2", "web").out == "last\ncut"
    assert newest("logs", "--tail", "0", "web").out == ""
    stamped = newest("logs", "-t", "web").out.splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ", "", line) for line in stamped] == [
        "one", long.strip(), "last", "cut",
    ]  # fmt: skip
    moment = stamped[2].partition(" ")[0]
    assert newest("logs", "--since", moment, "web").out == "last\ncut"
    until = newest("logs", "--until", moment, "web").out
    assert until.startswith("one\n")
    assert not until.endswith("cut")
    assert newest("logs", "-f", "--until", moment, "web").out == until
    details = "X=1,a=b,c=d+e,tag=web%2Fweb%3A1 "
    assert newest("logs", "--details", "--tail", "1", "web").out == f"{details}cut"
    both = newest("logs", "--details", "-t", "web").out.splitlines()
    assert both[0] == f"{stamped[0].partition(' ')[0]} {details}one"
    seen = frames(call(newest, "GET", "/containers/web/logs?stderr=1").body)
    assert seen == [(2, b"two\n")]
    assert call(newest, "GET", "/containers/web/logs").message.startswith("Bad parameters: you must choose")
    shown = json.loads(newest("inspect", "web").out)[0]
    with open(shown["LogPath"], encoding="ascii") as file:
        assert re.match(r"\S+ stdout F one$", file.readline())


@pytest.mark.root
def test_following(newest: Docker) -> None:
    """Across rotations, until its end, or until a moment to come though nothing is written."""
    script = "i=0; while [ $i -lt 600 ]; do echo line $i; i=$((i+1)); done; read x; echo end"
    opts = ("--log-opt", "max-size=4k", "--log-opt", "max-file=9", "--log-opt", "compress=true")
    newest("run", "-di", "--name", "web", *opts, "web:1", "sh", "-c", script)
    follower = newest.popen("logs", "-f", "web")
    try:
        said = call(newest, "GET", f"/containers/web/logs?stdout=1&follow=1&until={machine.now() + 0.5:.6f}")
        assert b"line 0\n" in said.body
        newest("attach", "web", input="\n")
        followed, _ = follower.communicate(timeout=15)
    finally:
        follower.kill()
        follower.wait()
    expected = "".join(f"line {number}\n" for number in range(600)) + "end\n"
    assert followed == expected
    assert expected.endswith(newest("logs", "web").out)


@pytest.mark.root
def test_without_a_log(newest: Docker) -> None:
    newest("run", "--name", "mute", "--log-driver", "none", "web:1", "echo", "hi")
    said = call(newest, "GET", "/containers/mute/logs?stdout=1")
    assert (said.status, said.message) == (501, "configured logging driver does not support reading")
    assert json.loads(newest("inspect", "mute").out)[0]["LogPath"] == ""
    done = newest("create", "--log-driver", "journald", "web:1", code=None)
    assert done.code == 0 or "journald is not enabled on this host" in done.err
