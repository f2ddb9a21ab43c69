"""Turns a value into a MIME bundle by the methods that notebooks use: `_repr_mimebundle_`, `_repr_html_`, …"""

from __future__ import annotations

import base64
import json
import pprint
import sys
import traceback
from typing import Any

#: Largest bundle as JSON; representations beyond it are left out.
MAX_BUNDLE_BYTES = 4 * 1024 * 1024
#: Values of JSON in one representation, about; the server takes a little more in a whole run.
_MAX_VALUES = 200_000
#: Characters of a plain text.
_MAX_TEXT = 1024 * 1024
#: Longer ones are neither laid out nor sent as JSON.
_MAX_PRETTY = 64 * 1024
_LINE = 80
#: Rows of a table that are sent as JSON.
_MAX_ROWS = 1000

_METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_pdf_": "application/pdf",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
}
_COLLECTIONS = (dict, list, tuple, set, frozenset)


def bundle_of(value: Any) -> dict[str, Any]:
    """Return the value's representations by MIME type. Raises what its `repr` raises."""
    bundle = {} if isinstance(value, type) else _from_methods(value)
    if "text/plain" not in bundle:
        bundle["text/plain"] = _plain(value)
    if "application/json" not in bundle and type(value) in (dict, list) and len(bundle["text/plain"]) <= _MAX_PRETTY:
        bundle["application/json"] = value
    if type(value).__name__ == "DataFrame" and hasattr(value, "to_json"):
        bundle.setdefault("application/json", _rows(value))
    return sendable(bundle)


def sendable(bundle: dict[str, Any]) -> dict[str, Any]:
    """Return what of a bundle can be sent: bytes in base64, no value that JSON cannot hold, within the limit."""
    kept: dict[str, Any] = {}
    left = MAX_BUNDLE_BYTES
    # The plain text is sent in any case, shortened.
    for mime, data in sorted(bundle.items(), key=lambda item: item[0] != "text/plain"):
        if data is None or not isinstance(mime, str):
            continue
        if isinstance(data, (bytes, bytearray)):
            data = base64.b64encode(data).decode()
        if mime == "text/plain":
            data = _shortened(str(data))
        try:
            text = json.dumps(data, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            continue
        size = len(text)
        if not isinstance(data, str) and sum(map(text.count, ",[{")) > _MAX_VALUES:
            sys.stderr.write(f"belljar: {mime} of a result has over {_MAX_VALUES} values and is left out\n")
        elif size <= left:
            kept[mime] = data
            left -= size
        else:
            sys.stderr.write(f"belljar: {mime} of a result has {size} bytes and is left out; the limit is 4 MiB\n")
    return kept


def _from_methods(value: Any) -> dict[str, Any]:
    found = _called(value, "_repr_mimebundle_")
    if isinstance(found, tuple):
        found = found[0]
    bundle = dict(found) if isinstance(found, dict) else {}
    for method, mime in _METHODS.items():
        if mime not in bundle:
            data = _called(value, method)
            if data is not None:
                bundle[mime] = data[0] if isinstance(data, tuple) else data
    return bundle


def _called(value: Any, method: str) -> Any:
    """Return what a method of the value's type returns. One that fails is shown on stderr, and the others count."""
    if not callable(getattr(type(value), method, None)):
        return None
    try:
        return getattr(value, method)()
    except NotImplementedError:
        return None
    except Exception:  # noqa: BLE001 (user code)
        traceback.print_exc()
        return None


def _plain(value: Any) -> str:
    text = repr(value)
    if type(value) in _COLLECTIONS and _LINE <= len(text) <= _MAX_PRETTY:
        return pprint.pformat(value, width=_LINE, compact=True, sort_dicts=False)
    return text


def _shortened(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT]}… ({len(text) - _MAX_TEXT} more characters)"


def _rows(table: Any) -> Any:
    try:
        rows = table.head(min(_MAX_ROWS, _MAX_VALUES // 2 // max(1, len(getattr(table, "columns", ())))))
        if type(rows.index).__name__ != "RangeIndex":  # otherwise the index is the number of the row
            rows = rows.reset_index()
        return json.loads(rows.to_json(orient="records", date_format="iso"))
    except Exception:  # noqa: BLE001 (such as two columns of one name)
        return None
