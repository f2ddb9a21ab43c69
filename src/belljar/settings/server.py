"""Settings of the HTTP server, and of the commands that talk to one."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from belljar.settings.area import Area


def _networks(given: list[str]) -> list[str]:
    for text in given:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValueError(f"{text[:80]!r} is neither an address nor a network such as 10.0.0.0/8") from None
    return given


class ServerSettings(Area):
    """Server: its address, and the limits of requests and uploads."""

    host: str = Field("127.0.0.1", description="Address that the server listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port that the server listens on; 0 picks a free one.")
    auth: Literal["on", "off"] = Field(
        "on", description="`off` requires no API key; allowed only with a loopback address."
    )
    tls: Literal["off", "generate"] = Field(
        "off",
        description="`generate` serves HTTPS with a certificate of a local authority, made in the data folder once.",
    )
    tls_cert: Path | None = Field(
        None, description="Certificate chain (PEM) to serve HTTPS with; read again when it changes."
    )
    tls_key: Path | None = Field(None, description="Private key (PEM, without a password) of that certificate.")
    tls_names: list[str] = Field(
        [], description='Further names and addresses for the certificate of `tls = "generate"`.'
    )
    trusted_proxies: Annotated[list[str], AfterValidator(_networks)] = Field(
        [], description="Addresses or networks of reverse proxies whose X-Forwarded-For and -Proto are believed."
    )
    cors_origins: list[str] = Field(
        [], description="Origins whose pages may send requests from a browser, for example `https://app.example`."
    )
    max_connections: int = Field(
        2048, ge=8, description="Maximum number of connections at once; fewer where `ulimit -n` is low."
    )
    max_body_memory_mb: int = Field(
        64, ge=64, description="Memory for the bodies of requests in flight; one key gets at most half of it."
    )
    max_upload_mb: int = Field(50, ge=1, description="Maximum size of an upload; refused while it streams in.")
    max_unpacked_mb: int = Field(200, ge=1, description="Maximum size of the files in an uploaded archive.")
    max_archive_members: int = Field(10_000, ge=1, description="Maximum number of files and folders in an archive.")


class ClientSettings(Area):
    """Client commands: the server that they talk to."""

    server: str | None = Field(
        None, description="URL of the server that client commands use; default: the server of this data folder."
    )
    ca_file: Path | None = Field(
        None,
        description="Certificate (PEM) that client commands trust, besides those of the system; default: that of the "
        "server of this data folder.",
    )
    api_key: str | None = Field(
        None, description="API key that client commands send; default: the admin key in this data folder."
    )
