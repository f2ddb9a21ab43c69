"""The tree of errors that a person can meet.

Each class has a stable `code` (what programs match on), the HTTP `status` it maps to, and a message that says what to
do. Errors are raised where the fact is known and caught where something can be done about it: the API turns them into
problem details (RFC 9457), the command line into one line on stderr. A bug is not a `BelljarError`.
"""

from __future__ import annotations

import errno
import re
import resource
from typing import Any, ClassVar

#: What to do when no process or thread can be started.
TOO_MANY_PROCESSES = (
    "this user or group has as many processes as it may: raise the limit (ulimit -u, TasksMax= of the service, "
    "pids.max of its cgroup) or run fewer jobs at once"
)
_PATH = re.compile(r"(?<![\w/.:])/[^\s/:;,'\"()]+(?:/[^\s:;,'\"()]*)*")


def without_paths(text: str) -> str:
    """The text with PATH for every absolute path in it: which folders this host has is for its operator."""
    return _PATH.sub("PATH", text)


class BelljarError(Exception):
    """What every error of belljar's own inherits from.

    `message` is one sentence for a person, naming what to do. `details` are facts for a program; they are shown as
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
    """The request cannot be read: not JSON, a missing part, an unknown field."""

    code = "invalid_request"
    status = 400


class InvalidOption(BelljarError):
    """One option has a value that no job may have; `details["option"]` names it."""

    code = "invalid_option"
    status = 422


class UnknownLanguage(InvalidOption):
    """No image runs this language, or the language could not be told from the upload."""

    code = "unknown_language"


class UnknownImage(InvalidOption):
    """There is no image of this name here."""

    code = "unknown_image"


class InvalidScript(BelljarError):
    """The uploaded file or archive cannot be a script: empty, no entrypoint, unsafe members."""

    code = "invalid_script"
    status = 422


class InvalidDependencies(InvalidScript):
    """What the script says that it needs cannot be read, or is not to be had in this image."""

    code = "invalid_dependencies"


class LayerBuildError(InvalidDependencies):
    """What the script needs could not be installed; the job's build log says why."""

    code = "dependencies_failed"


class TooLarge(BelljarError):
    """More bytes than the limit allow; nothing was kept."""

    code = "too_large"
    status = 413


class NotAuthenticated(BelljarError):
    """No key, or a key that is not known here."""

    code = "not_authenticated"
    status = 401


class Forbidden(BelljarError):
    """The key is known and may not do this; or a web page of another origin asked."""

    code = "forbidden"
    status = 403


class NotFound(BelljarError):
    """Nothing of this name in the caller's project."""

    code = "not_found"
    status = 404


class Conflict(BelljarError):
    """The request contradicts what is already there."""

    code = "conflict"
    status = 409


class TooManyRequests(BelljarError):
    """The key has as many requests or bytes in flight as it may; `details["retry_after"]` are seconds to wait."""

    code = "too_many_requests"
    status = 429


class RequestTimeout(BelljarError):
    """The request's body did not arrive in time."""

    code = "request_timeout"
    status = 408


# --- this host ------------------------------------------------------------------------------------------------------


class HostError(BelljarError):
    """This host cannot do what was asked; the message says what to install or change."""

    code = "host_error"
    status = 503


class ServerBusy(HostError):
    """The server has as many requests in flight as it may; `details["retry_after"]` are seconds to wait."""

    code = "server_busy"


class MissingTool(HostError):
    """A program that belljar calls is not installed."""

    code = "missing_tool"


class DiskFull(HostError):
    """The file system that holds the data folder has no room left."""

    code = "disk_full"
    status = 507


def is_disk_full(error: OSError) -> bool:
    """Return whether the operating system refused for want of disk space, or of the user's quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def host_error(error: OSError, doing: str) -> HostError:
    """Return the error that says what the operating system refused: `doing` completes "cannot …".

    Names no path: it may become a job's error, which tenants read.
    """
    if is_disk_full(error):
        return DiskFull(f"cannot {doing}: no room left on the disk; free some space or move the data folder")
    return HostError(f"cannot {doing}: {_advice(error)}")


def _advice(error: OSError) -> str:
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"this process has as many open files as it may ({limit}): raise the limit (ulimit -n, LimitNOFILE= of "
            "the service) or run fewer jobs at once"
        )
    if error.errno == errno.ENFILE:
        return "the host has as many open files as it may: raise it with sysctl fs.file-max, or run fewer jobs at once"
    if error.errno == errno.EAGAIN:
        return TOO_MANY_PROCESSES
    if error.errno == errno.ENOMEM:
        return "the host has no memory left: run fewer jobs at once, or smaller ones"
    return error.strerror or str(error) or type(error).__name__


class DataFolderError(HostError):
    """The data folder cannot be used: not writable, in use, or written by a newer belljar."""

    code = "data_folder"


class DiskBudget(HostError):
    """What is to be kept does not fit into the disk that the settings allow for it."""

    code = "disk_budget"
    status = 507


class DamagedImage(HostError):
    """A file of an image is not what its manifest says any more."""

    code = "damaged_image"


class InvalidImage(BelljarError):
    """A container image that cannot be imported: malformed, hostile, too large, or for another architecture."""

    code = "invalid_image"
    status = 422


class ImageBuildError(HostError):
    """An image could not be built; nothing of the attempt was left behind."""

    code = "image_build"


class NoNetwork(BelljarError):
    """This host cannot give jobs a network at all, or not with that policy; trying again changes nothing."""

    code = "no_network"
    status = 503


class NetworkError(HostError):
    """A network could not be made just now; the attempt may be tried again."""

    code = "network_error"


# --- machines: infrastructure faults, never the script's -------------------------------------------------------------


class MachineError(BelljarError):
    """The machine could not be started, or died; the attempt may be tried again."""

    code = "machine_error"
    status = 503


class MachineDied(MachineError):
    """The hypervisor exited, the guest's kernel panicked, or the emulator stopped with an internal error."""

    code = "machine_died"


class MachineTimeout(MachineError):
    """The machine did not come up, or did not answer, within its deadline."""

    code = "machine_timeout"


class GuestProtocolError(MachineError):
    """The guest sent bytes that break the wire protocol; the machine is destroyed."""

    code = "guest_protocol"
