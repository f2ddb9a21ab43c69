"""Names of a job's blobs, apart from its log's (`belljar.control.logs.log`)."""

from __future__ import annotations


def stdin_blob(job_id: str) -> str:
    """Return the name of the blob with standard input."""
    return f"jobs/{job_id}/stdin"


def artifact_blob(job_id: str, index: int) -> str:
    """Return the name of an artifact's blob. It has the number only, since the guest chose the path."""
    return f"jobs/{job_id}/artifacts/{index}"
