"""The script as a value: uploaded code, immutable, addressed by its content."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any, Literal

from belljar.model.value import Value


class Dependencies(Value):
    """The packages that a script declares, in an order that does not depend on how they were written."""

    kind: Literal["pypi", "npm"]
    requirements: tuple[str, ...] = ()
    #: The required versions of Python (PEP 440) or Node.js (npm).
    runtime: str | None = None
    #: The file or block that declares them, for messages.
    origin: str

    @property
    def key(self) -> str:
        """Return a digest that is equal for all scripts with the same requirements."""
        return hashlib.sha256(json.dumps([self.kind, self.requirements]).encode()).hexdigest()


class Script(Value):
    """One file, or several with an entrypoint; equal content, language and entrypoint give the same id."""

    #: sha256 in hex over the language, the entrypoint and every file's path, mode and content.
    id: str
    project: str
    #: Name of the uploaded file, for display.
    name: str
    language: str
    #: Path of the file to run, below the script's top folder.
    entrypoint: str
    #: Size of all files, unpacked.
    size_bytes: int
    file_count: int
    created_at: datetime
    #: The packages to install; None: none.
    dependencies: Dependencies | None = None

    def public(self) -> dict[str, Any]:
        """Return the script as the HTTP API and `--json` print it."""
        return {"script_id": self.id, **self.model_dump(mode="json")}
