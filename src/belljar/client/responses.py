"""What both clients do with requests and responses that needs no input or output."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from belljar.client.errors import ServerError, Unreachable, server_error

#: The largest JSON answer that is accepted. A page of 1000 jobs has 2 MB.
MAX_JSON_BYTES = 64 << 20


def trusting(ca_file: Path | str) -> ssl.SSLContext:
    """Return a context that trusts this certificate besides those of the system. Raises Unreachable."""
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ValueError) as error:
        reason = "it is no PEM file with a certificate"
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            reason = error.strerror or str(error)
        raise Unreachable(f"cannot use the certificate {ca_file}: {reason}") from None
    # The server's own certificate may be named, without that of its authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@contextlib.contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turn the HTTP library's errors into Unreachable."""
    try:
        yield
    except httpx.TimeoutException as error:
        sent = not isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
        raise Unreachable(f"{url} did not answer in time", is_temporary=True, was_sent=sent) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise Unreachable(f"{url!r} is not a server URL: {error}") from None
    except (httpx.ProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError) as error:
        reason = error or "no reason given"
        raise Unreachable(f"the connection to {url} was lost ({reason}); try again", is_temporary=True) from None
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            reason = str(error).partition("verify failed: ")[2].partition(" (_ssl")[0] or "unknown authority"
            raise Unreachable(
                f"the certificate of {url} is not trusted ({reason}); name that of its authority with --ca-file FILE"
            ) from None
        if "WRONG_VERSION_NUMBER" in str(error) or "RECORD_LAYER" in str(error):
            raise Unreachable(f"{url} takes no TLS; use http:// instead of https://") from None
        message = f"no server answers at {url} ({error}); start one with: belljar serve"
        raise Unreachable(message, is_temporary=True, was_sent=not isinstance(error, httpx.ConnectError)) from None


def parse_object(response: httpx.Response, data: bytes) -> dict[str, Any]:
    """Return the JSON object of an answer, or of a line of it. Raises ServerError."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise not_belljar(response)
    return body


def problem(response: httpx.Response, data: bytes) -> ServerError:
    """Return the error that a problem document describes."""
    try:
        body = json.loads(data)
        code, detail = str(body["code"]), str(body["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return not_belljar(response)
    details = {name: value for name, value in body.items() if name not in ("status", "title", "code", "detail", "type")}
    return server_error(response.status_code, code, detail, details=details, retry_after_seconds=_retry_after(response))


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def not_belljar(response: httpx.Response) -> ServerError:
    """Return the error for an answer that no server of belljar would give."""
    reason = f"{response.url} answered {response.status_code} {response.reason_phrase}; is it a belljar server?"
    return ServerError(response.status_code, "not_belljar", reason, retry_after_seconds=_retry_after(response))
