"""TLS: with the operator's certificate, or with one made here for a network of one's own.

A certificate made here names this machine and its addresses, is kept in `data_dir/tls`, and is made anew with the same
key when it runs out or the machine has a new address. Nobody vouches for it: compare its fingerprint once, or give the
file to clients. It knows files and no sockets.
"""

import datetime
import ipaddress
import logging
import os
import socket
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.config import ServerConfig
from server.durable import private_folder
from server.errors import ConfigError

__all__ = ["Tls", "open_tls"]

log = logging.getLogger(__name__)

_VALID: Final = datetime.timedelta(days=397)
"""Browsers refuse certificates that hold longer."""
_SPARE: Final = datetime.timedelta(days=14)
_SLACK: Final = datetime.timedelta(hours=1)
"""Clocks differ: it already held an hour ago."""
_NOWHERE: Final = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))
"""Addresses kept for documentation. Asking how one would get there sends nothing."""


class Tls:
    """A context for the listening socket, and where its certificate lies."""

    def __init__(self, cert: Path, key: Path) -> None:
        self.cert = cert
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.reload()

    def reload(self) -> None:
        """Read the files again, for connections to come. Raises `ConfigError`."""
        try:
            self.context.load_cert_chain(self.cert, self._key, password="")
        except (OSError, ValueError) as problem:  # OpenSSL's errors are OSErrors
            why = getattr(problem, "reason", None) or getattr(problem, "strerror", None) or str(problem)
            raise ConfigError(
                "tls_cert",
                got=f"{self.cert} with {self._key}, which cannot be used ({why})",
                expected="a certificate and its own private key without a password, both PEM",
            ) from problem
        certificate = x509.load_pem_x509_certificates(self.cert.read_bytes())[0]
        self.fingerprint = certificate.fingerprint(hashes.SHA256()).hex(":").upper()
        """SHA-256 of the certificate, as browsers show it."""


def open_tls(config: ServerConfig) -> Tls | None:
    """Give what `config` asks for; None for plain HTTP. Blocks. Raises `ConfigError`."""
    given = [path for path in (config.tls_cert, config.tls_key) if path is not None]
    if config.tls_self_signed and given:
        raise ConfigError("tls_self_signed", got="true, and a certificate", expected="one of the two")
    if len(given) == 1:
        raise ConfigError("tls_cert", got="one of certificate and key", expected="both tls_cert and tls_key, or none")
    if config.tls_cert is not None and config.tls_key is not None:
        return Tls(config.tls_cert, config.tls_key)
    return _self_signed(config.data_dir / "tls", config.host) if config.tls_self_signed else None


def _self_signed(folder: Path, host: str) -> Tls:
    cert, key_file = folder / "cert.pem", folder / "key.pem"
    try:
        private_folder(folder)
        names, addresses = _own_names(host), _own_addresses(host)
        if not (key_file.is_file() and cert.is_file() and _still_holds(cert, names, addresses)):
            key = _key(key_file)
            _write(cert, _certificate(key, names, addresses).public_bytes(serialization.Encoding.PEM), 0o644)
            log.info("made a certificate for %s", ", ".join([*names, *map(str, addresses)]))
        return Tls(cert, key_file)
    except OSError as problem:
        raise ConfigError(
            "data_dir", got=f"{folder}, which cannot be written ({problem.strerror})", expected="a folder of one's own"
        ) from problem


def _still_holds(path: Path, names: list[str], addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    covered = set(names) <= set(named.get_values_for_type(x509.DNSName))
    reached = set(addresses) <= set(named.get_values_for_type(x509.IPAddress))
    return covered and reached and _now() + _SPARE < certificate.not_valid_after_utc


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the key, or make one."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (FileNotFoundError, ValueError, TypeError):
        key = None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key
    made = ec.generate_private_key(ec.SECP256R1())
    _write(
        path,
        made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        0o600,
    )
    return made


def _certificate(
    key: ec.EllipticCurvePrivateKey, names: list[str], addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]
) -> x509.Certificate:
    itself = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Duologue")])
    public, now = key.public_key(), _now()
    also = x509.SubjectAlternativeName([*map(x509.DNSName, names), *map(x509.IPAddress, addresses)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(itself)
        .issuer_name(itself)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + _VALID)
        .add_extension(also, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_for_signing(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def _for_signing() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _own_names(host: str) -> list[str]:
    """`localhost`, the machine's name, and the name it listens on, as far as a certificate can hold them."""
    names = {"localhost", socket.gethostname().lower(), host.lower()}
    return sorted(name for name in names if name and name.isascii() and not _is_address(name))


def _own_addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found = {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}
    if _is_address(host) and not ipaddress.ip_address(host).is_unspecified:
        found.add(ipaddress.ip_address(host))
    for nowhere, family in _NOWHERE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((nowhere, 9))
                found.add(ipaddress.ip_address(probe.getsockname()[0]))
        except OSError:
            continue  # no network of this kind
    return sorted(found, key=str)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _write(path: Path, content: bytes, mode: int) -> None:
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
