"""Settings of where belljar stores data, and how much disk space it leaves free."""

import os
from pathlib import Path

from pydantic import Field

from belljar.data_dir import DataDir
from belljar.settings.area import Area
from belljar.settings.file import user_folder


def default_data_dir() -> Path:
    """Return /var/lib/belljar for root, else a folder in the user's XDG data folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/belljar")
    return user_folder("XDG_DATA_HOME", ".local/share") / "belljar"


class StorageSettings(Area):
    """Storage: where data is stored, and the disk space that is kept free."""

    data_dir: Path = Field(
        default_factory=default_data_dir, description="The data folder, which holds everything that belljar stores."
    )
    database_url: str | None = Field(
        None, description="Database, as `sqlite:///PATH`; default: `belljar.db` in the data folder."
    )
    blobs_url: str | None = Field(
        None, description="Object store, such as `s3://BUCKET/PREFIX`; default: `blobs` in the data folder."
    )
    min_free_disk_mb: int = Field(
        256, ge=0, description="Disk space kept in reserve; with less, no new jobs and uploads are accepted."
    )
    min_free_disk_percent: float = Field(
        5, ge=0, le=90, description="The reserve as a share of the disk and of its inodes; the smaller reserve applies."
    )
    min_free_inodes: int = Field(
        1000, ge=0, description="Inodes kept in reserve; with fewer, no new jobs and uploads are accepted."
    )

    @property
    def paths(self) -> DataDir:
        """The places in the data folder."""
        return DataDir(self.data_dir)
