"""The text of a kubeconfig: where the API is, whom to trust, who we are."""

import base64

from wherry.api.pki import Credentials


def text(
    server: str,
    ca_pem: bytes,
    *,
    credentials: Credentials | None = None,
    token: str = "",
    name: str = "wherry",
    user: str = "admin",
    namespace: str = "default",
) -> str:
    """A kubeconfig with one cluster, one user (by certificate or token) and one context `name`."""
    lines = [
        "apiVersion: v1",
        "kind: Config",
        "clusters:",
        f"- name: {name}",
        "  cluster:",
        f"    server: {server}",
    ]
    if ca_pem:
        lines.append(f"    certificate-authority-data: {_base64(ca_pem)}")
    lines += ["users:", f"- name: {name}-{user}", "  user:"]
    if credentials is not None:
        lines.append(f"    client-certificate-data: {_base64(credentials.certificate)}")
        lines.append(f"    client-key-data: {_base64(credentials.key)}")
    elif token:
        lines.append(f"    token: {token}")
    else:
        lines[-1] = "  user: {}"
    lines += [
        "contexts:",
        f"- name: {name}",
        "  context:",
        f"    cluster: {name}",
        f"    user: {name}-{user}",
        f"    namespace: {namespace}",
        f"current-context: {name}",
        "",
    ]
    return "\n".join(lines)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
