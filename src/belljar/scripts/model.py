"""The script as a value: uploaded code, immutable, named by what it holds."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from belljar.images.manifest import Value


class Script(Value):
    """One file, or several with an entrypoint; the same content, language and entrypoint have the same id."""

    #: sha256 in hex over the language, the entrypoint and every file's path, mode and content.
    id: str
    project: str
    #: What the uploaded file was called; for people.
    name: str
    language: str
    #: Path of the file that is run, below the script's top folder.
    entrypoint: str
    #: All files together, unpacked.
    size_bytes: int
    file_count: int
    created_at: datetime

    def public(self) -> dict[str, Any]:
        """The script as the HTTP API and `--json` print it."""
        return {"script_id": self.id, **self.model_dump(mode="json")}
