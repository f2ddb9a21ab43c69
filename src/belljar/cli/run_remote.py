"""`belljar run --server`: the same as without a server, with the job on one."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belljar.cli.failure import OUTPUT_CLOSED, Failed
from belljar.cli.passthrough import write_all, write_error
from belljar.cli.printing import print_message
from belljar.cli.run_end import RunEnd
from belljar.cli.server import connect
from belljar.cli.signals import Stopped, signals_deferred
from belljar.cli.upload import upload
from belljar.client import Client, ServerError, Unreachable
from belljar.node.worker.artifact_folder import FolderArtifacts, NotKept

if TYPE_CHECKING:
    from belljar.cli.flags import ServerFlags
    from belljar.cli.run_request import RunRequest
    from belljar.settings import Settings

#: How long to wait for a cancelled job to end: its grace period and two requests.
_CANCEL_SECONDS = 20.0


def run_remote(request: RunRequest, settings: Settings, server: ServerFlags) -> RunEnd:
    """Upload, submit, pass on both streams, fetch artifacts. Cancel the job when this command ends early.

    Raises ServerError, Unreachable, BelljarError, Stopped.
    """
    with connect(server) as client:
        script = upload(
            client,
            request.path,
            request.filename,
            request.selection,
            language=request.language,
            entrypoint=request.entrypoint,
        )
        job_id = ""
        follower = _Follower(client, stdout=2 if request.as_json else 1)
        try:
            with signals_deferred():  # until the id of the job to cancel is known
                job_id = str(client.submit(script_id=script["script_id"], **request.options)["id"])
            follower.follow(job_id)
            job: dict[str, Any] = client.wait(job_id)
        except BrokenPipeError:
            return RunEnd(job=_cancelled(client, job_id, follower, OUTPUT_CLOSED), output_closed=True)
        except Stopped as stopped:
            if not job_id:
                raise
            job = _cancelled(client, job_id, follower, stopped.exit_code)
            return RunEnd(job=job, stopped=stopped.number)
        except Exception:
            if job_id:
                _cancel(client, job_id)
            raise
        folder = request.artifacts_dir
        not_kept = _fetch(client, job_id, folder, settings) if folder is not None else None
        return RunEnd(job=job, not_kept=not_kept)


class _Follower:
    """Passes on both streams of a job unchanged, each in a thread of its own."""

    def __init__(self, client: Client, stdout: int) -> None:
        self._client = client
        self._files = {"stdout": stdout, "stderr": 2}
        self._threads: list[threading.Thread] = []
        #: How each thread ended.
        self._ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._stop = threading.Event()

    def follow(self, job_id: str) -> None:
        """Return when both streams have ended. Raises BrokenPipeError, HostError, ServerError, Unreachable, Stopped."""
        for stream in self._files:
            thread = threading.Thread(target=self._pass_on, args=(job_id, stream), daemon=True)
            self._threads.append(thread)
            thread.start()
        for _ in self._threads:
            failure = self._ends.get()
            if failure is not None:
                raise failure

    def end(self, seconds: float) -> None:
        """Pass on the output that still arrives, for at most `seconds`."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _pass_on(self, job_id: str, stream: str) -> None:
        failure: Exception | None = None
        try:
            for chunk in self._client.logs(job_id, stream=stream, follow=True):
                write_all(self._files[stream], chunk, self._stop.is_set)
        except BrokenPipeError as error:
            failure = error
        except OSError as error:
            failure = write_error(error)
        except Exception as error:  # noqa: BLE001 (`follow` raises it again)
            failure = error
        self._ends.put(failure)


def _cancelled(client: Client, job_id: str, follower: _Follower, code: int) -> dict[str, Any]:
    """Cancel the job, pass on its last output and return the ended job. Raises Failed if it did not end."""
    _cancel(client, job_id)
    follower.end(_CANCEL_SECONDS)
    try:
        job = client.wait(job_id, _CANCEL_SECONDS)
    except (ServerError, Unreachable):
        raise Failed(code) from None  # `_cancel` has printed what to do
    if job["finished_at"] is None:
        raise Failed(code, f"the job {job_id} is still {job['status']}; to see it: belljar jobs get {job_id}")
    return job


def _cancel(client: Client, job_id: str) -> None:
    try:
        client.cancel(job_id)
    except (ServerError, Unreachable) as error:
        print_message(f"the job {job_id} may still run ({error}); to stop it: belljar jobs cancel {job_id}")


def _fetch(client: Client, job_id: str, folder: Path, settings: Settings) -> list[NotKept]:
    """Save the job's artifacts in the folder, within the limits of this machine; return those that were not saved."""
    artifacts = FolderArtifacts(folder)
    bytes_left = int(settings.max_artifacts_mb * 1024 * 1024)
    for number, (path, size) in enumerate(_listed(client, job_id)):
        if number >= settings.max_artifact_count:
            artifacts.failed.append(
                NotKept(path, f"max_artifact_count is {settings.max_artifact_count} on this machine")
            )
        elif size > bytes_left:
            artifacts.failed.append(NotKept(path, f"max_artifacts_mb is {settings.max_artifacts_mb:g} on this machine"))
        elif artifacts.open(path, size):
            bytes_left -= size
            _fetch_one(client, job_id, path, artifacts)
    return artifacts.failed


def _listed(client: Client, job_id: str) -> list[tuple[str, int]]:
    """Return path and size in bytes of each artifact. The server's answer is not trusted to be well-formed."""
    try:
        return [(str(each["path"]), max(0, int(each["size_bytes"]))) for each in client.artifacts(job_id)]
    except (KeyError, TypeError, ValueError):
        raise ServerError(200, "not_belljar", "the server's list of artifacts is malformed") from None


def _fetch_one(client: Client, job_id: str, path: str, artifacts: FolderArtifacts) -> None:
    try:
        with contextlib.closing(client.artifact(job_id, path)) as chunks:
            for chunk in chunks:
                if not artifacts.add(chunk):
                    return
    except (ServerError, Unreachable) as error:
        artifacts.abandon(str(error))
        return
    except BaseException:
        artifacts.abandon("the transfer was interrupted")
        raise
    artifacts.finish()
