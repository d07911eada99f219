"""Who we are at a registry."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from wherry.errors import BadRequest


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Who we are there: a name and password, or a token that we were given (`identity_token`, `registry_token`)."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    @classmethod
    def of(cls, auth: Mapping[str, str] | None) -> "Credentials | None":
        """Take what Docker's clients send: username, password, auth, identitytoken, registrytoken. Raises BadRequest."""
        if not auth:
            return None
        username, password = auth.get("username", ""), auth.get("password", "")
        if not username and auth.get("auth"):
            try:
                username, _, password = base64.b64decode(auth["auth"], validate=True).decode().partition(":")
            except ValueError:
                raise BadRequest("registry credentials: 'auth' is not base64 of name:password") from None
        made = cls(username, password, auth.get("identitytoken", ""), auth.get("registrytoken", ""))
        return made if made != cls() else None

    @property
    def basic(self) -> str:
        """The value of a Basic Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
