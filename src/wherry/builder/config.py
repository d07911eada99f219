"""The image config as a build changes it, in Docker's and OCI's words. Source: OCI image-spec 1.1, "Image Configuration"."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.content.oci import Platform

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = ("/bin/sh", "-c")

Json = dict[str, Any]


class ImageConfig:
    """The `config` object of one stage while its instructions are read."""

    def __init__(self, base: Mapping[str, Any] | None = None) -> None:
        """Begin with a base's `config`; None is scratch, which Docker gives a PATH."""
        self.body: Json = copy.deepcopy(dict(base)) if base is not None else {"Env": [f"PATH={DEFAULT_PATH}"]}
        self.author = ""
        self._has_command = False

    @property
    def shell(self) -> Sequence[str]:
        """What the shell forms of RUN, CMD and ENTRYPOINT are run by."""
        return self.body.get("Shell") or SHELL

    @property
    def env(self) -> dict[str, str]:
        """The environment by name, in order."""
        pairs = (entry.partition("=") for entry in self.body.get("Env") or ())
        return {name: value for name, _, value in pairs}

    @property
    def workdir(self) -> str:
        """The working directory; "/" when none is set."""
        return self.body.get("WorkingDir") or "/"

    @property
    def user(self) -> str:
        """The user; "" is root."""
        return self.body.get("User") or ""

    def set_env(self, name: str, value: str) -> None:
        """Set one variable; a known one keeps its place."""
        env = self.env
        env[name] = value
        self.body["Env"] = [f"{key}={text}" for key, text in env.items()]

    def set_label(self, name: str, value: str) -> None:
        """Set one label."""
        self.body["Labels"] = {**(self.body.get("Labels") or {}), name: value}

    def set_workdir(self, path: str) -> None:
        """Set the working directory, already absolute."""
        self.body["WorkingDir"] = path

    def set_user(self, user: str) -> None:
        """Set the user."""
        self.body["User"] = user

    def expose(self, ports: Sequence[str]) -> None:
        """Add ports such as `80/tcp`."""
        self.body["ExposedPorts"] = {**(self.body.get("ExposedPorts") or {}), **{port: {} for port in ports}}

    def set_command(self, argv: Sequence[str]) -> None:
        """Set CMD."""
        self.body["Cmd"] = list(argv)
        self._has_command = True

    def set_entrypoint(self, argv: Sequence[str]) -> None:
        """Set ENTRYPOINT; a CMD that came from the base goes, since it was meant for the base's entrypoint."""
        self.body["Entrypoint"] = list(argv)
        if not self._has_command:
            self.body.pop("Cmd", None)

    def set_shell(self, argv: Sequence[str]) -> None:
        """Set SHELL."""
        self.body["Shell"] = list(argv)

    def set_stop_signal(self, signal: str) -> None:
        """Set STOPSIGNAL."""
        self.body["StopSignal"] = signal

    def add_volumes(self, paths: Sequence[str]) -> None:
        """Add VOLUMEs."""
        self.body["Volumes"] = {**(self.body.get("Volumes") or {}), **{path: {} for path in paths}}

    def add_trigger(self, text: str) -> None:
        """Add an ONBUILD."""
        self.body["OnBuild"] = [*(self.body.get("OnBuild") or ()), text]

    def take_triggers(self) -> Sequence[str]:
        """Take the base's ONBUILDs: they are not handed on."""
        return self.body.pop("OnBuild", None) or ()

    def set_health(self, check: Mapping[str, Any]) -> None:
        """Set HEALTHCHECK. Source: Docker, image spec 1.2, "Healthcheck"."""
        self.body["Healthcheck"] = dict(check)


def document(
    config: Mapping[str, Any],
    *,
    platform: Platform,
    created: str,
    diff_ids: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    author: str = "",
) -> Json:
    """Make the whole config document of an image."""
    made: Json = {
        "created": created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [dict(entry) for entry in history],
    }
    if author:
        made["author"] = author
    if platform.variant:
        made["variant"] = platform.variant
    return made
