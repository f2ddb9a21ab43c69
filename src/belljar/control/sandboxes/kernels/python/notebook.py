"""`IPython.display` for code that imports it in an image without IPython: what is shown there is shown here.

The finder comes behind all others, so that an installed IPython is found first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

_NAMES = ("IPython", "IPython.display")
_TYPES = {
    "HTML": "text/html",
    "Markdown": "text/markdown",
    "Latex": "text/latex",
    "SVG": "image/svg+xml",
    "JSON": "application/json",
    "Javascript": "application/javascript",
    "Image": "image/png",
}
#: How images begin.
_SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}


class Shown:
    """Data of one MIME type, given or read from a file."""

    mime = "text/plain"

    def __init__(self, data: Any = None, url: Any = None, filename: Any = None, **_: Any) -> None:
        if self.mime == "image/png" and isinstance(data, str) and filename is None:
            filename, data = data, None
        if url is not None:
            raise ValueError("url is not supported here: fetch it, and pass its data")
        if filename is not None:
            with open(filename, "rb") as file:
                data = file.read()
            if not self.mime.startswith("image/png"):
                data = data.decode()
        self.data = data

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        mime = self.mime
        if isinstance(self.data, bytes):
            mime = next((found for start, found in _SIGNATURES.items() if self.data.startswith(start)), mime)
        return {mime: self.data}


class NotebookModules:
    """A finder and loader of the modules."""

    def __init__(self, display: Callable[..., None]) -> None:
        self._display = display

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of a module that is provided here."""
        if name not in _NAMES:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name == _NAMES[0])  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        """Let the import system make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module."""
        if module.__name__ == _NAMES[0]:
            module.__dict__.update(get_ipython=_none, version_info=(8, 0, 0), __version__="8.0.0")
            return
        classes = {
            name: type(name, (Shown,), {"mime": mime, "__module__": module.__name__}) for name, mime in _TYPES.items()
        }
        module.__dict__.update(classes, display=self._display, clear_output=_none)


def _none(*_: Any, **__: Any) -> None:
    return None
