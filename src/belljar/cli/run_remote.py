"""`belljar run --server`: the same as here, with the job on a server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, BinaryIO

from belljar.cli.server import connect
from belljar.cli.upload import upload
from belljar.client import Client, ServerError, Unreachable
from belljar.worker.output import safe_parts


def run_remote(
    path: Path,
    filename: str,
    asked: dict[str, Any],
    *,
    language: str | None,
    entrypoint: str | None,
    stdout: BinaryIO,
    stderr: BinaryIO,
    artifacts_dir: Path | None,
    server: str,
    api_key: str | None,
    data_dir: Path | None,
) -> dict[str, Any]:
    """Upload, submit, pass on both streams, fetch artifacts; a Ctrl-C cancels the job. Returns the job."""
    with connect(server, api_key, data_dir) as client:
        script = upload(client, path, filename, language=language, entrypoint=entrypoint)
        job_id = client.submit(script_id=script["script_id"], **asked)["id"]
        try:
            _follow(client, job_id, stdout, stderr)
            job = client.wait(job_id)
        except KeyboardInterrupt:
            client.cancel(job_id)
            return client.wait(job_id)
        if artifacts_dir is not None:
            _fetch(client, job_id, artifacts_dir)
        return job


def _follow(client: Client, job_id: str, stdout: BinaryIO, stderr: BinaryIO) -> None:
    """Both streams at once, byte for byte."""
    failures: list[Exception] = []

    def pass_on(stream: str, file: BinaryIO) -> None:
        try:
            for chunk in client.logs(job_id, stream=stream, follow=True):
                file.write(chunk)
                file.flush()
        except (ServerError, Unreachable, OSError) as error:
            failures.append(error)

    other = threading.Thread(target=pass_on, args=("stderr", stderr), daemon=True)
    other.start()
    pass_on("stdout", stdout)
    other.join()
    if failures:
        raise failures[0]


def _fetch(client: Client, job_id: str, folder: Path) -> None:
    for artifact in client.artifacts(job_id):
        parts = safe_parts(artifact["path"])
        if parts is None:
            continue  # no name that a file here may have
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for chunk in client.artifact(job_id, artifact["path"]):
                file.write(chunk)
