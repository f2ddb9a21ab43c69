"""What the operating system refuses becomes an error that says what to do."""

from __future__ import annotations

import errno

import pytest

from belljar.model.errors import DiskFull, HostError
from belljar.system.host_errors import disk_full_errors, host_errors


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        (errno.ENOSPC, DiskFull, "free some space"),
        (errno.EDQUOT, DiskFull, "free some space"),
        (errno.EMFILE, HostError, "ulimit -n"),
        (errno.EAGAIN, HostError, "ulimit -u"),
        (errno.EIO, HostError, "refused"),
    ],
)
def test_every_refusal_is_a_host_error_with_advice(code: int, kind: type[HostError], advice: str) -> None:
    with pytest.raises(kind, match=f"cannot keep the file: .*{advice}") as caught, host_errors("keep the file"):
        raise OSError(code, "refused", "/secret/path")
    assert type(caught.value) is kind and "/secret" not in caught.value.message


def test_no_thread_is_a_lack_of_processes_and_a_bug_stays_a_bug() -> None:
    with pytest.raises(HostError, match="TasksMax"), host_errors("start a machine"):
        raise RuntimeError("can't start new thread")
    with pytest.raises(RuntimeError, match="a bug"), host_errors("start a machine"):
        raise RuntimeError("a bug")


def test_only_a_full_disk_is_disk_full() -> None:
    with pytest.raises(DiskFull), disk_full_errors("pack the script"):
        raise OSError(errno.EDQUOT, "")
    with pytest.raises(PermissionError), disk_full_errors("pack the script"):
        raise PermissionError(errno.EACCES, "")
