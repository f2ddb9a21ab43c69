"""Names of what a job keeps in the blob store. Its log's is in `belljar.control.logs.log`."""

from __future__ import annotations


def stdin_blob(job_id: str) -> str:
    """Standard input."""
    return f"jobs/{job_id}/stdin"


def artifact_blob(job_id: str, index: int) -> str:
    """An artifact: by its number, since the guest's path is never used as a name."""
    return f"jobs/{job_id}/artifacts/{index}"
