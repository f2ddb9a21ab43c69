"""Reads a JSON body while it arrives, within bounds that are checked before anything is built from it.

What is checked first costs least: the number of values and the depth are counted on the raw bytes, so that a body of
a million elements is refused after its first few kilobytes. A long string is decoded piece by piece as it arrives, so
that neither the event loop nor the memory ever has to take the whole of it at once.
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
#: A string longer than this is decoded apart from the rest.
_LONG_BYTES = 64 * KB
#: Most characters of one number or word: no option needs more, and converting a longer number takes quadratic time.
_MAX_WORD_BYTES = 1024
_SHORT_WORD = 64

#: A whole string, or one character of structure; a quotation mark alone begins a string that goes on in the next piece.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},:]', re.DOTALL)
# No possessive quantifiers: those of Python 3.11 keep what an alternative that failed had consumed.
_IN_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
#: Whole units of a string's text: characters, escapes, surrogate pairs. A unit that is cut off is left over.
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
    """What a body may hold. `max_text_bytes` bounds all long strings that have no sink of their own, together."""

    max_bytes: int
    max_values: int
    max_depth: int = 8
    max_short_bytes: int = 2048 * KB
    max_text_bytes: int = 4096 * KB


class Sink(Protocol):
    """Takes the decoded text of one long string, in pieces."""

    def write(self, text: str) -> None: ...

    def value(self) -> Any:
        """What stands in the document in the string's place."""
        ...


class TextSink:
    """Keeps the text as a string."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def write(self, text: str) -> None:
        self._pieces.append(text)

    def value(self) -> str:
        return "".join(self._pieces)


class BytesSink:
    """Keeps the text as UTF-8, up to `max_bytes`. Raises InvalidOption above, naming the option."""

    def __init__(self, option: str, max_bytes: int) -> None:
        self._option = option
        self._max_bytes = max_bytes
        self._data = bytearray()

    def write(self, text: str) -> None:
        try:
            self._add(text.encode())
        except UnicodeEncodeError:
            reason = f"{self._option} holds half a surrogate pair, which is no character"
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
    """Keeps the bytes that the text means in base64."""

    _rest = ""

    def write(self, text: str) -> None:
        if self._rest.endswith("="):
            raise self._invalid()
        text = self._rest + text
        whole = len(text) // 4 * 4
        # The last group may be the padded one, so it waits for what follows it.
        cut = max(0, whole - 4)
        self._rest = text[cut:]
        if "=" in text[:cut]:
            raise self._invalid()
        self._decode(text[:cut])

    def value(self) -> bytes:
        self._decode(self._rest)
        self._rest = ""
        return super().value()

    def _decode(self, text: str) -> None:
        try:
            self._add(binascii.a2b_base64(text, strict_mode=True) if text else b"")
        except ValueError:
            raise self._invalid() from None

    def _invalid(self) -> InvalidOption:
        return InvalidOption(f"{self._option} is not base64; encode the bytes as RFC 4648 says", option=self._option)


class JsonStream:
    """One body. `feed` it every piece, then `close`. Raises TooLarge, InvalidOption, InvalidRequest."""

    def __init__(self, limits: JsonLimits, sinks: Mapping[str, Sink] | None = None) -> None:
        self._limits = limits
        self._sinks = {f'"{name}"'.encode(): sink for name, sink in (sinks or {}).items()}
        self._size = self._values = self._depth = self._text_size = self._word = 0
        #: Everything but the long strings, which are named by the mark and their number.
        self._short = bytearray()
        self._mark = f"\0{secrets.token_hex(8)}:"
        self._long: list[Any] = []
        self._in_string = self._escaped = False
        self._string = bytearray()
        self._sink: Sink | None = None
        self._last = self._key = b""

    @property
    def short_bytes(self) -> int:
        """How much there is to parse at the end."""
        return len(self._short)

    def feed(self, data: bytes) -> None:
        """Take the next piece; at most some 100 KB at once, so that nobody waits for it."""
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
        """The document. Raises InvalidRequest when it is not JSON."""
        if self._in_string:
            raise _not_json("a string is not closed")
        try:
            value = json.loads(self._short.decode())
        except RecursionError:
            raise _not_json("it is nested too deeply") from None
        except ValueError as error:  # also of UTF-8, and of numbers with too many digits
            raise _not_json(str(error) if isinstance(error, json.JSONDecodeError) else "") from None
        self._short.clear()
        return self._put_back(value) if self._long else value

    # --- outside of strings -----------------------------------------------------------------------------------------

    def _feed_outside(self, data: bytes, at: int) -> int:
        start = at
        for token in _TOKEN.finditer(data, at):
            place, end = token.span()
            if place - at > _SHORT_WORD or self._word:
                self._count_word(data[at:place])
                self._word = 0
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
        self._count_word(data[at:])
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
                raise _not_json("a bracket is closed that was not opened")
            return
        if kind == 0x2C and self._depth == 1:  # a comma: what follows is the next key, and no value of the last
            self._key = b""
        self._values += 1
        if self._values > self._limits.max_values:
            most = self._limits.max_values
            raise InvalidOption(f"the body holds more than {most} values; see the limits in docs/api.md", limit=most)

    def _count_word(self, word: bytes) -> None:
        if len(word) + self._word > _MAX_WORD_BYTES:
            self._word += len(word.strip(_SPACE))
            if self._word > _MAX_WORD_BYTES:
                raise _not_json(f"it has a number or word of over {_MAX_WORD_BYTES} characters")
        elif word:
            self._word += len(word.strip(_SPACE))

    # --- strings ----------------------------------------------------------------------------------------------------

    def _feed_string(self, data: bytes, at: int) -> int:
        start = at
        if self._escaped:
            self._escaped = False
            at += 1
        found = _IN_STRING.match(data, at)
        assert found is not None
        end = found.end()
        if end < len(data) and data[end] == 0x22:
            self._string += data[start : end + 1]
            self._close_string()
            return end + 1
        self._escaped = end < len(data)  # a backslash that is the last byte of this piece
        self._string += data[start:]
        if len(self._string) > _LONG_BYTES:
            self._decode_some()
        return len(data)

    def _decode_some(self) -> None:
        """Decode what is whole of the long string so far."""
        if self._sink is None:
            self._sink = (self._sinks.get(self._key) if self._depth == 1 else None) or TextSink()
            del self._string[0]  # its quotation mark
        found = _UNITS.match(self._string)
        assert found is not None
        end = found.end()
        if len(self._string) - end >= _MAX_UNIT_BYTES:
            raise _not_json("a string holds a control character, half a surrogate pair, or is not UTF-8")
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
            raise _not_json("a string holds a control character, half a surrogate pair, or is not UTF-8")
        assert self._sink is not None
        self._short += json.dumps(f"{self._mark}{len(self._long)}").encode()
        self._long.append(self._sink.value())
        self._sink = None

    def _put_back(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._long[int(value[len(self._mark) :])] if value.startswith(self._mark) else value
        if isinstance(value, list):
            return [self._put_back(each) for each in value]
        if isinstance(value, dict):
            return {self._put_back(name): self._put_back(each) for name, each in value.items()}
        return value


def _text(raw: bytes) -> str:
    try:
        text: str = json.loads(f'"{raw.decode()}"')
    except ValueError:
        raise _not_json("a string holds a bad escape, or is not UTF-8") from None
    return text


def _not_json(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not JSON that can be read: {reason}".rstrip(": "))
