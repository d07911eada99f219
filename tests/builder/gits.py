"""A repository to build from, and a web server that serves it as `git http-backend` does."""

import asyncio
import os
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from wherry.wire.http import Request, Response
from wherry.wire.server import Server

WHO = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


class Repository:
    """A repository in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.git("config", "uploadpack.allowAnySHA1InWant", "true")

    @property
    def url(self) -> str:
        return f"file://{self.root}"

    def git(self, *words: str) -> str:
        when = {"GIT_AUTHOR_DATE": "1000000000 +0000", "GIT_COMMITTER_DATE": "1000000000 +0000"}
        known = {**os.environ, **WHO, **when}
        made = subprocess.run(["git", "-C", str(self.root), *words], env=known, capture_output=True, check=True)
        return made.stdout.decode().strip()

    def file(self, path: str, text: str, mode: int = 0o644) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "x")
        return self.git("rev-parse", "HEAD")


@asynccontextmanager
async def served(root: Path, password: str = "") -> AsyncGenerator[str]:
    """Serve all repositories below `root`; with a password, only to who has it."""

    async def handle(request: Request) -> Response:
        if request.path.startswith("/plain/"):
            return Response(200, {"Content-Type": "text/plain"}, (root / request.path.lstrip("/")).read_bytes())
        if password and request.headers.get("authorization") != f"Bearer {password}":
            return Response(401, {"WWW-Authenticate": 'Basic realm="x"'}, b"")
        body = await request.body(limit=1 << 20)
        known = {
            **os.environ,
            **WHO,
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": request.path,
            "QUERY_STRING": request.target.partition("?")[2],
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("content-type", "") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", "") or "",
            "GIT_PROTOCOL": request.headers.get("git-protocol", "") or "",
            "REMOTE_ADDR": "127.0.0.1",
        }
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec("git", "http-backend", env=known, stdin=pipe, stdout=pipe)
        out, _ = await child.communicate(body)
        head, _, data = out.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        return Response(int(fields.pop("Status", "200")[:3]), fields, data)

    async def fail(request: Request, error: Exception) -> Response:
        raise AssertionError(request.path) from error

    server = Server(handle, on_error=fail)  # type: ignore[arg-type]
    host, port = await server.start_tcp("127.0.0.1", 0)
    try:
        yield f"http://{host}:{port}"
    finally:
        await server.close(1.0)
