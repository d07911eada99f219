"""Image names as the command line reads them, and the credentials that docker's own configuration has for them."""

import os


def split_name(text: str) -> tuple[str, str]:
    """Split NAME[:TAG]; the tag is `latest` where none is given, a digest where there is one."""
    if "@" in text:
        name, _, digest = text.partition("@")
        return name, digest
    name, colon, tag = text.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (text, "latest")


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
