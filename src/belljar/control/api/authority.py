"""The local authority of `--tls generate`: a certificate authority in the data folder, and the server's certificate.

The authority is made once. The server's certificate is made anew when its names change or it expires soon. Keys are
readable by this user only. What is in `ca.pem` may be given to everybody: clients need it to trust the server.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from belljar.data_dir import data_folder_error, private_file, private_folder
from belljar.model.errors import HostError, InvalidOption
from belljar.system.atomic_write import atomic_path

_CA_DAYS = 3650
_SERVER_DAYS = 90
#: A certificate with less time left is made anew.
_RENEW_DAYS = 30
#: Clocks of clients may be behind.
_SKEW = timedelta(hours=1)


class LocalAuthority:
    """The authority in a folder: `ca.key` and `ca.pem`, and `server.pem` with the server's key and certificate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key_file = folder / "ca.key"
        self.certificate_file = folder / "ca.pem"
        self.server_file = folder / "server.pem"

    def ensure(self, names: Iterable[str]) -> bool:
        """Make what is missing or expires soon. Return whether the server has a new certificate.

        Raises DataFolderError, DiskFull, HostError, InvalidOption.
        """
        wanted = {_general_name(name) for name in names}
        try:
            private_folder(self._folder)
            key, authority = self._authority()
            if self._is_good(authority, wanted):
                return False
            self._write(self.server_file, _server_pem(key, authority, sorted(wanted, key=str)), private=True)
        except OSError as error:
            raise data_folder_error(self._folder, error) from error
        return True

    def _authority(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        if not self._key_file.exists():
            if self.certificate_file.exists():
                raise HostError(
                    f"{self._key_file} is missing, but {self.certificate_file} exists; restore it, or remove "
                    f"{self._folder} to make a new authority, which clients must trust anew"
                )
            new = ec.generate_private_key(ec.SECP256R1())
            self._write(self._key_file, _key_pem(new), private=True)
        try:
            key = serialization.load_pem_private_key(self._key_file.read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("it is of another kind")
            if not self.certificate_file.exists():  # the first time, or a crash after the key was written
                self._write(self.certificate_file, _pem(_authority_certificate(key)), private=False)
            authority = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
        except ValueError as error:
            raise HostError(f"the local authority in {self._folder} is damaged: {error}; restore a backup") from error
        if authority.not_valid_after_utc < datetime.now(UTC) + timedelta(days=_SERVER_DAYS):
            raise HostError(
                f"the local authority in {self._folder} expires on {authority.not_valid_after_utc:%Y-%m-%d}; remove "
                "the folder to make a new one, which clients must trust anew"
            )
        return key, authority

    def _is_good(self, authority: x509.Certificate, wanted: set[x509.GeneralName]) -> bool:
        """Return whether the server's certificate is of this authority, for all these names, and valid for long."""
        try:
            certificate = x509.load_pem_x509_certificate(self.server_file.read_bytes())
            certificate.verify_directly_issued_by(authority)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (FileNotFoundError, ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
            return False
        remaining = certificate.not_valid_after_utc - datetime.now(UTC)
        return remaining > timedelta(days=_RENEW_DAYS) and wanted <= set(names)

    def _write(self, path: Path, content: bytes, *, private: bool) -> None:
        with atomic_path(path, durable=True) as part:
            private_file(part)
            part.write_bytes(content)
            if not private:
                part.chmod(0o644)


def host_names(host: str, more: Iterable[str]) -> list[str]:
    """Return the names and addresses by which clients reach a server that listens on `host`."""
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *more]
    if host in ("0.0.0.0", "::"):  # noqa: S104 (compared, not bound)
        names += _own_addresses()
    else:
        names.append(host)
    return list(dict.fromkeys(names))


def _own_addresses() -> list[str]:
    """Return the addresses from which this host reaches other hosts. Sends nothing."""
    found = []
    for family, other in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((other, 9))
                found.append(str(probe.getsockname()[0]))
        except OSError:  # no route, or no such family
            continue
    return found


def _general_name(name: str) -> x509.GeneralName:
    """Return a name or address as it is in a certificate. Raises InvalidOption."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise InvalidOption(f"{name[:80]!r} cannot be in a certificate; use a host name or an address") from None


def _builder(subject: str, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().serial_number(x509.random_serial_number())
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
    return builder.not_valid_before(now - _SKEW).not_valid_after(now + timedelta(days=days))


def _authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    subject = f"belljar on {socket.gethostname()}"[:64]
    builder = _builder(subject, _CA_DAYS).public_key(key.public_key())
    builder = builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())


def _server_pem(
    authority_key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, names: list[x509.GeneralName]
) -> bytes:
    """Return a new key of the server and its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("belljar", _SERVER_DAYS).public_key(key.public_key()).issuer_name(authority.subject)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = builder.add_extension(issuer, critical=False).sign(authority_key, hashes.SHA256())
    return _key_pem(key) + _pem(certificate)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
