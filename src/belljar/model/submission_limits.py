"""The shape of a submission, checked in plain Python before its values are validated.

A model collects an error for each wrong item, which costs hundreds of bytes for each byte that was sent. Here the
first wrong thing ends it: lengths before items, and one kind of item in each collection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from belljar.model.errors import InvalidOption

#: Most items of the options that are lists or objects of strings.
MAX_ARGS = 4096
MAX_ENV = 8000
MAX_ARTIFACTS = 64
MAX_LABELS = 32
MAX_EGRESS = 256
MAX_FILES = 10_000
#: Most characters of any string that has no larger limit of its own.
_MAX_TEXT = 128 * 1024
_MAX_SHORT_TEXT = 4096
_LISTS = {"args": MAX_ARGS, "artifacts": MAX_ARTIFACTS, "egress": MAX_EGRESS}
_OBJECTS = {"env": MAX_ENV, "labels": MAX_LABELS, "files": MAX_FILES}
_TEXTS = frozenset({"code", "stdin", "stdin_base64"})
_PIECE = 256 * 1024


def check_shape(given: Mapping[str, Any], known: Mapping[str, object]) -> None:
    """Raise InvalidOption for the first option that is not in `known`, too long, or holds what it cannot hold."""
    for name, value in given.items():
        if name not in known:
            shown = name[:64].encode(errors="replace").decode()
            raise InvalidOption(f"{shown}: there is no such option; /openapi.json lists them", option=shown)
        if isinstance(value, list):
            _check_list(name, value)
        elif isinstance(value, dict):
            _check_object(name, value)
        elif isinstance(value, str):
            most = _MAX_TEXT if name == "egress" else _MAX_SHORT_TEXT
            if name not in _TEXTS and len(value) > most:
                reason = f"{name} has {len(value)} characters, at most {most} are allowed"
                raise InvalidOption(reason, option=name, limit=most)
            _check_text(name, value)


def _check_list(name: str, value: list[Any]) -> None:
    most = _LISTS.get(name)
    if most is None:
        raise InvalidOption(f"{name} takes no list; /openapi.json says what it takes", option=name)
    if len(value) > most:
        raise InvalidOption(f"{name} has {len(value)} items, at most {most} are allowed", option=name, limit=most)
    for number, item in enumerate(value):
        if not isinstance(item, str):
            raise InvalidOption(f"{name}.{number}: every item is a string, not {item!r:.40}", option=name)
        _check_text(name, item)


def _check_object(name: str, value: dict[str, Any]) -> None:
    most = _OBJECTS.get(name)
    if most is None:
        raise InvalidOption(f"{name} takes no object; /openapi.json says what it takes", option=name)
    if len(value) > most:
        raise InvalidOption(f"{name} has {len(value)} entries, at most {most} are allowed", option=name, limit=most)
    for key, item in value.items():
        _check_text(name, key)
        if not isinstance(item, str):
            shown = key[:64]
            raise InvalidOption(f"{name}.{shown}: the value is a string, not {item!r:.40}", option=name)
        _check_text(name, item)


def _check_text(name: str, text: str) -> None:
    """Refuse half a surrogate pair, which no file, program or database can be given."""
    if text.isascii():
        return
    try:
        for at in range(0, len(text), _PIECE):
            text[at : at + _PIECE].encode()
    except UnicodeEncodeError:
        raise InvalidOption(f"{name} holds half a surrogate pair, which is no character", option=name) from None
