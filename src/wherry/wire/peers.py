"""Who is at the other end of an accepted connection: peer credentials, or the client's certificate."""

import asyncio
import socket
import ssl
import struct
from typing import Any

from wherry.wire.http import Peer

_CREDENTIALS = struct.Struct("3i")


def peer_of(transport: asyncio.Transport) -> Peer:
    """Read the peer's identity once, when the connection is made.

    The certificate was verified in the handshake (CERT_OPTIONAL or CERT_REQUIRED), else getpeercert has none.
    """
    sock: Any = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return Peer("unix", uid=uid, gid=gid, pid=pid)
    name = transport.get_extra_info("peername")
    address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) and len(name) >= 2 else ""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if tls is None:
        return Peer("tcp", address=address)
    der = tls.getpeercert(True) or b""
    common_name, organizations = _subject(tls.getpeercert() or {}) if der else ("", ())
    return Peer("tls", common_name=common_name, organizations=organizations, certificate_der=der, address=address)


def _subject(certificate: Any) -> tuple[str, tuple[str, ...]]:
    """Return the common name and the organisations of a certificate as `getpeercert` gives it."""
    common_name = ""
    organizations: list[str] = []
    for names in certificate.get("subject", ()):
        for key, value in names:
            if key == "commonName" and not common_name:
                common_name = value
            elif key == "organizationName":
                organizations.append(value)
    return common_name, tuple(organizations)
