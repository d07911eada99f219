"""Detach keys: read right, and typed at a real terminal."""

import os
import pty
import select
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doors.conftest import Docker
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
