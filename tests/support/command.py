"""The real command in a process of its own, and what its complaints must look like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Nobody: an ordinary user that owns nothing.
ORDINARY = 65534
AS_ORDINARY = ["setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "--inh-caps=-all"]


def belljar(
    *words: str,
    data_dir: Path | None = None,
    cwd: Path = Path("/"),
    before: list[str] | None = None,
    stdin: bytes = b"",
    timeout: float = 60,
    safe_path: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run `belljar` with these words to its end; `before` are words of a program that starts it."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("BELLJAR_")}
    if data_dir is not None:
        variables["BELLJAR_DATA_DIR"] = str(data_dir)
    # `python -m` puts the working folder first among the places of modules; the installed command does not.
    command = [*(before or []), sys.executable, *(["-P"] if safe_path else []), "-m", "belljar", *words]
    return subprocess.run(
        command, cwd=cwd, env={**variables, **environment}, input=stdin, capture_output=True, timeout=timeout
    )


_EACH = """
import json, os, sys
import belljar.app.server, belljar.client, belljar.images.build, belljar.app.local_run, belljar.cli.terminal
from belljar.cli.main import main
results = []
for words in json.load(sys.stdin):
    files = [os.memfd_create("output"), os.memfd_create("errors")]
    pid = os.fork()
    if pid == 0:
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        sys.argv[:] = ["belljar", *words]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code)  # taking down all that was loaded would cost more than the call
        os.abort()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    results.append([code, *(os.pread(file, 1 << 20, 0).decode("latin-1") for file in files)])
print(json.dumps(results))
"""


def belljar_each(
    *calls: list[str], data_dir: Path, cwd: Path = Path("/"), before: list[str] | None = None
) -> list[subprocess.CompletedProcess[bytes]]:
    """Run `belljar` with each of these words, in forks of one process that has loaded it: a tenth of the time."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("BELLJAR_")}
    found = subprocess.run(
        [*(before or []), sys.executable, "-c", _EACH],
        input=json.dumps(calls).encode(),
        env={**variables, "BELLJAR_DATA_DIR": str(data_dir)},
        cwd=cwd,
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    return [
        subprocess.CompletedProcess(words, code, out.encode("latin-1"), err.encode("latin-1"))
        for words, (code, out, err) in zip(calls, json.loads(found.stdout), strict=True)
    ]


def output(result: subprocess.CompletedProcess[bytes]) -> str:
    """What a command printed that succeeded and complained of nothing."""
    assert (result.returncode, result.stderr.decode()) == (0, ""), result.stderr.decode()
    return result.stdout.decode()


def parsed(result: subprocess.CompletedProcess[bytes]) -> Any:
    """The JSON that a command printed."""
    return json.loads(output(result))


def complaint(result: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The one line on stderr of a command that failed with this exit code and printed nothing else."""
    text = result.stderr.decode()
    assert result.returncode == code, text
    assert result.stdout == b""
    assert text.startswith("belljar: ") and text.count("\n") == 1 and text.endswith("\n"), text
    return text
