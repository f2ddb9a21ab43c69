"""Settings of building and importing images."""

from pydantic import Field

from belljar.settings.area import Area


class ImageSettings(Area):
    """Images: building and importing them."""

    debian_suite: str = Field("bookworm", description="Debian release that images are built from.")
    debian_mirror: str | None = Field(
        None, description="Package mirror for image builds; default: the mirror of this host, else deb.debian.org."
    )
    debian_security_mirror: str | None = Field(
        None,
        description="Mirror of security updates for image builds; default: that of this host.",
    )
    image_disk_mb: int | None = Field(
        None, ge=256, description="Maximum disk space for images and the caches of building them; default: no limit."
    )
    max_image_mb: int = Field(16384, ge=64, description="Maximum size of the files in an imported image.")
    max_image_files: int = Field(1_000_000, ge=100, description="Maximum number of files in an imported image.")
