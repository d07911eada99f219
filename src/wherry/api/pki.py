"""The cluster's own certificate authority, and the key that signs service-account tokens.

Certificates live in machine time: TLS compares them with the machine's clock, whatever the cluster's clock says.
Tokens live in cluster time (see `tokens`). Keys are EC P-256: small, and fast to make.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.clock import Clock, machine
from wherry.errors import Damaged

if TYPE_CHECKING:
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

CA_DAYS = 3650
LEAF_DAYS = 365
_SKEW_S = 300


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate and its private key, both PEM; `expires` is unix seconds."""

    certificate: bytes
    key: bytes
    expires: float

    def save(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write `NAME.crt` and `NAME.key` (0600), each replaced whole; return the two paths."""
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        _write(key, self.key, 0o600)
        _write(certificate, self.certificate, 0o644)
        return certificate, key


class Authority:
    """Issues certificates for one cluster."""

    def __init__(self, directory: Path, ca_pem: bytes, clock: Clock) -> None:
        self.directory = directory
        self.ca_pem = ca_pem
        self.clock = clock
        self._ca: tuple[x509.Certificate, EllipticCurvePrivateKey] | None = None
        self._signing: EllipticCurvePrivateKey | None = None

    @classmethod
    def load_or_create(cls, directory: Path, clock: Clock, *, signs_tokens: bool = True) -> "Authority":
        """Read the authority in `directory`, or make one there: `ca.crt`, `ca.key`, `sa.key` (keys 0600).

        Without `signs_tokens` there is no `sa.key`.

        Raises Damaged when only one half of it is there: we would never silently replace a cluster's identity.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        certificate, key, signing = directory / "ca.crt", directory / "ca.key", directory / "sa.key"
        if not key.exists() and not certificate.exists():
            made = _make_ca()
            _write(key, made.key, 0o600)
            _write(certificate, made.certificate, 0o644)
        if not (key.exists() and certificate.exists()):
            missing = certificate if key.exists() else key
            raise Damaged(f"{missing} is missing: restore it, or remove {directory} to make a new cluster identity")
        if signs_tokens and not signing.exists():
            _write(signing, _pem_of(_new_key()), 0o600)
        return cls(directory, certificate.read_bytes(), clock)

    def issue_client(self, name: str, groups: Sequence[str] = (), *, days: float = LEAF_DAYS) -> Credentials:
        """A client certificate: the user `name` (CN) in `groups` (O)."""
        return self._issue(name, groups, (), server=False, days=days)

    def issue_server(self, name: str, hosts: Sequence[str], *, days: float = LEAF_DAYS) -> Credentials:
        """A server certificate for host names and addresses."""
        return self._issue(name, (), hosts, server=True, days=days)

    def server_context(self, certificate: Path, key: Path) -> "ssl.SSLContext":
        """TLS for a server of this cluster: clients may show a certificate, which must then be ours."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=self.ca_pem.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        context.set_alpn_protocols(["http/1.1"])
        return context

    def client_context(self, credentials: Credentials | None = None) -> "ssl.SSLContext":
        """TLS for a client that trusts this cluster alone; `credentials` say who it is."""
        import ssl

        context = ssl.create_default_context(cadata=self.ca_pem.decode())
        if credentials is not None:
            certificate, key = credentials.save(self.directory, f"client-{os.getpid()}-{id(credentials):x}")
            try:
                context.load_cert_chain(certificate, key)
            finally:
                certificate.unlink()
                key.unlink()
        return context

    def signing_key(self) -> "EllipticCurvePrivateKey":
        """The key that signs service-account tokens."""
        if self._signing is None:
            self._signing = _load_key(self.directory / "sa.key")
        return self._signing

    def verifying_key(self) -> "EllipticCurvePublicKey":
        """The public half of the signing key."""
        return self.signing_key().public_key()

    def key_id(self) -> str:
        """A stable name of the signing key, for the token's header and /openid/v1/jwks."""
        import base64
        import hashlib

        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        der = self.verifying_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()

    def _issue(
        self, name: str, groups: Sequence[str], hosts: Sequence[str], *, server: bool, days: float
    ) -> Credentials:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        ca, ca_key = self._load_ca()
        key = _new_key()
        # Order matters to no one but readers: upstream's certificates list organisations first, too.
        parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, name)])
        start = datetime.fromtimestamp(machine.now() - _SKEW_S, UTC)
        end = min(start + timedelta(days=days, seconds=_SKEW_S), ca.not_valid_after_utc)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )
        if hosts:
            names = [_host(host) for host in dict.fromkeys(hosts)]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(ca_key, hashes.SHA256())
        return Credentials(certificate.public_bytes(Encoding.PEM), _pem_of(key), end.timestamp())

    def _load_ca(self) -> "tuple[x509.Certificate, EllipticCurvePrivateKey]":
        if self._ca is None:
            from cryptography import x509

            self._ca = x509.load_pem_x509_certificate(self.ca_pem), _load_key(self.directory / "ca.key")
        return self._ca


def _make_ca() -> Credentials:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    key = _new_key()
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"wherry-ca-{serial % 16**8:08x}")])
    start = datetime.fromtimestamp(machine.now() - _SKEW_S, UTC)
    end = start + timedelta(days=CA_DAYS)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Credentials(certificate.public_bytes(Encoding.PEM), _pem_of(key), end.timestamp())


def _key_usage(*, ca: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _new_key() -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _pem_of(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def _load_key(path: Path) -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except ValueError as error:
        raise Damaged(f"{path} is no PEM private key: {error}") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise Damaged(f"{path} holds another kind of key than EC P-256, which wherry makes")
    return key


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file whole; its first byte already has `mode`."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
