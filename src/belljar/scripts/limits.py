"""How much an upload may be, and the counter that holds it to that while it is unpacked."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from belljar.model.errors import InvalidScript, TooLarge
from belljar.settings import Settings

MB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadLimits:
    """Bounds of one upload."""

    #: The uploaded file itself.
    max_upload_bytes: int = 50 * MB
    #: All files of an archive or folder together.
    max_unpacked_bytes: int = 200 * MB
    #: Files, folders and links, with the folders that only paths name.
    max_members: int = 10_000
    #: An archive may unpack to this many times its size; deflate reaches 1000, ordinary code and data 3 to 30.
    max_ratio: int = 100
    #: Archives that unpack to no more than this may have any ratio.
    ratio_floor_bytes: int = 16 * MB
    #: Folders within folders.
    max_depth: int = 64
    unpack_seconds: float = 60

    @classmethod
    def of(cls, settings: Settings) -> UploadLimits:
        return cls(
            max_upload_bytes=settings.max_upload_mb * MB,
            max_unpacked_bytes=settings.max_unpacked_mb * MB,
            max_members=settings.max_archive_members,
        )


class ExtractionBudget:
    """What is left of the limits while one upload is unpacked in a thread; `stop` set from outside ends the work."""

    def __init__(self, limits: UploadLimits, packed_bytes: int | None = None) -> None:
        """`packed_bytes` is the archive's size, which bounds what it may unpack to; None: it is no archive."""
        self.limits = limits
        self.stop = threading.Event()
        self._deadline = time.monotonic() + limits.unpack_seconds
        self._members = 0
        self._bytes = 0
        self._stream_bytes = 0
        self._ratio_bytes = limits.max_unpacked_bytes
        if packed_bytes is not None:
            self._ratio_bytes = max(limits.ratio_floor_bytes, packed_bytes * limits.max_ratio)

    def take_member(self) -> None:
        """Count one file, folder or link. Raises TooLarge."""
        self.check()
        self._members += 1
        if self._members > self.limits.max_members:
            most = self.limits.max_members
            raise TooLarge(f"the script has over {most} files and folders; leave some out or pack them into one file")

    def take_bytes(self, count: int) -> None:
        """Count bytes of a file before they are written. Raises TooLarge, InvalidScript."""
        self.check()
        self._bytes += count
        self._compare(self._bytes, headers=0)

    def take_stream(self, count: int) -> None:
        """Count decompressed bytes of a tar archive, which holds headers besides the files."""
        self.check()
        self._stream_bytes += count
        self._compare(self._stream_bytes, headers=MB + self.limits.max_members * 2048)

    def check(self) -> None:
        """Raises InvalidScript when unpacking has taken too long, or was stopped from outside."""
        if self.stop.is_set():
            raise InvalidScript("the upload was given up while it was unpacked; send it again")
        if time.monotonic() > self._deadline:
            seconds = self.limits.unpack_seconds
            raise InvalidScript(f"unpacking took over {seconds:g} seconds; upload a smaller or simpler archive")

    def _compare(self, count: int, headers: int) -> None:
        if count > self.limits.max_unpacked_bytes + headers:
            most = self.limits.max_unpacked_bytes // MB
            raise TooLarge(f"the script unpacks to over {most} MB; leave files out, or let the job make them")
        if count > self._ratio_bytes + headers:
            ratio = self.limits.max_ratio
            raise InvalidScript(f"the archive unpacks to over {ratio} times its size, as decompression bombs do")
