"""TLS of the API: certificates from files or from the local authority, loaded again when they change.

A new certificate is used for new connections. One that cannot be loaded leaves the old one in use, and is logged.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from belljar.control.api.authority import LocalAuthority, host_names
from belljar.model.errors import BelljarError, InvalidOption
from belljar.settings import Settings

log = structlog.get_logger()

#: How often the files are looked at.
_WATCH_SECONDS = 10.0
#: How often the local authority renews what expires soon, and an expiring certificate is logged.
_RENEW_SECONDS = 12 * 3600.0
_MAX_KEY_BYTES = 64 * 1024
_WARN = timedelta(days=14)


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What clients and operators need to know of the certificate in use."""

    #: Names and addresses that it is valid for.
    names: tuple[str, ...]
    expires_at: datetime
    #: sha256 of the certificate.
    fingerprint: str


class ServerTls:
    """The certificate of a server, and the context for new connections."""

    def __init__(
        self, certificate_file: Path, key_file: Path, trust_file: Path, renew: Callable[[], object] | None = None
    ) -> None:
        """Load the certificate. `renew` writes a new one to the same files if it is time. Raises InvalidOption."""
        self._certificate_file = certificate_file
        self._key_file = key_file
        self._renew = renew
        #: The certificate that clients must trust: that of the authority, or the server's own.
        self.trust_file = trust_file
        self._seen = self._signature()
        self.context, self.certificate = _load(certificate_file, key_file)

    def reload(self) -> None:
        """Load the files again; a failure is logged and leaves the certificate in use."""
        self._seen = self._signature()
        try:
            self.context, self.certificate = _load(self._certificate_file, self._key_file)
        except InvalidOption as error:
            log.error("tls_reload_failed", error=error.message)
            return
        log.info("tls_reloaded", fingerprint=self.certificate.fingerprint, expires_at=_text(self.certificate))

    async def watch(self) -> None:
        """Renew the certificate in time, and load it when its files change, until cancelled."""
        loop = asyncio.get_running_loop()
        renew_at = loop.time()
        while True:
            if loop.time() >= renew_at:
                renew_at = loop.time() + _RENEW_SECONDS
                await self._renew_in_time()
            if await asyncio.to_thread(self._signature) != self._seen:
                await asyncio.to_thread(self.reload)
            await asyncio.sleep(_WATCH_SECONDS)

    async def _renew_in_time(self) -> None:
        if self._renew is not None:
            try:
                await asyncio.to_thread(self._renew)
            except BelljarError as error:
                log.error("tls_renewal_failed", error=error.message)
        elif self.certificate.expires_at - datetime.now(UTC) < _WARN:
            log.warning("tls_certificate_expires", expires_at=_text(self.certificate), file=str(self._certificate_file))

    def _signature(self) -> tuple[object, ...]:
        """Return what differs when a file was changed or replaced."""
        found: list[object] = []
        for path in (self._certificate_file, self._key_file):
            try:
                status = path.stat()
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError as error:
                found.append(error.errno)
        return tuple(found)


def tls_of(settings: Settings) -> ServerTls | None:
    """Return the TLS that the settings name; None for plain HTTP. Raises InvalidOption, HostError, DataFolderError."""
    certificate, key = settings.tls_cert, settings.tls_key
    if settings.tls == "generate":
        if certificate is not None or key is not None:
            raise InvalidOption("set --tls generate, or --tls-cert and --tls-key, not both", option="tls")
        authority = LocalAuthority(settings.paths.tls)
        wildcard = [] if settings.sandbox_domain is None else [f"*.{settings.sandbox_domain}"]
        names = host_names(settings.host, [*settings.tls_names, *wildcard])
        authority.ensure(names)
        return ServerTls(
            authority.server_file,
            authority.server_file,
            authority.certificate_file,
            lambda: authority.ensure(names),
        )
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "tls_cert" if certificate is None else "tls_key"
        raise InvalidOption(f"--{missing.replace('_', '-')} is missing: TLS needs both files", option=missing)
    return ServerTls(certificate.expanduser(), key.expanduser(), certificate.expanduser())


def _load(certificate_file: Path, key_file: Path) -> tuple[ssl.SSLContext, Certificate]:
    certificate = read_certificate(certificate_file)
    try:
        with key_file.open("rb") as file:
            is_encrypted = b"ENCRYPTED" in file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise InvalidOption(f"cannot read the TLS key {key_file}: {error.strerror}", option="tls_key") from None
    if is_encrypted:
        raise InvalidOption(
            f"the TLS key {key_file} is encrypted with a password; store it without one, for belljar's user only",
            option="tls_key",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password of our own, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate_file, key_file, password=lambda: "")
    except (OSError, ValueError) as error:
        raise InvalidOption(f"cannot use the TLS key {key_file}: {_reason(error)}", option="tls_key") from None
    return context, certificate


def _reason(error: OSError | ValueError) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "it does not belong to the certificate"
    return f"it is no PEM file with a private key ({reason or error})"


def read_certificate(path: Path) -> Certificate:
    """Read the first certificate of a PEM file. Raises InvalidOption."""
    try:
        parsed = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InvalidOption(f"cannot read the TLS certificate {path}: {error.strerror}", option="tls_cert") from None
    except ValueError:
        raise InvalidOption(f"{path} is no PEM file with a certificate", option="tls_cert") from None
    try:
        found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = (*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))
    except (x509.ExtensionNotFound, ValueError):
        names = ()
    return Certificate(
        names=names, expires_at=parsed.not_valid_after_utc, fingerprint=parsed.fingerprint(hashes.SHA256()).hex()
    )


def _text(certificate: Certificate) -> str:
    return certificate.expires_at.isoformat()
