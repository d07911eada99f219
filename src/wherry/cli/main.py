"""The `wherry` command: a table of commands, each in a module of its own that is imported when it is called."""

import os
import sys

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("wherry.cli.instances", "start an instance: API server, registry and nodes"),
    "down": ("wherry.cli.instances", "stop an instance and remove every trace of it"),
    "status": ("wherry.cli.instances", "say how an instance is"),
    "env": ("wherry.cli.instances", "print export lines for kubectl, docker and the registry"),
    "node": ("wherry.cli.instances", "add or remove a node of this machine"),
    "config": ("wherry.cli.instances", "show the settings and where each comes from"),
    "doctor": ("wherry.cli.doctor", "check the machine: what, why it matters, the exact fix"),
    "server": ("wherry.cli.instances", "run an API server with simulated nodes in the foreground, without root"),
    "get": ("wherry.cli.history", "read objects, also as they were (--at -5m)"),
    "fork": ("wherry.cli.history", "start a copy of a cluster as it is or was, on simulated nodes"),
    "kubectl": ("wherry.cli.instances", "pass on to the stock kubectl with this instance's kubeconfig"),
    "version": ("wherry.cli.instances", "print versions"),
    "run": ("wherry.cli.containers", "run a command in a new container"),
    "ps": ("wherry.cli.containers", "list containers"),
    "logs": ("wherry.cli.containers", "print the output of a container"),
    "exec": ("wherry.cli.containers", "run a command in a running container"),
    "stop": ("wherry.cli.containers", "stop containers"),
    "kill": ("wherry.cli.containers", "send a signal to containers"),
    "rm": ("wherry.cli.containers", "remove containers"),
    "create": ("wherry.cli.lives", "make a container and leave it"),
    "start": ("wherry.cli.lives", "start containers"),
    "restart": ("wherry.cli.lives", "stop containers and start them again"),
    "pause": ("wherry.cli.lives", "hold the processes of containers"),
    "unpause": ("wherry.cli.lives", "let them go on"),
    "rename": ("wherry.cli.lives", "give a container another name"),
    "update": ("wherry.cli.lives", "give containers other limits"),
    "wait": ("wherry.cli.lives", "wait until containers have ended"),
    "attach": ("wherry.cli.lives", "join a running container's streams"),
    "inspect": ("wherry.cli.looks", "print all that is known of something, as JSON"),
    "top": ("wherry.cli.looks", "list the processes of a container"),
    "stats": ("wherry.cli.looks", "show what containers use"),
    "port": ("wherry.cli.looks", "list a container's published ports"),
    "diff": ("wherry.cli.looks", "list what a container has changed"),
    "events": ("wherry.cli.looks", "print what happens"),
    "info": ("wherry.cli.looks", "say what the engine is and has"),
    "cp": ("wherry.cli.moves", "copy files into a container, or out"),
    "commit": ("wherry.cli.moves", "make an image of a container"),
    "export": ("wherry.cli.moves", "write a container's files as a tar"),
    "build": ("wherry.cli.build", "build an image from a Dockerfile"),
    "images": ("wherry.cli.images", "list images"),
    "pull": ("wherry.cli.images", "get an image from a registry"),
    "push": ("wherry.cli.images", "send an image to a registry"),
    "tag": ("wherry.cli.images", "give an image one more name"),
    "rmi": ("wherry.cli.images", "remove images"),
    "history": ("wherry.cli.looks", "list the steps that an image was made by"),
    "import": ("wherry.cli.moves", "make an image out of a tar of files"),
    "save": ("wherry.cli.moves", "write images as a tar"),
    "load": ("wherry.cli.moves", "read images out of a tar"),
    "login": ("wherry.cli.logins", "check and keep credentials of a registry"),
    "logout": ("wherry.cli.logins", "forget them"),
    "network": ("wherry.cli.keeping", "networks of containers"),
    "volume": ("wherry.cli.keeping", "volumes of containers"),
    "system": ("wherry.cli.keeping", "what takes room on the disk, and making some"),
    "engine": ("wherry.cli.alone", "run a container engine alone, behind a Docker socket; client certificates"),
    "registry": ("wherry.cli.registry", "run a registry alone; its people, policies, rules, collection, audit log"),
}


def overview() -> str:
    """What `wherry --help` prints."""
    width = max(len(name) for name in COMMANDS)
    lines = [
        "Usage: wherry [--root DIR] COMMAND ...",
        "",
        "A container engine, an image registry and a Kubernetes you can start, fork, rewind and question.",
        "",
        "Commands:",
        *(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
        "",
        "'wherry COMMAND --help' says more, with examples. --root (or WHERRY_ROOT) chooses the instance.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command named by the arguments. Exit codes: 0 done, 1 failed, 2 wrong words; run and exec: docker's."""
    argv = sys.argv[1:]
    while argv and argv[0].startswith("--root"):
        name, equals, value = argv.pop(0).partition("=")
        if name != "--root" or (not equals and not argv):
            sys.stderr.write("wherry: --root needs a directory\n")
            raise SystemExit(2)
        os.environ["WHERRY_ROOT"] = value if equals else argv.pop(0)
    if not argv or argv[0] in ("--help", "-h", "help"):
        sys.stdout.write(overview())
        raise SystemExit(0 if argv else 2)
    if argv[0] in ("--version", "-v"):
        argv[0] = "version"
    if argv[0] not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(argv[0], list(COMMANDS), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        sys.stderr.write(f"wherry: '{argv[0]}' is not a wherry command{hint}\nSee 'wherry --help'.\n")
        raise SystemExit(2)
    raise SystemExit(_run(argv[0], argv[1:]))


def _run(name: str, argv: list[str]) -> int:
    from importlib import import_module

    try:
        command = getattr(import_module(COMMANDS[name][0]), f"{name}_command")
        code = int(command(argv) or 0)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _leave(130)
    except BrokenPipeError:
        return _leave(141)
    except Exception as error:
        if os.environ.get("WHERRY_DEBUG"):
            raise
        message = getattr(error, "message", None) or _words_of(error)
        sys.stderr.write(f"wherry {name}: {message}\n")
        return int(getattr(error, "exit_code", 1))


def _words_of(error: Exception) -> str:
    """An error of the machine in words; the name of its class only where nothing better is known."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _leave(code: int) -> int:
    """End without a word more: nobody may be reading, and Python's own flush at the end would complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


if __name__ == "__main__":
    main()
