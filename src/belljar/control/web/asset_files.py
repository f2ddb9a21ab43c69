"""The files that pages load: those of `assets/`, and the scripts that `script/dashboard` builds.

Names have a hash of the content, so browsers keep them for ever. Nothing third-party is in the repository: without the
bundle, pages work without scripts.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_FOLDER = Path(__file__).parent
#: Files of this repository, served as they are.
ASSETS = _FOLDER / "assets"
#: What `bundle.py` writes; Git ignores it, wheels contain it.
BUNDLE = _FOLDER / "bundle"
#: In the bundle: the name of each entry → the name of its file.
MANIFEST = "manifest.json"
_MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Encodings by preference, with the ending of the files that the bundle has of them.
_ENCODINGS = {"br": ".br", "gzip": ".gz"}


@dataclass(frozen=True, slots=True)
class AssetFile:
    """One file, and its content by Content-Encoding; "identity" is always there."""

    name: str
    media_type: str
    contents: Mapping[str, bytes]

    def encoded(self, accepted: str) -> tuple[str, bytes]:
        """Return the best encoding that a request's Accept-Encoding allows, and the content in it."""
        names = {part.partition(";")[0].strip() for part in accepted.split(",") if "q=0" not in part.replace(" ", "")}
        best = next((each for each in _ENCODINGS if each in names and each in self.contents), "identity")
        return best, self.contents[best]


class AssetFiles:
    """The files by their hashed names, read once."""

    def __init__(self, assets: Path = ASSETS, bundle: Path = BUNDLE) -> None:
        self._assets = assets
        self._bundle = bundle

    @property
    def has_scripts(self) -> bool:
        """Return whether the scripts are built."""
        return "app.js" in self._names

    def url(self, name: str) -> str | None:
        """Return the address of a file by its plain name (`style.css`, `log.js`); None when it is not built."""
        file = self._names.get(name)
        return None if file is None else f"/static/{file}"

    def get(self, file: str) -> AssetFile | None:
        """Return a file by its hashed name."""
        return self._files.get(file)

    @cached_property
    def _loaded(self) -> tuple[dict[str, str], dict[str, AssetFile]]:
        names, files = {}, {}
        for name, file in [*_committed(self._assets), *_bundled(self._bundle)]:
            files[file.name] = file
            if name is not None:
                names[name] = file.name
        return names, files

    @property
    def _names(self) -> dict[str, str]:
        return self._loaded[0]

    @property
    def _files(self) -> dict[str, AssetFile]:
        return self._loaded[1]


def _committed(folder: Path) -> Iterator[tuple[str, AssetFile]]:
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        hashed = f"{path.stem}-{hashlib.sha256(content).hexdigest()[:10]}{path.suffix}"
        contents = {"identity": content, "gzip": gzip.compress(content, mtime=0)}
        yield path.name, AssetFile(hashed, _MEDIA_TYPES[path.suffix], contents)


def _bundled(folder: Path) -> Iterator[tuple[str | None, AssetFile]]:
    """Yield each file of the bundle with the name of its entry; None: a part that entries import."""
    if not (folder / MANIFEST).is_file():
        return
    entries = {file: name for name, file in json.loads((folder / MANIFEST).read_text(encoding="utf-8")).items()}
    for path in sorted(folder.iterdir()):
        if path.suffix in _MEDIA_TYPES:
            contents = {"identity": path.read_bytes()}
            for encoding, ending in _ENCODINGS.items():
                compressed = path.with_name(path.name + ending)
                if compressed.is_file():
                    contents[encoding] = compressed.read_bytes()
            yield entries.get(path.name), AssetFile(path.name, _MEDIA_TYPES[path.suffix], contents)


files = AssetFiles()
