"""The limits of an upload, and the budget that enforces them during extraction."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from belljar.model.errors import InvalidScript, TooLarge
from belljar.settings.server import ServerSettings

MB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadLimits:
    """Limits of one upload."""

    #: The uploaded file itself.
    max_upload_bytes: int = 50 * MB
    #: All files of an archive or folder together.
    max_unpacked_bytes: int = 200 * MB
    #: Files, folders and links, including folders that only occur in paths.
    max_members: int = 10_000
    #: Highest ratio of an archive's extracted size to its size; deflate reaches 1000, ordinary code and data 3 to 30.
    max_ratio: int = 100
    #: Archives that extract to at most this size may have any ratio.
    ratio_floor_bytes: int = 16 * MB
    #: Nesting of folders.
    max_depth: int = 64
    unpack_seconds: float = 60

    @classmethod
    def from_settings(cls, settings: ServerSettings) -> UploadLimits:
        """Return the limits that the settings configure."""
        return cls(
            max_upload_bytes=settings.max_upload_mb * MB,
            max_unpacked_bytes=settings.max_unpacked_mb * MB,
            max_members=settings.max_archive_members,
        )


class ExtractionBudget:
    """Counts what one upload extracts, in a thread, against the limits; setting `stop` from outside ends the work."""

    def __init__(self, limits: UploadLimits, packed_bytes: int | None = None) -> None:
        """Start a budget; `packed_bytes` is an archive's size, which bounds its ratio, None for other uploads."""
        self.limits = limits
        self.stop = threading.Event()
        self._deadline = time.monotonic() + limits.unpack_seconds
        self._members = 0
        self._bytes = 0
        self._stream_bytes = 0
        self._ratio_bytes = limits.max_unpacked_bytes
        if packed_bytes is not None:
            self._ratio_bytes = max(limits.ratio_floor_bytes, packed_bytes * limits.max_ratio)

    def count_member(self) -> None:
        """Count one file, folder or link. Raises TooLarge."""
        self.check()
        self._members += 1
        if self._members > self.limits.max_members:
            limit = self.limits.max_members
            raise TooLarge(f"the script has over {limit} files and folders; leave some out or pack them into one file")

    def count_bytes(self, count: int) -> None:
        """Count bytes of a file's content before they are written. Raises TooLarge, InvalidScript."""
        self.check()
        self._bytes += count
        self._check_size(self._bytes, headers=0)

    def count_stream_bytes(self, count: int) -> None:
        """Count decompressed bytes of a tar archive, headers included. Raises TooLarge, InvalidScript."""
        self.check()
        self._stream_bytes += count
        self._check_size(self._stream_bytes, headers=MB + self.limits.max_members * 2048)

    def check(self) -> None:
        """Raise InvalidScript when extraction has taken too long, or `stop` is set."""
        if self.stop.is_set():
            raise InvalidScript("upload cancelled while extracting; send it again")
        if time.monotonic() > self._deadline:
            seconds = self.limits.unpack_seconds
            raise InvalidScript(f"extracting took over {seconds:g} seconds; upload a smaller or simpler archive")

    def _check_size(self, count: int, headers: int) -> None:
        if count > self.limits.max_unpacked_bytes + headers:
            limit_mb = self.limits.max_unpacked_bytes // MB
            raise TooLarge(f"the script extracts to over {limit_mb} MB; leave files out, or create them in the job")
        if count > self._ratio_bytes + headers:
            ratio = self.limits.max_ratio
            raise InvalidScript(f"compression ratio over {ratio} (possible zip bomb); leave very repetitive files out")
