"""Settings of package indexes, and of installing the packages that scripts require."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from belljar.settings.area import Area


class PackageSettings(Area):
    """Packages: the indexes that jobs may reach, and installing what scripts require."""

    package_hosts: tuple[str, ...] = Field(
        (
            "pypi.org:443",
            "files.pythonhosted.org:443",
            "registry.npmjs.org:443",
            "deb.debian.org",
            "security.debian.org",
        ),
        description="Destinations of the egress policy `packages`, besides the mirrors below.",
    )
    package_pypi_url: str | None = Field(
        None, description="Index that pip uses in jobs with the egress policy `packages`; default: pypi.org."
    )
    package_npm_url: str | None = Field(
        None, description="Registry that npm uses in jobs with the egress policy `packages`; default: npmjs.org."
    )
    package_ca_file: Path | None = Field(
        None, description="CA certificates (PEM) that the index is verified with; default: those of this host."
    )
    package_private_networks: tuple[str, ...] = Field(
        (),
        description="Private destinations, as ADDRESS[:PORT] or NETWORK[:PORT], that the egress policy `packages` "
        "allows: for your own mirrors.",
    )
    dependencies: Literal["on", "off"] = Field(
        "on", description="`off` installs no packages that scripts require; they have what is in their image."
    )
    dependencies_timeout_seconds: float = Field(600, gt=0, description="Timeout of installing packages.")
    dependencies_memory_mb: int = Field(
        1024, ge=256, description="Memory of the machine that packages are installed in."
    )
    dependencies_disk_mb: int = Field(
        4096, ge=64, description="Disk of the machine that packages are installed in, for downloads and results."
    )
    max_layer_mb: int = Field(1024, ge=1, description="Maximum size of the installed packages of one script.")
    layer_disk_mb: int = Field(
        8192, ge=1, description="Maximum disk space for installed packages; the least recently used are evicted."
    )
