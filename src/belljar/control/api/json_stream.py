"""Parses a JSON body while it arrives, within limits that are checked before anything is built from it.

The cheapest checks come first: the number of values and the depth are counted on the raw bytes, so that a body of a
million elements is refused after its first few kilobytes. A long string is decoded chunk by chunk as it arrives, which
bounds the memory and the time on the event loop.
"""

from __future__ import annotations

import binascii
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from belljar.model.errors import InvalidOption, InvalidRequest, TooLarge

KB = 1024
#: A longer string is decoded on its own.
_LONG_BYTES = 64 * KB
#: Maximum characters of a number or literal: no option needs more, and converting a longer number takes quadratic time.
_MAX_LITERAL_BYTES = 1024
_SHORT_LITERAL = 64

#: A whole string, or one structural character; a quotation mark alone begins a string that continues in the next chunk.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},:]', re.DOTALL)
# No possessive quantifiers: in Python 3.11 they keep what a failed alternative consumed.
_IN_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
#: Whole units of a string's text: characters, escapes, surrogate pairs, without an incomplete unit at the end.
_UNITS = re.compile(
    rb"[\x20-\x21\x23-\x5b\x5d-\x7f]*(?:(?:(?:[\xc2-\xdf][\x80-\xbf])+|(?:[\xe0-\xef][\x80-\xbf]{2})+"
    rb"|(?:[\xf0-\xf4][\x80-\xbf]{3})+|\\[^u]|\\u(?![dD][89abAB])[0-9A-Fa-f]{4}"
    rb"|\\u[dD][89abAB][0-9A-Fa-f]{2}\\u[dD][c-fC-F][0-9A-Fa-f]{2})[\x20-\x21\x23-\x5b\x5d-\x7f]*)*",
    re.DOTALL,
)
#: The longest unit: a surrogate pair in escapes.
_MAX_UNIT_BYTES = 12
_SPACE = b" \t\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLimits:
    """The limits of a body. `max_text_bytes` limits the sum of all long strings without a sink of their own."""

    max_bytes: int
    max_values: int
    max_depth: int = 8
    max_short_bytes: int = 2048 * KB
    max_text_bytes: int = 4096 * KB


class Sink(Protocol):
    """Receives the decoded text of one long string, in chunks."""

    def write(self, text: str) -> None:
        """Receive the next chunk."""
        ...

    def value(self) -> Any:
        """Return the value that replaces the string in the document."""
        ...


class TextSink:
    """Keeps the text as a string."""

    def __init__(self) -> None:
        self._chunks: list[str] = []

    def write(self, text: str) -> None:
        self._chunks.append(text)

    def value(self) -> str:
        return "".join(self._chunks)


class BytesSink:
    """Keeps the text as UTF-8, up to `max_bytes`. Raises InvalidOption that names the option."""

    def __init__(self, option: str, max_bytes: int) -> None:
        self._option = option
        self._max_bytes = max_bytes
        self._data = bytearray()

    def write(self, text: str) -> None:
        try:
            self._add(text.encode())
        except UnicodeEncodeError:
            reason = f"{self._option} has an unpaired surrogate; send valid Unicode"
            raise InvalidOption(reason, option=self._option) from None

    def _add(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._max_bytes:
            reason = f"{self._option} is over {self._max_bytes} bytes; put the data into the script's archive"
            raise InvalidOption(reason, option=self._option)

    def value(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


class Base64Sink(BytesSink):
    """Keeps the bytes that the text encodes in base64."""

    _undecoded = ""

    def write(self, text: str) -> None:
        if self._undecoded.endswith("="):
            raise self._invalid()
        text = self._undecoded + text
        whole = len(text) // 4 * 4
        # The last group may be the padded one, so it is decoded with the next chunk.
        cut = max(0, whole - 4)
        self._undecoded = text[cut:]
        if "=" in text[:cut]:
            raise self._invalid()
        self._decode(text[:cut])

    def value(self) -> bytes:
        self._decode(self._undecoded)
        self._undecoded = ""
        return super().value()

    def _decode(self, text: str) -> None:
        try:
            self._add(binascii.a2b_base64(text, strict_mode=True) if text else b"")
        except ValueError:
            raise self._invalid() from None

    def _invalid(self) -> InvalidOption:
        return InvalidOption(f"{self._option} is invalid base64; encode the bytes as in RFC 4648", option=self._option)


class JsonStream:
    """The parser of one body: `feed` every chunk, then `close`. Raises TooLarge, InvalidOption, InvalidRequest."""

    def __init__(self, limits: JsonLimits, sinks: Mapping[str, Sink] | None = None) -> None:
        self._limits = limits
        self._sinks = {f'"{name}"'.encode(): sink for name, sink in (sinks or {}).items()}
        self._size = self._values = self._depth = self._text_size = self._literal = 0
        #: The document without its long strings, each replaced by the marker and its number.
        self._short = bytearray()
        self._marker = f"\0{secrets.token_hex(8)}:"
        self._long: list[Any] = []
        self._in_string = self._escaped = False
        self._string = bytearray()
        self._sink: Sink | None = None
        self._last = self._key = b""

    @property
    def short_bytes(self) -> int:
        """Return the number of bytes that `close` parses."""
        return len(self._short)

    def feed(self, data: bytes) -> None:
        """Parse the next chunk, of at most some 100 KB, which bounds the time on the event loop."""
        self._size += len(data)
        if self._size > self._limits.max_bytes:
            raise TooLarge(
                f"the JSON body is over {self._limits.max_bytes} bytes; upload large scripts with POST /v1/scripts"
            )
        at = 0
        while at < len(data):
            at = self._feed_string(data, at) if self._in_string else self._feed_outside(data, at)
        if len(self._short) + len(self._string) > self._limits.max_short_bytes:
            raise TooLarge(
                f"the JSON body is over {self._limits.max_short_bytes} bytes without its long strings; send less"
            )

    def close(self) -> Any:
        """Return the document. Raises InvalidRequest when it is not JSON."""
        if self._in_string:
            raise _not_json("a string is not closed")
        try:
            value = json.loads(self._short.decode())
        except RecursionError:
            raise _not_json("it is nested too deeply") from None
        except ValueError as error:  # also of UTF-8, and of numbers with too many digits
            raise _not_json(str(error) if isinstance(error, json.JSONDecodeError) else "") from None
        self._short.clear()
        return self._insert_long_strings(value) if self._long else value

    # --- outside of strings -----------------------------------------------------------------------------------------

    def _feed_outside(self, data: bytes, at: int) -> int:
        start = at
        for token in _TOKEN.finditer(data, at):
            place, end = token.span()
            if place - at > _SHORT_LITERAL or self._literal:
                self._count_literal(data[at:place])
                self._literal = 0
            at, kind = end, data[place]
            if kind != 0x22:  # a quotation mark
                self._count(kind)
            elif end - place > 1:
                if self._depth == 1:
                    self._last = data[place:end]  # a key, perhaps
            else:
                self._short += data[start:place]
                self._in_string = True
                self._string += b'"'
                return at
        self._count_literal(data[at:])
        self._short += data[start:]
        return len(data)

    def _count(self, kind: int) -> None:
        if kind == 0x3A:  # a colon
            if self._depth == 1:
                self._key = self._last
            return
        if kind in b"[{":
            self._depth += 1
            if self._depth > self._limits.max_depth:
                raise _not_json("it is nested too deeply")
        elif kind in b"]}":
            self._depth -= 1
            if self._depth < 0:
                raise _not_json("unexpected closing bracket")
            return
        if kind == 0x2C and self._depth == 1:  # a comma: the next string is a key
            self._key = b""
        self._values += 1
        if self._values > self._limits.max_values:
            limit = self._limits.max_values
            raise InvalidOption(f"the body has more than {limit} values; see the limits in docs/api.md", limit=limit)

    def _count_literal(self, literal: bytes) -> None:
        if len(literal) + self._literal > _MAX_LITERAL_BYTES:
            self._literal += len(literal.strip(_SPACE))
            if self._literal > _MAX_LITERAL_BYTES:
                raise _not_json(f"it has a number or literal of over {_MAX_LITERAL_BYTES} characters")
        elif literal:
            self._literal += len(literal.strip(_SPACE))

    # --- strings ----------------------------------------------------------------------------------------------------

    def _feed_string(self, data: bytes, at: int) -> int:
        start = at
        if self._escaped:
            self._escaped = False
            at += 1
        match = _IN_STRING.match(data, at)
        assert match is not None
        end = match.end()
        if end < len(data) and data[end] == 0x22:
            self._string += data[start : end + 1]
            self._close_string()
            return end + 1
        self._escaped = end < len(data)  # a backslash is the last byte of this chunk
        self._string += data[start:]
        if len(self._string) > _LONG_BYTES:
            self._decode_some()
        return len(data)

    def _decode_some(self) -> None:
        """Decode the whole units of the long string so far."""
        if self._sink is None:
            self._sink = (self._sinks.get(self._key) if self._depth == 1 else None) or TextSink()
            del self._string[0]  # its quotation mark
        match = _UNITS.match(self._string)
        assert match is not None
        end = match.end()
        if len(self._string) - end >= _MAX_UNIT_BYTES:
            raise _not_json("a string has a control character or an unpaired surrogate, or is not UTF-8")
        text = _text(bytes(self._string[:end]))
        if isinstance(self._sink, TextSink):
            self._text_size += len(text if text.isascii() else text.encode(errors="surrogatepass"))
            if self._text_size > self._limits.max_text_bytes:
                raise TooLarge(
                    f"the texts in the JSON body are over {self._limits.max_text_bytes} bytes together; upload a "
                    "larger script with POST /v1/scripts"
                )
        self._sink.write(text)
        del self._string[:end]

    def _close_string(self) -> None:
        self._in_string = False
        if self._sink is None and len(self._string) <= _LONG_BYTES:
            if self._depth == 1:
                self._last = bytes(self._string)
            self._short += self._string
            self._string.clear()
            return
        del self._string[-1]
        self._decode_some()
        if self._string:
            raise _not_json("a string has a control character or an unpaired surrogate, or is not UTF-8")
        assert self._sink is not None
        self._short += json.dumps(f"{self._marker}{len(self._long)}").encode()
        self._long.append(self._sink.value())
        self._sink = None

    def _insert_long_strings(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._long[int(value[len(self._marker) :])] if value.startswith(self._marker) else value
        if isinstance(value, list):
            return [self._insert_long_strings(each) for each in value]
        if isinstance(value, dict):
            return {self._insert_long_strings(name): self._insert_long_strings(each) for name, each in value.items()}
        return value


def _text(raw: bytes) -> str:
    try:
        text: str = json.loads(f'"{raw.decode()}"')
    except ValueError:
        raise _not_json("a string has an invalid escape, or is not UTF-8") from None
    return text


def _not_json(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the body is invalid JSON: {reason}".rstrip(": "))
