"""`wherry login` and `wherry logout`: credentials of registries, kept where docker's clients keep theirs."""

import base64
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from wherry.cli.args import Option, Spec, parse
from wherry.cli.engine import Refused, fetch

HUB = "https://index.docker.io/v1/"
LOGIN = Spec(
    "login", "Check credentials at a registry, and keep them in docker's own configuration (~/.docker/config.json, 0600).",
    "[-u NAME] [-p PASSWORD | --password-stdin] [REGISTRY]",
    (
        Option("username", "who we are there", "u"),
        Option("password", "others may see it in the list of processes: rather --password-stdin", "p"),
        Option("password-stdin", "read the password from standard input", shape="flag"),
    ),
    most=1, examples=("wherry login -u me --password-stdin registry.example.org < secret",),
)  # fmt: skip
LOGOUT = Spec("logout", "Forget the credentials of a registry.", "[REGISTRY]", (), most=1)


def _path() -> str:
    return os.path.join(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")


def _read() -> dict[str, Any]:
    try:
        with open(_path(), encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise Refused(f"{_path()}: {error}", 0) from None


def _write(config: dict[str, Any]) -> None:
    path = _path()
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(config, file, indent="\t")
    os.replace(path + ".new", os.path.realpath(path))


def login_command(argv: Sequence[str]) -> int:
    """`wherry login`."""
    args = parse(LOGIN, argv)
    server = args.words[0] if args.words else HUB
    name, password = args.text("username"), args.text("password")
    if args.flag("password-stdin"):
        if password or not name:
            raise Refused("--password-stdin goes with --username, and without --password", 0)
        password = sys.stdin.read().rstrip("\r\n")
    elif not (name and password):
        if not sys.stdin.isatty():
            raise Refused("without a terminal, give --username and --password-stdin", 0)
        import getpass

        name = name or input("Username: ")
        password = password or getpass.getpass("Password: ")
    body = {"username": name, "password": password, "serveraddress": server}
    said = fetch("POST", "/auth", body=body)
    config = _read()
    auth = base64.b64encode(f"{name}:{password}".encode()).decode()
    _write({**config, "auths": {**config.get("auths", {}), server: {"auth": auth}}})
    sys.stdout.write(said["Status"] + "\n")
    return 0


def logout_command(argv: Sequence[str]) -> int:
    """`wherry logout`."""
    args = parse(LOGOUT, argv)
    server = args.words[0] if args.words else HUB
    config = _read()
    if config.get("auths", {}).pop(server, None) is None:
        sys.stdout.write(f"Not logged in to {server}\n")
        return 0
    _write(config)
    sys.stdout.write(f"Removed the credentials of {server}\n")
    return 0
