"""Checks the shape of a submission in plain Python before its values are validated.

A model collects an error for each wrong item, which costs hundreds of bytes for each byte that was sent. These checks
stop at the first error: lengths before items, and one type of item in each collection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from belljar.model.errors import InvalidOption
from belljar.model.secrets import MAX_SECRETS

#: Maximum items of the options that are lists or objects of strings.
MAX_ARGS = 4096
MAX_ENV = 8000
MAX_ARTIFACTS = 64
MAX_LABELS = 32
MAX_EGRESS = 256
MAX_FILES = 10_000
#: Maximum characters of strings without a larger limit of their own.
_MAX_TEXT = 128 * 1024
_MAX_SHORT_TEXT = 4096
_LISTS = {"args": MAX_ARGS, "artifacts": MAX_ARTIFACTS, "egress": MAX_EGRESS, "secrets": MAX_SECRETS}
#: Lists whose items may be objects of so many strings.
_OBJECT_ITEMS = {"secrets": 3}
_OBJECTS = {"env": MAX_ENV, "labels": MAX_LABELS, "files": MAX_FILES}
_TEXTS = frozenset({"code", "stdin", "stdin_base64"})
_CHUNK_CHARACTERS = 256 * 1024


def check_shape(options: Mapping[str, Any], known: Mapping[str, object]) -> None:
    """Raise InvalidOption for the first option that is not in `known`, is too long, or has items of a wrong type."""
    for name, value in options.items():
        if name not in known:
            shown = name[:64].encode(errors="replace").decode()
            raise InvalidOption(f"{shown}: unknown option; see /openapi.json", option=shown)
        if isinstance(value, list):
            _check_list(name, value)
        elif isinstance(value, dict):
            _check_object(name, value)
        elif isinstance(value, str):
            limit = _MAX_TEXT if name == "egress" else _MAX_SHORT_TEXT
            if name not in _TEXTS and len(value) > limit:
                reason = f"{name} has {len(value)} characters, at most {limit} are allowed"
                raise InvalidOption(reason, option=name, limit=limit)
            _check_text(name, value)


def _check_list(name: str, value: list[Any]) -> None:
    limit = _LISTS.get(name)
    if limit is None:
        raise InvalidOption(f"{name} takes no list; see /openapi.json", option=name)
    if len(value) > limit:
        raise InvalidOption(f"{name} has {len(value)} items, at most {limit} are allowed", option=name, limit=limit)
    for number, item in enumerate(value):
        if isinstance(item, dict) and len(item) <= _OBJECT_ITEMS.get(name, -1):
            _check_strings(f"{name}.{number}", {key: text for key, text in item.items() if text is not None})
            continue
        if not isinstance(item, str):
            raise InvalidOption(f"{name}.{number}: every item must be a string, not {item!r:.40}", option=name)
        _check_text(name, item)


def _check_object(name: str, value: dict[str, Any]) -> None:
    limit = _OBJECTS.get(name)
    if limit is None:
        raise InvalidOption(f"{name} takes no object; see /openapi.json", option=name)
    if len(value) > limit:
        raise InvalidOption(f"{name} has {len(value)} entries, at most {limit} are allowed", option=name, limit=limit)
    _check_strings(name, value)


def _check_strings(name: str, value: dict[str, Any]) -> None:
    option = name.partition(".")[0]
    for key, item in value.items():
        _check_text(option, key)
        if not isinstance(item, str):
            shown = key[:64]
            raise InvalidOption(f"{name}.{shown}: the value must be a string, not {item!r:.40}", option=option)
        _check_text(option, item)


def _check_text(name: str, text: str) -> None:
    """Refuse unpaired surrogates: they cannot be encoded."""
    if text.isascii():
        return
    try:
        for at in range(0, len(text), _CHUNK_CHARACTERS):
            text[at : at + _CHUNK_CHARACTERS].encode()
    except UnicodeEncodeError:
        raise InvalidOption(f"{name} has an unpaired surrogate; send valid Unicode", option=name) from None
