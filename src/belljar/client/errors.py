"""What a client raises: the server's refusal, or that no server answers."""

from __future__ import annotations

from typing import Any


class ServerError(Exception):
    """The server answered with an error: `status`, and `code` and `message` of its problem document.

    `details` are the other members of that document, `retry_after_seconds` is when to try again, if the server says so.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details or {}
        self.retry_after_seconds = retry_after_seconds

    @property
    def request_id(self) -> str | None:
        """The id of the request in the server's log."""
        value = self.details.get("request_id")
        return value if isinstance(value, str) else None


class Refused(ServerError):
    """The key or the request is not accepted: correct it, a repetition changes nothing."""


class NotFound(Refused):
    """What the request names does not exist in the project."""


class Conflict(Refused):
    """The request contradicts the state of what it names, or an earlier request with its idempotency key."""


class LimitReached(ServerError):
    """A quota or a rate limit of the project is reached, or the server is overloaded: try again later."""


#: The class of an answer by its status; any other status is a ServerError.
_CLASSES: dict[int, type[ServerError]] = {
    400: Refused,
    401: Refused,
    403: Refused,
    404: NotFound,
    409: Conflict,
    413: Refused,
    422: Refused,
    429: LimitReached,
}


def server_error(
    status: int, code: str, message: str, *, details: dict[str, Any], retry_after_seconds: float | None
) -> ServerError:
    """Return the error for a problem document."""
    kind = _CLASSES.get(status, ServerError)
    if status == 503 and retry_after_seconds is not None:
        kind = LimitReached
    return kind(status, code, message, details=details, retry_after_seconds=retry_after_seconds)


class Unreachable(Exception):
    """No server answers at the URL, or the connection to it was lost.

    `is_temporary` says whether a later attempt may succeed, `was_sent` whether the server may have got the request.
    """

    def __init__(self, message: str, *, is_temporary: bool = False, was_sent: bool = True) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary
        self.was_sent = was_sent


class JobFailed(Exception):
    """A job did not succeed. `job` has its fields."""

    def __init__(self, message: str, job: dict[str, Any]) -> None:
        super().__init__(message)
        self.job = job


class RemoteError(JobFailed):
    """A function raised an exception in its machine: `type_name`, `message` and `remote_traceback` as text.

    They come from the machine, so nothing of them is evaluated here.
    """

    def __init__(self, type_name: str, message: str, remote_traceback: str, job: dict[str, Any]) -> None:
        super().__init__(f"{type_name}: {message}\n\nin the machine:\n{remote_traceback.rstrip()}", job)
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback


class FunctionRefused(TypeError):
    """A function, an argument or a result cannot be sent to or from a machine; the message says which part."""


class CommandFailed(Exception):
    """A command in a sandbox did not exit with 0. `result` is its CommandResult."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class CodeFailed(Exception):
    """Code in a context raised something. `result` is its CodeResult; the text comes from the sandbox."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class LocalPathRefused(OSError):
    """A path of this host, or a name in an archive for it, cannot be read or written; the message says which."""
