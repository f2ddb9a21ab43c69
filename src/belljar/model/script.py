"""The script as a value: uploaded code, immutable, named by what it holds."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any, Literal

from belljar.model.image import Value


class Dependencies(Value):
    """What a script says that it needs, in an order that does not depend on how it was written down."""

    kind: Literal["pypi", "npm"]
    requirements: tuple[str, ...] = ()
    #: Versions of Python or Node.js that will do, as PEP 440 or npm spell them.
    runtime: str | None = None
    #: Where it was said, for messages.
    origin: str

    @property
    def key(self) -> str:
        """The same for all scripts that need the same packages."""
        return hashlib.sha256(json.dumps([self.kind, self.requirements]).encode()).hexdigest()


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
    #: Packages that are installed for it; None: it needs none.
    dependencies: Dependencies | None = None

    def public(self) -> dict[str, Any]:
        """The script as the HTTP API and `--json` print it."""
        return {"script_id": self.id, **self.model_dump(mode="json")}
