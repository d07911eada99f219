"""/livez, /readyz, /healthz and /version."""

import platform
import sys
from collections.abc import Mapping

import orjson

from wherry.api.settings import Check
from wherry.wire.http import Request, Response


class Health:
    """The checks of one server. Live ones say that it should not be restarted, ready ones that it may be asked."""

    def __init__(self, live: Mapping[str, Check], ready: Mapping[str, Check]) -> None:
        self._live = live
        self._ready = {**live, **ready}

    def answer(self, request: Request) -> Response:
        """GET /readyz, /readyz?verbose, /readyz?exclude=NAME, /readyz/NAME; 503 with the checks when one fails."""
        parts = request.path.strip("/").split("/")
        endpoint, single = parts[0], parts[1] if len(parts) > 1 else ""
        checks = self._live if endpoint == "livez" else self._ready
        if single:
            checks = {name: check for name, check in checks.items() if name == single}
            if not checks:
                return Response.text(f"there is no check {single}\n", 404)
        excluded = set(request.all("exclude"))
        unknown = excluded - set(checks)
        lines: list[str] = []
        failed = False
        for name, check in checks.items():
            problem = "" if name in excluded else check()
            if name in excluded:
                lines.append(f"[+]{name} excluded: ok")
            elif problem:
                failed = True
                lines.append(f"[-]{name} failed: {problem}")
            else:
                lines.append(f"[+]{name} ok")
        if unknown:
            lines.append(f"warn: some health checks cannot be excluded: no matches for {', '.join(sorted(unknown))}")
        headers = [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-cache, private")]
        if failed:
            return Response.text("\n".join([*lines, f"{endpoint} check failed", ""]), 503, headers)
        if request.first("verbose") is not None:
            return Response.text("\n".join([*lines, f"{endpoint} check passed", ""]), 200, headers)
        return Response.text("ok", 200, headers)


def version(git_version: str) -> Response:
    """GET /version: major and minor are digits only, as clients parse them."""
    major, minor, _ = git_version.lstrip("v").split(".", 2)
    info = {
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": minor,
        "gitVersion": git_version,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        # The field's name is fixed by clients; what it says is what runs this server.
        "goVersion": f"python{sys.version_info.major}.{sys.version_info.minor}",
        "compiler": platform.python_implementation().lower(),
        "platform": f"{sys.platform}/{_machine()}",
    }
    return Response.json(orjson.dumps(info))


def _machine() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
