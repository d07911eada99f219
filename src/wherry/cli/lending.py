"""SSH agents for a build: the caller's own, or one of ours for the time of the build, with the keys that were named."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from wherry.cli.args import Usage
from wherry.cli.engine import Refused


@contextmanager
def agents_of(words: Sequence[str]) -> Generator[Mapping[str, str]]:
    """Give the sockets of agents by id, until the end: `default`, `ID`, `ID=SOCKET`, `ID=KEY[,KEY...]`.

    Raises Usage, Refused.
    """
    found: dict[str, str] = {}
    with ExitStack() as stack:
        for text in words:
            id, equals, places = text.partition("=")
            if not id or id in found:
                raise Usage("build", f"--ssh {text}: write default, or ID=SOCKET, or ID=KEY; each id once")
            paths = [os.path.abspath(path) for path in places.split(",") if path]
            if not paths:
                paths = [os.environ.get("SSH_AUTH_SOCK", "")]
                if equals or not paths[0]:
                    raise Refused(f"--ssh {text}: there is no agent: SSH_AUTH_SOCK is not set", 0)
            if len(paths) == 1 and _is_socket(paths[0]):
                found[id] = paths[0]
            else:
                found[id] = stack.enter_context(_own_agent(id, paths))
        yield found


def _is_socket(path: str) -> bool:
    import stat

    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError as error:
        raise Refused(f"--ssh: {path}: {error.strerror}", 0) from None


@contextmanager
def _own_agent(id: str, keys: Sequence[str]) -> Generator[str]:
    """Run ssh-agent with some keys until the end. Raises Refused for a key that cannot be read without asking."""
    import shutil
    import subprocess
    import tempfile

    from wherry.clock import machine

    if shutil.which("ssh-agent") is None or shutil.which("ssh-add") is None:
        raise Refused(f"--ssh {id}: keys need ssh-agent and ssh-add (Debian's package openssh-client)", 0)
    with tempfile.TemporaryDirectory(prefix="wherry-ssh-") as folder:
        place = os.path.join(folder, "agent")
        null = subprocess.DEVNULL
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", place], stdin=null, stdout=null, stderr=null)
        try:
            until = machine.monotonic() + 10
            while not os.path.exists(place):
                if agent.poll() is not None or machine.monotonic() > until:
                    raise Refused(f"--ssh {id}: ssh-agent did not start", 0)
                machine.pause(0.01)
            known = {**os.environ, "SSH_AUTH_SOCK": place, "SSH_ASKPASS_REQUIRE": "never", "DISPLAY": ""}
            for key in keys:
                added = subprocess.run(
                    ["ssh-add", "-q", key],
                    env=known,
                    stdin=null,
                    capture_output=True,
                    check=False,
                    start_new_session=True,
                )
                if added.returncode != 0:
                    words = added.stderr.decode(errors="replace").strip().splitlines()
                    why = words[-1] if words else "it needs a passphrase; add it to an agent, and write --ssh default"
                    raise Refused(f"--ssh {id}={key}: {why}", 0)
            yield place
        finally:
            agent.terminate()
            agent.wait()
