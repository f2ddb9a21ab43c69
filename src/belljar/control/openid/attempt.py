"""One sign-in that is under way. Its secret is in a cookie of the browser that began it, and nowhere else.

State, nonce and code verifier are made of that secret, so a response fits only the browser that requested it, and the
server keeps nothing for sign-ins that anybody may begin.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, field

from belljar.model.errors import SignInFailed

#: How long a person may take at the provider.
MAX_SECONDS = 600
_VALUE = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{43})\.([A-Za-z0-9_-]{0,700})\Z")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A sign-in that is under way."""

    secret: str = field(repr=False)
    started_at: int
    #: Where it leads to; to be checked before use, since it was in the browser.
    next: str

    @classmethod
    def begin(cls, next: str) -> Attempt:
        """Begin a sign-in."""
        return cls(secret=secrets.token_urlsafe(32), started_at=int(time.time()), next=next)

    @classmethod
    def of_cookie(cls, value: str | None) -> Attempt:
        """Return the sign-in of a cookie. Raises SignInFailed for none, an old or a malformed one."""
        match = _VALUE.match(value or "")
        if match is None or not 0 <= time.time() - int(match[1]) <= MAX_SECONDS:
            raise SignInFailed(
                f"this sign-in was not begun in this browser, or over {MAX_SECONDS // 60} minutes ago; sign in again"
            )
        encoded = match[3]
        try:
            next = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("ascii")
        except ValueError:
            next = ""
        return cls(secret=match[2], started_at=int(match[1]), next=next)

    def cookie(self) -> str:
        """Return the value of the cookie."""
        next = base64.urlsafe_b64encode(self.next.encode("ascii")).decode().rstrip("=")
        return f"{self.started_at}.{self.secret}.{next}"

    @property
    def state(self) -> str:
        """Return what the provider returns to the browser with its response."""
        return self._derived("state")

    @property
    def nonce(self) -> str:
        """Return what the provider writes into the ID token."""
        return self._derived("nonce")

    @property
    def verifier(self) -> str:
        """Return what proves to the provider who began the sign-in (PKCE)."""
        return self._derived("verifier")

    def check_state(self, state: str) -> None:
        """Raise SignInFailed unless this is the state of the sign-in."""
        if not hmac.compare_digest(state.encode(), self.state.encode()):
            raise SignInFailed("the provider's response belongs to another sign-in; sign in again")

    def _derived(self, purpose: str) -> str:
        digest = hmac.new(self.secret.encode(), f"belljar {purpose}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
