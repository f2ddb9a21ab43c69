"""The errors that users meet.

Each class has a stable `code` for programs, the HTTP `status` it maps to, and a message that says what to do. The API
turns errors into problem details (RFC 9457), the command line into one line on stderr. A bug is not a `BelljarError`.
The first sentence of each docstring, "cause; what to do", is the class's entry in docs/errors.md.
"""

from __future__ import annotations

import errno
import re
import resource
from typing import Any, ClassVar

#: What to do when no process or thread can be started.
TOO_MANY_PROCESSES = (
    "the limit of processes of this user or group is reached: raise it (ulimit -u, TasksMax= of the service, pids.max "
    "of its cgroup) or run fewer jobs at once"
)
_PATH = re.compile(r"(?<![\w/.:])/[^\s/:;,'\"()]+(?:/[^\s:;,'\"()]*)*")


def without_paths(text: str) -> str:
    """Return the text with PATH for every absolute path: only the operator may read the host's paths."""
    return _PATH.sub("PATH", text)


class BelljarError(Exception):
    """An internal error; see the server's log, and report it.

    The base of all errors.

    `message` is one sentence for a person that says what to do. `details` are facts for a program; they become
    extension members of the problem document, so they must be JSON values and hold no secret.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


# --- the caller's request -------------------------------------------------------------------------------------------


class InvalidRequest(BelljarError):
    """The request is malformed: not JSON, a missing part, or an unknown field; correct the request."""

    code = "invalid_request"
    status = 400


class InvalidOption(BelljarError):
    """An option has an invalid value, or one over a limit; correct the option that `option` names."""

    code = "invalid_option"
    status = 422


class UnknownLanguage(InvalidOption):
    """No image runs this language, or the upload does not show its language; set `language` or build an image."""

    code = "unknown_language"


class UnknownImage(InvalidOption):
    """No image has this name, or no node has it any more; list the images with GET /v1/images, build or import it."""

    code = "unknown_image"


class SecretMissing(InvalidOption):
    """The job names a secret that its project does not have, or no longer has; set it with belljar secret set."""

    code = "secret_missing"


class InvalidScript(BelljarError):
    """The upload is no script: empty, without an entrypoint, or with unsafe members; correct the file or archive."""

    code = "invalid_script"
    status = 422


class InvalidDependencies(InvalidScript):
    """The script's requirements are malformed, or not available for this image; correct them, or use another image."""

    code = "invalid_dependencies"


class LayerBuildError(InvalidDependencies):
    """The script's packages could not be installed; read the job's log with stream=build."""

    code = "dependencies_failed"


class TooLarge(BelljarError):
    """The body or upload is over a limit and nothing of it was kept; send less, or raise the setting."""

    code = "too_large"
    status = 413


class NotAuthenticated(BelljarError):
    """The request has no valid key: none, or an unknown, revoked or expired one; send Authorization: Bearer KEY."""

    code = "not_authenticated"
    status = 401


class KeyInUrl(NotAuthenticated):
    """The URL has a key in its query, where logs keep it; revoke that key, and send keys in Authorization only."""

    code = "key_in_url"


class SessionEnded(NotAuthenticated):
    """The session of the browser ended, or its cookie is unknown; sign in again."""

    code = "session_ended"


class Forbidden(BelljarError):
    """The key lacks a scope, or the request is cross-origin; use a key with the scope, or send it from this machine."""

    code = "forbidden"
    status = 403


class ProjectSuspended(Forbidden):
    """The operator suspended the key's project; ask the operator to resume it."""

    code = "project_suspended"


class CrossSiteRequest(Forbidden):
    """Another site's page sent the request with this browser's cookie; send it from a page of this server, or a key."""

    code = "cross_site_request"


class InvalidFormToken(Forbidden):
    """The form was made for another session; open its page again, and send it again."""

    code = "invalid_form_token"


class SignInFailed(Forbidden):
    """The provider's response was refused, or no project knows the person; follow the message, and sign in again."""

    code = "sign_in_failed"


class NotFound(BelljarError):
    """The project has nothing of this name; list what it has."""

    code = "not_found"
    status = 404


class MethodNotAllowed(BelljarError):
    """The path does not take this method; use one of those in the header Allow."""

    code = "method_not_allowed"
    status = 405


class ProjectSwitched(BelljarError):
    """The form of a page was opened in another project than the chosen one; switch back, and send it again."""

    code = "project_switched"
    status = 409


class Conflict(BelljarError):
    """The idempotency key belongs to another request; use a new key."""

    code = "conflict"
    status = 409


class ProjectConflict(Conflict):
    """The project exists already, still has work, or is being removed; follow the message."""

    code = "project_conflict"


class KeyConflict(Conflict):
    """The key is revoked or expired, so it cannot be rotated; create a new one."""

    code = "key_conflict"


class TooManyRequests(BelljarError):
    """The key has too many requests or bytes in flight; try again after `retry_after` seconds."""

    code = "too_many_requests"
    status = 429


class TooManyFailures(TooManyRequests):
    """The client's address sent many invalid keys; correct the key, and try again after `retry_after` seconds."""

    code = "too_many_failures"


class QuotaExceeded(BelljarError):
    """The project has reached its quota `quota`; wait (`retry_after` seconds, if given), or have the quota raised."""

    code = "quota_exceeded"
    status = 429


class RequestTimeout(BelljarError):
    """The body did not arrive in time; send it faster."""

    code = "request_timeout"
    status = 408


# --- this host ------------------------------------------------------------------------------------------------------


class HostError(BelljarError):
    """The host cannot do this now; follow the message, which says what to install or change."""

    code = "host_error"
    status = 503


class ServerBusy(HostError):
    """The server has too many requests in flight; try again after `retry_after` seconds."""

    code = "server_busy"


class ProviderError(HostError):
    """The OpenID Connect provider cannot be reached, or does not follow the protocol; see the server's log."""

    code = "identity_provider"


class MissingTool(HostError):
    """A program that belljar needs is not installed; install it (belljar doctor lists what is missing)."""

    code = "missing_tool"


class DiskFull(HostError):
    """The disk of the data folder is full; free some space, or move the data folder."""

    code = "disk_full"
    status = 507


def is_disk_full(error: OSError) -> bool:
    """Return whether the operating system refused for want of disk space, or of the user's quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def host_error(error: OSError, doing: str) -> HostError:
    """Return the error for a failed system call: `doing` completes "cannot …".

    The message has no path: it may become a job's error, which tenants read.
    """
    if is_disk_full(error):
        return DiskFull(f"cannot {doing}: no room left on the disk; free some space or move the data folder")
    return HostError(f"cannot {doing}: {_advice(error)}")


def _advice(error: OSError) -> str:
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"the limit of open files of this process is reached ({limit}): raise it (ulimit -n, LimitNOFILE= of the "
            "service) or run fewer jobs at once"
        )
    if error.errno == errno.ENFILE:
        return "the limit of open files of the host is reached: raise it (sysctl fs.file-max) or run fewer jobs at once"
    if error.errno == errno.EAGAIN:
        return TOO_MANY_PROCESSES
    if error.errno == errno.ENOMEM:
        return "the host is out of memory: run fewer or smaller jobs at once"
    return error.strerror or str(error) or type(error).__name__


class DataFolderError(HostError):
    """The data folder is not writable, in use, damaged, or of a newer version; follow the message."""

    code = "data_folder"


class SecretsKeyError(HostError):
    """The key that secrets are sealed with is missing, or is another one; restore it (docs/secrets.md)."""

    code = "secrets_key"


class DiskBudget(HostError):
    """The data does not fit into the disk space that a setting allows; raise the setting, or remove something."""

    code = "disk_budget"
    status = 507


class DamagedImage(HostError):
    """A file of an image does not match its manifest; build or import the image again."""

    code = "damaged_image"


class InvalidImage(BelljarError):
    """The container image is malformed, unsafe, too large, or for another architecture; import another one."""

    code = "invalid_image"
    status = 422


class ImageBuildError(HostError):
    """The image could not be built, and nothing of the build was kept; read the build's log."""

    code = "image_build"


class NoNetwork(BelljarError):
    """The host has no network for jobs, or cannot enforce the policy; run belljar doctor, or use egress none."""

    code = "no_network"
    status = 503


class NetworkError(HostError):
    """A network for the machine could not be set up; wait for the retry of the attempt."""

    code = "network_error"


# --- machines: infrastructure failures, not the script's --------------------------------------------------------------


class MachineError(BelljarError):
    """The machine failed to start or to run; wait for the retry of the attempt."""

    code = "machine_error"
    status = 503


class MachineDied(MachineError):
    """The hypervisor exited, the guest kernel panicked, or the emulator failed; wait for the retry of the attempt."""

    code = "machine_died"


class MachineTimeout(MachineError):
    """The machine did not start or respond in time; wait for the retry of the attempt."""

    code = "machine_timeout"


class GuestProtocolError(MachineError):
    """The guest violated the wire protocol, and its machine was destroyed; wait for the retry of the attempt."""

    code = "guest_protocol"


def classes() -> list[type[BelljarError]]:
    """Return every class of errors, each with a code of its own."""
    return [each for each in globals().values() if isinstance(each, type) and issubclass(each, BelljarError)]


def summary(error: type[BelljarError]) -> str:
    """Return the first paragraph of a class's docstring in one line: "cause; what to do."."""
    return " ".join((error.__doc__ or "").split("\n\n")[0].split())


# --- further errors of jobs -------------------------------------------------------------------------------------------

#: Code → "cause; what to do", for `error.code` and `lost_attempts[].code` of a job beside the codes of the classes.
JOB_ERRORS = {
    "timed_out": "The script ran for longer than `timeout_seconds` and was stopped; raise it, or do less.",
    "cannot_execute": "The machine could not start the script's command; check the entrypoint, its mode and `#!` line.",
    "compile_error": "The script could not be compiled; read its stderr.",
    "out_of_memory": "The script used more memory than its machine has; raise `memory_mb`.",
    "flow_alert": "An alert rule of the operator stopped the job; read the message, and the job's flows.",
    "artifacts_incomplete": "Some artifacts were not kept; read the message, and check limits, globs and disk space.",
    "log_incomplete": "Some of the log was not kept; check the disk space of the node and of the blob store.",
    "worker_stopped": "The worker was stopped during the attempt; wait for the retry of the attempt.",
    "worker_died": "The worker process crashed during the attempt; wait for the retry of the attempt.",
    "lease_expired": "The worker sent no heartbeat until the lease expired; wait for the retry of the attempt.",
}
