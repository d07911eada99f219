"""exec as Docker's clients use it: streams, terminals, codes, what is known of it."""

import base64
import re
from pathlib import Path

import pytest

from tests.doors.conftest import Docker
from tests.doors.raw import call, frames, hijack, read_all
from wherry.clock import machine

pytestmark = pytest.mark.root


@pytest.fixture
def web(docker: Docker) -> Docker:
    docker("run", "-d", "--name", "web", "-e", "PLACE=inside", "web:1", "sleep", "1000")
    return docker


def test_what_people_ask_of_it(web: Docker) -> None:
    script = "id -u; pwd; echo $A $PLACE; echo bad >&2; exit 3"
    done = web("exec", "-u", "app", "-w", "/tmp", "-e", "A=there", "web", "sh", "-c", script, code=3)
    assert (done.out, done.err) == ("1000\n/tmp\nthere inside\n", "bad\n")
    assert web("exec", "-i", "web", "wc", "-c", input="x" * 100_000).out.strip() == "100000"
    began = "OCI runtime exec failed: exec failed: unable to start container process: exec: "
    for command, code, why in (
        ("no-such", 127, "executable file not found in $PATH"), ("/no/such", 127, "stat /no/such: no such file or directory"),
        ("/etc/passwd", 126, "permission denied"),
    ):  # fmt: skip
        done = web("exec", "web", command, code=code)
        assert (done.out, done.err) == ("", f'{began}"{command}": {why}\n'), "once, and in words that scripts look for"
    assert web("exec", "-t", "web", "no-such", code=127).out.count("no-such") == 1
    assert "nobody-here" in web("exec", "-u", "nobody-here", "web", "true", code=126).out
    held = [web("exec", *words, "web", "sh", "-c", "cat /proc/self/status").out for words in ((), ("--privileged",))]
    masks = [int(re.findall("CapEff:\\s*(\\S+)", each)[0], 16) for each in held]
    assert masks[0] < masks[1]
    web("pause", "web")
    assert "paused" in web("exec", "web", "true", code=1).err
    web("unpause", "web")


def test_what_is_known_of_it(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "web:1", "sleep", "1000")
    asked = {"Cmd": ["sh", "-c", "read x; exit 5"], "AttachStdin": True, "AttachStdout": True, "DetachKeys": "ctrl-a"}
    id = call(newest, "POST", "/containers/web/exec", asked).json["Id"]
    fresh = call(newest, "GET", f"/exec/{id}/json").json
    assert (fresh["Running"], fresh["ExitCode"], fresh["Pid"], fresh["CanRemove"]) == (False, None, 0, False)
    assert (fresh["OpenStdin"], fresh["OpenStdout"], fresh["OpenStderr"]) == (True, True, False)
    assert fresh["ProcessConfig"] == {
        "tty": False, "entrypoint": "sh", "arguments": ["-c", "read x; exit 5"], "privileged": False,
    }  # fmt: skip
    assert base64.b64decode(fresh["DetachKeys"]) == b"\x01"
    assert call(newest, "GET", "/containers/web/json").json["ExecIDs"] == [id]
    assert call(newest, "POST", f"/exec/{id}/resize?h=10&w=20").status == 409
    stream = hijack(newest, f"/exec/{id}/start", {"Detach": False, "Tty": False})
    running = call(newest, "GET", f"/exec/{id}/json").json
    assert running["Running"]
    command = Path(f"/proc/{running['Pid']}/cmdline")
    deadline = machine.monotonic() + 10
    while command.read_bytes() != b"sh\0-c\0read x; exit 5\0":  # for a moment it is the runtime's still
        assert machine.monotonic() < deadline
    again = call(newest, "POST", f"/exec/{id}/start", {})
    assert (again.status, again.message) == (409, f"Error: Exec command {id} is already running")
    stream.sendall(b"\n")
    assert read_all(stream) == b""
    stream.close()
    over = call(newest, "GET", f"/exec/{id}/json").json
    assert (over["Running"], over["ExitCode"]) == (False, 5)
    assert call(newest, "GET", "/containers/web/json").json["ExecIDs"] is None
    again = call(newest, "POST", f"/exec/{id}/start", {})
    assert (again.status, again.message) == (409, f"Error: Exec command {id} has already run")
    assert call(newest, "GET", "/exec/none/json").status == 404


def test_detached_and_with_a_terminal(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "web:1", "sleep", "1000")
    newest("exec", "-d", "web", "sh", "-c", "echo much; echo more >&2; touch /tmp/ran")
    deadline = machine.monotonic() + 10
    while newest("exec", "web", "ls", "/tmp").out != "ran\n":
        assert machine.monotonic() < deadline
    asked = {
        "Cmd": ["sh", "-c", "stty size; read x; stty size"],
        "AttachStdin": True,
        "AttachStdout": True,
        "Tty": True,
    }
    id = call(newest, "POST", "/containers/web/exec", asked).json["Id"]
    stream = hijack(newest, f"/exec/{id}/start", {"Tty": True, "ConsoleSize": [33, 99]})
    seen = b""
    while b"33 99" not in seen:
        seen += stream.recv(4096)
    assert call(newest, "POST", f"/exec/{id}/resize?h=20&w=40").status == 200
    stream.sendall(b"\n")
    assert b"20 40" in read_all(stream)
    stream.close()
    asked = {"Cmd": ["sleep", "1000"], "AttachStdin": True, "AttachStdout": True, "Tty": True, "DetachKeys": "x,y"}
    id = call(newest, "POST", "/containers/web/exec", asked).json["Id"]
    stream = hijack(newest, f"/exec/{id}/start", {"Tty": True})
    stream.sendall(b"xy")
    read_all(stream)
    stream.close()
    assert call(newest, "GET", f"/exec/{id}/json").json["Running"], "let go, not ended"
    wrong = call(newest, "POST", "/containers/web/exec", {"Cmd": ["true"], "DetachKeys": "ctrl-zz"})
    assert (wrong.status, wrong.message) == (400, "Invalid detach keys (ctrl-zz) provided")


def test_only_the_streams_asked_for(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "web:1", "sleep", "1000")
    asked = {"Cmd": ["sh", "-c", "echo out; echo bad >&2"], "AttachStderr": True}
    id = call(newest, "POST", "/containers/web/exec", asked).json["Id"]
    stream = hijack(newest, f"/exec/{id}/start", {})
    assert frames(read_all(stream)) == [(2, b"bad\n")]
    stream.close()
