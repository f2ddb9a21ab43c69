"""Settings of the HTTP server, and of the commands that talk to one."""

from typing import Literal

from pydantic import Field

from belljar.settings.area import Area


class ServerSettings(Area):
    """Server: its address, and the limits of requests and uploads."""

    host: str = Field("127.0.0.1", description="Address that the server listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port that the server listens on; 0 picks a free one.")
    auth: Literal["on", "off"] = Field(
        "on", description="`off` requires no API key; allowed only with a loopback address."
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
    api_key: str | None = Field(
        None, description="API key that client commands send; default: the admin key in this data folder."
    )
