"""Detach keys: read right, and typed at a real terminal."""

import os
import pty
import select
import socket
import subprocess

import pytest
import websocket
from hypothesis import given
from hypothesis import strategies as st

from tests.doors.conftest import Docker
from tests.doors.raw import VERSION, call, frames, hijack, path_of, read_all
from wherry.clock import machine
from wherry.doors.docker.keys import DetachKeys
from wherry.errors import BadRequest


def test_keys_are_read() -> None:
    assert DetachKeys().feed(b"ab\x10\x11cd") == (b"ab", True)
    assert DetachKeys("").feed(b"\x10\x10\x11") == (b"\x10", True)
    assert DetachKeys("ctrl-a,x").feed(b"\x01y") == (b"\x01y", False)
    assert DetachKeys("q").feed(b"abq") == (b"ab", True)
    for wrong in ("ctrl-", "ctrl-1", "word", "a,,b"):
        with pytest.raises(BadRequest):
            DetachKeys(wrong)


@given(st.lists(st.sampled_from([b"\x10", b"\x11", b"a"]), max_size=12))
def test_nothing_typed_is_lost_but_the_sequence(typed: list[bytes]) -> None:
    whole = b"".join(typed)
    keys = DetachKeys()
    out, detached = b"", False
    for piece in typed:
        more, detached = keys.feed(piece)
        out += more
        if detached:
            break
    at = whole.find(b"\x10\x11")
    assert detached == (at >= 0)
    if detached:
        assert out == whole[:at]
    else:
        assert out == whole or out == whole.removesuffix(b"\x10")


@pytest.mark.root
def test_a_terminal_lets_go(newest: Docker) -> None:
    ours, theirs = pty.openpty()
    argv = [newest.program, "run", "-it", "--name", "web", "web:1", "sh"]
    client = subprocess.Popen(argv, env=newest.environment, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    try:
        seen = b""
        os.write(ours, b"echo he''llo\n")
        deadline = machine.monotonic() + 10
        while b"hello" not in seen:
            assert machine.monotonic() < deadline, seen
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 4096)
        os.write(ours, b"\x10\x11")
        assert client.wait(timeout=10) == 0
    finally:
        client.kill()
        client.wait()
        os.close(ours)
    assert newest("inspect", "-f", "{{.State.Status}}", "web").out == "running\n"


@pytest.mark.root
def test_attaching(newest: Docker) -> None:
    """What was written before, several clients at once, input that ends, what cannot be."""
    newest(
        "run",
        "-di",
        "--name",
        "web",
        "web:1",
        "sh",
        "-c",
        "echo before; echo bad >&2; while read x; do echo got $x; done",
    )
    deadline = machine.monotonic() + 10
    while newest("logs", "web").err != "bad\n" or newest("logs", "web").out != "before\n":
        assert machine.monotonic() < deadline
    past = hijack(newest, "/containers/web/attach?logs=1&stream=0&stdout=1&stderr=1")
    assert sorted(frames(read_all(past))) == [(1, b"before\n"), (2, b"bad\n")]
    past.close()
    whole = hijack(newest, "/containers/web/attach?logs=1&stream=1&stdout=1&stdin=1")
    live = hijack(newest, "/containers/web/attach?stream=1&stdout=1")
    whole.sendall(b"one\n")
    expected = {whole: b"before\ngot one\n", live: b"got one\n"}
    for stream, text in expected.items():
        seen = b""
        while b"".join(data for _, data in frames(seen)) != text:
            seen += stream.recv(4096)
    websocket = hijacked_websocket(newest, "/containers/web/attach/ws?stream=1&stdout=1&stdin=1&stderr=1")
    websocket.send("two\n")
    assert websocket.recv() == b"got two\n"
    assert call(newest, "GET", "/containers/web/attach/ws?stream=1").status == 400
    assert call(newest, "POST", "/containers/web/resize?h=1&w=x").status == 400
    newest("pause", "web")
    refused = call(newest, "POST", "/containers/web/attach?stream=1")
    assert (refused.status, "is paused" in refused.message) == (409, True)
    newest("unpause", "web")
    newest("kill", "web")
    assert frames(read_all(live)) == [(1, b"got two\n")]
    assert frames(read_all(whole)) == [(1, b"got two\n")]
    assert websocket.recv() in (b"", "")
    for stream in expected:
        stream.close()
    websocket.close()
    assert call(newest, "POST", "/containers/web/resize?h=10&w=20").message.endswith("is not running")
    wrong = call(newest, "POST", "/containers/web/attach?stream=1&detachKeys=ctrl-zz")
    assert (wrong.status, wrong.message) == (400, "Invalid detach keys (ctrl-zz) provided")
    assert newest("run", "-i", "--rm", "web:1", "wc", "-c", input="x" * 200_000).out.strip() == "200000"


@pytest.mark.root
def test_a_client_that_does_not_read(newest: Docker) -> None:
    """It makes the container wait, as with Docker; nothing is lost, and other containers are not held up."""
    text = "0123456789" * 6
    script = f"i=0; while [ $i -lt 20000 ]; do echo {text} $i; i=$((i+1)); done"
    newest("create", "--name", "web", "web:1", "sh", "-c", script)
    slow = hijack(newest, "/containers/web/attach?stream=1&stdout=1")
    newest("start", "web")
    assert newest("run", "--rm", "web:1", "echo", "meanwhile").out == "meanwhile\n"
    lines = b"".join(data for _, data in frames(read_all(slow))).split(b"\n")
    slow.close()
    assert [line.split()[1] for line in lines[:-1]] == [str(number).encode() for number in range(20000)]


@pytest.mark.root
def test_signals(docker: Docker) -> None:
    script = "trap 'echo hup' HUP; trap 'exit 7' INT; echo ready; while true; do sleep 0.05; done"
    docker("run", "-d", "--name", "web", "--stop-signal", "SIGINT", "web:1", "sh", "-c", script)
    deadline = machine.monotonic() + 10
    while docker("logs", "web").out != "ready\n":
        assert machine.monotonic() < deadline
    docker("kill", "-s", "HUP", "web")
    while docker("logs", "web").out != "ready\nhup\n":
        assert machine.monotonic() < deadline
    assert "Invalid signal: NOPE" in docker("kill", "-s", "NOPE", "web", code=1).err
    docker("stop", "-t", "20", "web")
    assert docker("wait", "web").out == "7\n"
    assert "is not running" in docker("kill", "web", code=1).err
    docker("start", "web")
    if docker.program.startswith("/usr/local"):  # stop -s came with 1.42
        docker("stop", "-s", "KILL", "web")
        assert docker("wait", "web").out == "137\n"
        docker("start", "web")
    client = docker.popen("attach", "--no-stdin", "web")
    try:
        while docker("logs", "web").out.count("ready") < 2:
            assert machine.monotonic() < deadline
        deadline = machine.monotonic() + 10
        seen = ("events", "--since", "1m", "--until", "0s", "--filter", "container=web", "--filter", "event=attach")
        while not docker(*seen).out:  # a client that is not attached yet takes the signal for itself
            assert machine.monotonic() < deadline
        while client.poll() is None:
            client.send_signal(2)
            assert machine.monotonic() < deadline
            machine.pause(0.1)
        assert client.returncode == 7
    finally:
        client.kill()
        client.communicate()


def hijacked_websocket(docker: Docker, path: str) -> websocket.WebSocket:
    """What docker-py has below it, at our socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(path_of(docker))
    return websocket.create_connection(f"ws://docker{VERSION}{path}", socket=connection)
