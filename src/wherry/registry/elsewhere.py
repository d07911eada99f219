"""Another registry, as an upstream or a target of copies names it: a URL and, if it asks for them, a name and password."""

from typing import Protocol
from urllib.parse import urlsplit

from wherry.content.credentials import Credentials
from wherry.content.remote import Remote
from wherry.errors import Cause, Invalid


class Elsewhere(Protocol):
    """What names it. `url` is http(s)://HOST[:PORT][/PREFIX]; repositories there lie below PREFIX."""

    @property
    def url(self) -> str:
        """Where it answers."""
        ...

    @property
    def username(self) -> str:
        """Who we are there, "" for nobody."""
        ...

    @property
    def password(self) -> str:
        """The secret that goes with it."""
        ...


def check(body: Elsewhere) -> None:
    """Raise Invalid when it cannot be one."""
    parts = urlsplit(body.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise invalid("url", f"url {body.url!r}: write https://HOST, https://HOST:PORT or https://HOST/PREFIX")
    if bool(body.username) != bool(body.password):
        raise invalid("password", "username and password: both, or none")


def client(body: Elsewhere) -> Remote:
    """Make a client of it."""
    parts = urlsplit(body.url)
    credentials = Credentials(body.username, body.password) if body.username else None
    return Remote(f"{parts.scheme}://{parts.netloc}", credentials=credentials)


def name_there(body: Elsewhere, name: str) -> str:
    """Say what a repository is called there."""
    inner = urlsplit(body.url).path.strip("/")
    return f"{inner}/{name}" if inner else name


def invalid(field: str, message: str) -> Invalid:
    """An Invalid of one field."""
    return Invalid(message, causes=[Cause(field, "Invalid", message)])
