"""A client of the HTTP API: one method per operation, errors as exceptions.

with Client("http://127.0.0.1:8080", key) as belljar:
    job = belljar.submit(code="print(6 * 7)", language="python")
    print(belljar.wait(job["id"])["status"])
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import ssl
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

#: A wait is split into requests of this many seconds, because proxies limit the time of a request.
_WAIT_SECONDS = 30
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_ENDED = frozenset({"succeeded", "failed", "timed_out", "cancelled", "lost"})
#: The largest JSON answer that is accepted. A page of 1000 jobs has 2 MB.
_MAX_JSON_BYTES = 64 << 20
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class ServerError(Exception):
    """The server answered with an error: `status`, and `code` and `message` of its problem document."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Unreachable(Exception):
    """No server answers at the URL."""


class Client:
    """A connection to one server. Every method raises ServerError or Unreachable."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        project: str | None = None,
        ca_file: Path | str | None = None,
        server_name: str | None = None,
    ) -> None:
        """Connect when it is necessary.

        `project` is for operators' keys: the project in which requests act, instead of the key's own. `ca_file` has the
        certificate of the server, or of its authority (PEM). `server_name` is the name in the server's certificate, if
        that of the URL is another.
        """
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ServerError(401, "not_authenticated", "the key contains invalid characters; copy it again")
        # No compression: a small answer must not become a large one here.
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        headers |= {"Belljar-Project": quote(project)} if project else {}
        timeout = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
        self.url = url.rstrip("/")
        with _reachable(self.url):
            # Requests to this machine use no proxy, which would see the key.
            is_local = httpx.URL(self.url).host in _LOOPBACK
            verify = _trusting(ca_file) if ca_file is not None else True
            self._http = httpx.Client(
                base_url=self.url, headers=headers, timeout=timeout, trust_env=not is_local, verify=verify
            )
        if server_name is not None:
            self._http.event_hooks = {"request": [functools.partial(_expect_name, server_name)]}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def upload(
        self, file: BinaryIO, filename: str, *, language: str | None = None, entrypoint: str | None = None
    ) -> dict[str, Any]:
        """Upload a file or an archive as a script; return the script, with its `script_id`."""
        fields = {"language": language, "entrypoint": entrypoint}
        data = {name: value for name, value in fields.items() if value is not None}
        # In a form, a part without a file name is not a file. The server replaces the name "-".
        return self._json("POST", "/v1/scripts", files={"script": (filename or "-", file)}, data=data)

    def submit(self, **request: Any) -> dict[str, Any]:
        """Queue a job of `script_id`, of `code` and `language`, or of `files`, with options; return the job."""
        return self._json("POST", "/v1/jobs", json=request)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job."""
        return self._json("GET", f"/v1/jobs/{quote(job_id, safe='')}")

    def jobs(self, **filters: Any) -> dict[str, Any]:
        """Return a page: `jobs`, `next_cursor`. Filters: status, script_id, label, limit, cursor."""
        return self._json("GET", "/v1/jobs", params=_given(filters))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job and return it."""
        return self._json("POST", f"/v1/jobs/{quote(job_id, safe='')}/cancel")

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Wait until a job has ended, at most `timeout_seconds`; return it in its last state."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            left = _WAIT_SECONDS if deadline is None else min(_WAIT_SECONDS, max(0.0, deadline - time.monotonic()))
            job = self._json("GET", f"/v1/jobs/{quote(job_id, safe='')}", params={"wait": left})
            if job["status"] in _ENDED or (deadline is not None and time.monotonic() >= deadline):
                return job

    def logs(self, job_id: str, *, stream: str | None = None, follow: bool = False) -> Iterator[bytes]:
        """Yield a job's output in order; with `follow`, until the job has ended."""
        params: dict[str, Any] = {"follow": follow} | ({"stream": stream} if stream else {})
        timeout = httpx.Timeout(None if follow else _READ_SECONDS, connect=_CONNECT_SECONDS)
        path = f"/v1/jobs/{quote(job_id, safe='')}/logs"
        with _reachable(self.url), self._http.stream("GET", path, params=params, timeout=timeout) as response:
            _check(response)
            yield from response.iter_raw()

    def artifacts(self, job_id: str) -> list[dict[str, Any]]:
        """Return path and size of each artifact of a job."""
        artifacts: list[dict[str, Any]] = self._json("GET", f"/v1/jobs/{quote(job_id, safe='')}/artifacts")["artifacts"]
        return artifacts

    def artifact(self, job_id: str, path: str) -> Generator[bytes, None, None]:
        """Yield the bytes of one artifact."""
        where = f"/v1/jobs/{quote(job_id, safe='')}/artifacts/{quote(path)}"
        with _reachable(self.url), self._http.stream("GET", where) as response:
            _check(response)
            yield from response.iter_raw()

    def audit(self, **filters: Any) -> dict[str, Any]:
        """Return a page of the audit log, newest first: `audit`, `next_cursor`.

        Filters: project, actor, action, since, until, limit, cursor.
        """
        given = {name: value for name, value in filters.items() if value is not None}
        return self._json("GET", "/v1/audit", params=given)

    def audit_records(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield all records of the audit log, oldest first. Filters as for `audit`."""
        given = {name: value for name, value in filters.items() if value is not None}
        with (
            _reachable(self.url),
            self._http.stream("GET", "/v1/audit", params={**given, "format": "jsonl"}) as response,
        ):
            _check(response)
            for line in _lines(response):
                yield _object(response, line)

    def audit_head(self) -> dict[str, Any]:
        """Return both ends of the audit log's chain: `anchor` and `head`, each with `seq` and `hash`."""
        return self._json("GET", "/v1/audit/head")

    def create_key(self, **options: Any) -> dict[str, Any]:
        """Create a key: name, project, role, scopes, admin, expires_in_seconds. Return it with its `secret`."""
        return self._json("POST", "/v1/keys", json=options)

    def keys(self, *, limit: int | None = None, cursor: str | None = None) -> dict[str, Any]:
        """Return a page: `keys`, `next_cursor`."""
        return self._json("GET", "/v1/keys", params=_given({"limit": limit, "cursor": cursor}))

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        """Revoke a key and return it."""
        return self._json("DELETE", f"/v1/keys/{quote(key_id, safe='')}")

    def rotate_key(self, key_id: str, overlap_seconds: int) -> dict[str, Any]:
        """Create a key that replaces another; return it with its `secret`. The old one ends after the overlap."""
        body = {"overlap_seconds": overlap_seconds}
        return self._json("POST", f"/v1/keys/{quote(key_id, safe='')}/rotate", json=body)

    def create_project(self, name: str) -> dict[str, Any]:
        """Create a project and return it."""
        return self._json("POST", "/v1/projects", json={"name": name})

    def projects(self, *, limit: int | None = None, cursor: str | None = None) -> dict[str, Any]:
        """Return a page: `projects`, `next_cursor`."""
        return self._json("GET", "/v1/projects", params=_given({"limit": limit, "cursor": cursor}))

    def change_project(self, name: str, **changes: Any) -> dict[str, Any]:
        """Change a project and return it: suspended, cancel_running."""
        return self._json("PATCH", f"/v1/projects/{quote(name, safe='')}", json=changes)

    def quotas(self, name: str) -> dict[str, Any]:
        """Return a project's quotas (`quotas`), and the limits that hold with the server's defaults (`limits`)."""
        return self._json("GET", f"/v1/projects/{quote(name, safe='')}/quotas")

    def change_quotas(self, name: str, **changes: Any) -> dict[str, Any]:
        """Change quotas of a project by name, and return all: a number, "unlimited", or None for the default."""
        return self._json("PATCH", f"/v1/projects/{quote(name, safe='')}/quotas", json=changes)

    def usage(self, *, days: int | None = None) -> dict[str, Any]:
        """Return what the project may use and has used: `quotas`, and the use of the last `days`."""
        return self._json("GET", "/v1/usage", params=_given({"days": days}))

    def remove_project(self, name: str) -> dict[str, Any]:
        """Remove a project with all of its data; return it as it is until then."""
        return self._json("DELETE", f"/v1/projects/{quote(name, safe='')}")

    def members(self, project: str) -> dict[str, Any]:
        """Return the `members` of a project, and the invitations."""
        return self._json("GET", f"/v1/projects/{quote(project, safe='')}/members")

    def set_member(self, project: str, email: str, role: str) -> dict[str, Any]:
        """Invite the owner of an address of email, or change a member's role; return the member."""
        return self._json("PUT", _member_path(project, email), json={"role": role})

    def remove_member(self, project: str, email: str) -> dict[str, Any]:
        """Remove a member or an invitation, and return it."""
        return self._json("DELETE", _member_path(project, email))

    def set_secret(self, name: str, value: bytes) -> dict[str, Any]:
        """Store a new version of a secret; return its record."""
        body = {"value_base64": base64.b64encode(value).decode()}
        return self._json("PUT", f"/v1/secrets/{quote(name, safe='')}", json=body)

    def secrets(self) -> list[dict[str, Any]]:
        """Return the records of the project's secrets, without their values."""
        secrets: list[dict[str, Any]] = self._json("GET", "/v1/secrets")["secrets"]
        return secrets

    def remove_secret(self, name: str) -> dict[str, Any]:
        """Remove a secret and return its record."""
        return self._json("DELETE", f"/v1/secrets/{quote(name, safe='')}")

    def _json(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        with _reachable(self.url), self._http.stream(method, path, **rest) as response:
            data = _read_bounded(response)
            _check(response, data)
        return _object(response, data)


def _trusting(ca_file: Path | str) -> ssl.SSLContext:
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


def _expect_name(name: str, request: httpx.Request) -> None:
    request.extensions["sni_hostname"] = name


def _member_path(project: str, email: str) -> str:
    return f"/v1/projects/{quote(project, safe='')}/members/{quote(email, safe='')}"


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


@contextlib.contextmanager
def _reachable(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException:
        raise Unreachable(f"{url} did not answer in time") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise Unreachable(f"{url!r} is not a server URL: {error}") from None
    except (httpx.ProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError) as error:
        raise Unreachable(f"the connection to {url} was lost ({error or 'no reason given'}); try again") from None
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            reason = str(error).partition("verify failed: ")[2].partition(" (_ssl")[0] or "unknown authority"
            raise Unreachable(
                f"the certificate of {url} is not trusted ({reason}); name that of its authority with --ca-file FILE"
            ) from None
        if "WRONG_VERSION_NUMBER" in str(error) or "RECORD_LAYER" in str(error):
            raise Unreachable(f"{url} takes no TLS; use http:// instead of https://") from None
        raise Unreachable(f"no server answers at {url} ({error}); start one with: belljar serve") from None


def _read_bounded(response: httpx.Response) -> bytes:
    """Read a whole answer. Raises ServerError when it is larger than 64 MiB."""
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > _MAX_JSON_BYTES:
            raise _not_belljar(response)
    return bytes(data)


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Yield the lines of an answer. Raises ServerError when one is larger than 64 MiB."""
    rest = b""
    for chunk in response.iter_raw():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > _MAX_JSON_BYTES:
            raise _not_belljar(response)
    if rest:
        yield rest


def _object(response: httpx.Response, data: bytes) -> dict[str, Any]:
    """Return the JSON object of an answer, or of a line of it."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise _not_belljar(response)
    return body


def _check(response: httpx.Response, data: bytes | None = None) -> None:
    if response.is_success:
        return
    try:
        body = json.loads(_read_bounded(response) if data is None else data)
        raise ServerError(response.status_code, str(body["code"]), str(body["detail"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _not_belljar(response) from None


def _not_belljar(response: httpx.Response) -> ServerError:
    reason = f"{response.url} answered {response.status_code} {response.reason_phrase}; is it a belljar server?"
    return ServerError(response.status_code, "not_belljar", reason)
