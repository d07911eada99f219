"""Image names as the command line reads them, and the credentials that docker's own configuration has for them."""

import os


def split_name(text: str) -> tuple[str, str]:
    """Split NAME[:TAG]; the tag is `latest` where none is given, a digest where there is one."""
    if "@" in text:
        name, _, digest = text.partition("@")
        return name, digest
    name, colon, tag = text.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (text, "latest")


def whole_name(name: str) -> str:
    """A repository with what short names leave out: docker.io, and library for its own images."""
    host, slash, _ = name.partition("/")
    if slash and (set(host) & set(".:") or host == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def auth_header(name: str) -> dict[str, str]:
    """The credentials that docker's own configuration has for the registry of an image."""
    import base64
    import json

    host = (
        name.partition("/")[0]
        if "/" in name and set(name.partition("/")[0]) & set(".:")
        else "https://index.docker.io/v1/"
    )
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        with open(os.path.join(folder, "config.json")) as file:
            auth = json.load(file).get("auths", {}).get(host, {}).get("auth", "")
        user, _, password = base64.b64decode(auth).decode().partition(":")
    except (OSError, ValueError, AttributeError):
        user = password = ""
    if not user:
        return {}
    value = json.dumps({"username": user, "password": password, "serveraddress": host}).encode()
    return {"X-Registry-Auth": base64.urlsafe_b64encode(value).decode()}


def all_auths() -> dict[str, str]:
    """The credentials that docker's own configuration has for any registry, for a build; none without any."""
    import base64
    import json

    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    found: dict[str, dict[str, str]] = {}
    try:
        with open(os.path.join(folder, "config.json")) as file:
            for host, each in json.load(file).get("auths", {}).items():
                user, _, password = base64.b64decode(each.get("auth", "")).decode().partition(":")
                if user:
                    found[host] = {"username": user, "password": password, "serveraddress": host}
    except (OSError, ValueError, AttributeError):
        return {}
    return {"X-Registry-Config": base64.urlsafe_b64encode(json.dumps(found).encode()).decode()} if found else {}
