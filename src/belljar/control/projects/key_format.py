"""The form of a key's secret: `bj_`, 43 characters of base 62 for 256 random bits, and 6 for their CRC-32.

The prefix and the checksum are for scanners that search texts for leaked secrets, and tell a key that was not copied
whole from one that is unknown, without reading the database. The checksum is no protection: anyone can compute it.
Regular expression for scanners: `bj_[0-9A-Za-z]{49}`. Keys of earlier releases have 43 characters of `A-Za-z0-9_-`.
"""

from __future__ import annotations

import re
import secrets
import zlib

PREFIX = "bj_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#: 62 ** 43 is over 2 ** 256.
_BODY, _CHECKSUM = 43, 6
_EARLIER = re.compile(r"bj_[A-Za-z0-9_-]{43}\Z")
_WHOLE = re.compile(r"bj_[0-9A-Za-z]{49}\Z")
#: What looks like a key inside another text.
IN_TEXT = re.compile(r"bj_(?:[0-9A-Za-z]{49}|[A-Za-z0-9_-]{43})(?![A-Za-z0-9_-])")


def new_secret() -> str:
    """Return a new secret, which cannot be guessed."""
    body = _base62(secrets.randbits(256), _BODY)
    return PREFIX + body + _checksum(body)


def flaw(secret: str) -> str | None:
    """Return what is wrong with the form of a secret; None for a whole one."""
    if not secret.startswith(PREFIX):
        return f"this is not a key of belljar: keys begin with {PREFIX}"
    if _WHOLE.match(secret):
        body = secret[len(PREFIX) : -_CHECKSUM]
        if _checksum(body) == secret[-_CHECKSUM:]:
            return None
        return "this is not a key: a character of it is wrong; copy it again"
    if _EARLIER.match(secret):  # or a new one without its checksum, which is then unknown
        return None
    length = len(PREFIX) + _BODY + _CHECKSUM
    return f"this is not a whole key: it has {len(secret)} characters, keys have {length}; copy it again"


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")), _CHECKSUM)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
