# Written by script/sdk from sandbox_async.py; change that instead.
"""A sandbox: a machine that stays. Run commands in it, read and write its files, see its ports, until it ends."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from belljar.client.code_result import CodeResult
from belljar.client.command_result import CommandResult
from belljar.client.context import Context, OnEvent, collected, run_body, run_events
from belljar.client.files import Files
from belljar.client.port_forward import PortForward
from belljar.client.process import Process

if TYPE_CHECKING:
    from belljar.client.client import Client

#: What of each stream the result of a command has at most, if the caller sets no limit.
_MAX_OUTPUT_BYTES = 16 << 20
#: A wait is split into requests of this many seconds, because proxies limit the time of a request.
_WAIT_SECONDS = 30
_POLL_SECONDS = 0.2


class Sandbox(dict[str, Any]):
    """A sandbox: the fields of the API (`box["expires_at"]`), as they were when it was last fetched."""

    def __init__(self, client: Client, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._client = client
        self._path = f"/v1/sandboxes/{self.id}"
        self.files = Files(client.transport, self._path)

    @property
    def id(self) -> str:
        """The id of the sandbox."""
        return str(self["id"])

    @property
    def status(self) -> str:
        """`creating`, `running`, while it is paused `pausing`, `paused` and `resuming`, then `ended` or `lost`."""
        return str(self["status"])

    def refresh(self) -> Sandbox:
        """Fetch the sandbox's fields again; return the sandbox."""
        self.update(self._client.transport.json("GET", self._path))
        return self

    def extend(self, lifetime_seconds: float) -> Sandbox:
        """Let the sandbox end so many seconds from now; return it."""
        body = {"lifetime_seconds": lifetime_seconds}
        self.update(self._client.transport.json("POST", f"{self._path}/extend", json=body, is_repeatable=True))
        return self

    def delete(self) -> Sandbox:
        """End the sandbox with everything in it; return it. One that has ended stays as it is."""
        self.update(self._client.transport.json("DELETE", self._path, is_repeatable=True))
        return self

    def pause(self) -> Sandbox:
        """Keep the sandbox's memory and disks, and end its machine; return it. `resume` continues its commands."""
        self.update(self._client.transport.json("POST", f"{self._path}/pause", is_repeatable=True))
        return self

    def resume(self, *, wait_seconds: float = 120) -> Sandbox:
        """Continue a paused sandbox and return it when it runs. Raises TimeoutError after `wait_seconds`."""
        deadline = time.monotonic() + wait_seconds
        while True:
            left = max(0.0, min(_WAIT_SECONDS, deadline - time.monotonic()))
            path, wait = f"{self._path}/resume", {"wait": left}
            self.update(self._client.transport.json("POST", path, params=wait, is_repeatable=True))
            if self.status == "running":
                return self
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the sandbox {self.id} was not resumed within {wait_seconds:g} seconds")

    def snapshot(self, *, keep_secrets: bool = False) -> dict[str, Any]:
        """Keep a copy of the sandbox as it is now, which goes on; return the snapshot.

        `client.create_sandbox(snapshot=snapshot["id"])` makes sandboxes from it. `keep_secrets` is needed for
        a sandbox with secrets, whose values are in its memory.
        """
        body = {"secrets": "keep"} if keep_secrets else {}
        return self._client.transport.json("POST", f"{self._path}/snapshot", json=body)

    def fork(
        self, count: int = 1, *, keep_secrets: bool = False, wait_seconds: float = 120, **options: Any
    ) -> list[Sandbox]:
        """Return copies of the sandbox that go on from where it is now, with its memory, when they run.

        Options: lifetime_seconds, labels. `keep_secrets` as for `snapshot`. Raises TimeoutError after `wait_seconds`,
        with the copies deleted.
        """
        body = {"count": count, **options, **({"secrets": "keep"} if keep_secrets else {})}
        deadline = time.monotonic() + wait_seconds
        wait = {"wait": max(0.0, min(_WAIT_SECONDS, wait_seconds))}
        found = self._client.transport.json("POST", f"{self._path}/fork", json=body, params=wait)
        forks = [Sandbox(self._client, fields) for fields in found["sandboxes"]]
        while any(fork.status == "creating" for fork in forks):
            if time.monotonic() >= deadline:
                for fork in forks:
                    fork.delete()
                raise TimeoutError(f"the copies of {self.id} had no machines after {wait_seconds:g} seconds")
            time.sleep(_POLL_SECONDS)
            for fork in forks:
                fork.refresh()
        return forks

    def run(self, command: str, **options: Any) -> CommandResult:
        """Run a command line of a shell and return its result. Options as for `exec`."""
        return self._result({"command": command}, **options)

    def exec(self, args: Sequence[str], **options: Any) -> CommandResult:
        """Run a program with its arguments and return its result, whatever its exit code.

        Options: cwd, env, stdin (str or bytes), timeout_seconds, max_output_bytes (of each
        stream, in this process's memory). `result.check()` raises CommandFailed unless it exited with 0.
        """
        return self._result({"args": _listed(args)}, **options)

    def start(
        self, command: str | Sequence[str], *, background: bool = True, stdin: str | bytes | None = None, **options: Any
    ) -> Process:
        """Start a command line (str) or a program with arguments (list), and return without waiting for its end.

        Options: cwd, env, timeout_seconds, pty (True or {"columns", "rows"}), keep_stdin_open. Of a background
        command the newest 128 KiB of output are kept. With `background=False` the command waits for its reader, so that
        no output is lost, and is killed soon after this client is gone.
        """
        body = {"command": command} if isinstance(command, str) else {"args": _listed(command)}
        body |= {**options, **_input(stdin)}
        if background:
            fields = self._client.transport.json("POST", f"{self._path}/exec", json={**body, "background": True})
            return Process(self._client.transport, self._path, fields)
        return Process.followed(self._client.transport, self._path, body)

    def processes(self) -> list[Process]:
        """Return the commands that run, and the newest of those that have ended, oldest first."""
        found = (self._client.transport.json("GET", f"{self._path}/processes"))["processes"]
        return [Process(self._client.transport, self._path, fields) for fields in found]

    def process(self, pid: int) -> Process:
        """Return a command by its process number in the sandbox."""
        fields = self._client.transport.json("GET", f"{self._path}/processes/{int(pid)}")
        return Process(self._client.transport, self._path, fields)

    def run_code(
        self,
        code: str,
        language: str = "python",
        *,
        timeout_seconds: float | None = None,
        max_output_bytes: int = _MAX_OUTPUT_BYTES,
        on_event: OnEvent | None = None,
    ) -> CodeResult:
        """Run code in the default context of a language: variables live from one call to the next.

        Returns what came of it, also if it raised something: see `result.error`, `result.check()`. After
        `timeout_seconds` (default: 300) it is interrupted. `on_event` is called with each piece as it comes.
        """
        body = {**run_body(code, timeout_seconds), "language": language}
        events = run_events(self._client.transport, f"{self._path}/run", body)
        return collected(events, max_output_bytes, on_event)

    def context(
        self, language: str = "python", *, cwd: str | None = None, env: dict[str, str] | None = None
    ) -> Context:
        """Create a context, with variables of its own, and return it when it is ready."""
        body = {"language": language, "env": env or {}} | ({} if cwd is None else {"cwd": cwd})
        fields = self._client.transport.json("POST", f"{self._path}/contexts", json=body)
        return Context(self._client.transport, self._path, fields)

    def get_context(self, context_id: str) -> Context:
        """Return a context by its id; that of a default context is its language."""
        fields = self._client.transport.json("GET", f"{self._path}/contexts/{quote(context_id, safe='')}")
        return Context(self._client.transport, self._path, fields)

    def contexts(self) -> list[Context]:
        """Return the contexts, oldest first."""
        found = (self._client.transport.json("GET", f"{self._path}/contexts"))["contexts"]
        return [Context(self._client.transport, self._path, fields) for fields in found]

    def ports(self) -> list[dict[str, Any]]:
        """Return the TCP ports that programs in the sandbox listen on: `port`, `address`, `path`, `url`, `public`."""
        ports: list[dict[str, Any]] = (self._client.transport.json("GET", f"{self._path}/ports"))["ports"]
        return ports

    def url(self, port: int) -> str:
        """Return the URL of a port. A request to it needs the key, in the header Authorization."""
        return f"{self._client.url}{self._path}/ports/{int(port)}/"

    def forward(
        self, port: int, local_port: int = 0, *, on_error: Callable[[Exception], None] = lambda _: None
    ) -> PortForward:
        """Forward a port of 127.0.0.1 (0: a free one, see `port`) to one in the sandbox while a block runs.

        Connections are passed on as bytes, whatever their protocol; one that is lost is reset, and `on_error` is called
        with the reason. The block begins with an OSError if the local port is in use.
        """
        target = self._client.transport.websocket(f"{self._path}/ports/{int(port)}/tunnel")
        return PortForward(target, local_port, on_error)

    def port_token(self, port: int, *, lifetime_seconds: float | None = None) -> dict[str, Any]:
        """Make a token with which others reach a port by its host name: `token`, and `url` for a browser."""
        body = {} if lifetime_seconds is None else {"lifetime_seconds": lifetime_seconds}
        return self._client.transport.json("POST", f"{self._path}/ports/{int(port)}/tokens", json=body)

    def port_tokens(self, port: int) -> list[dict[str, Any]]:
        """Return the valid tokens of a port, without their secrets."""
        path = f"{self._path}/ports/{int(port)}/tokens"
        tokens: list[dict[str, Any]] = (self._client.transport.json("GET", path))["tokens"]
        return tokens

    def revoke_port_token(self, port: int, token_id: str) -> None:
        """Revoke a token of a port."""
        path = f"{self._path}/ports/{int(port)}/tokens/{quote(token_id, safe='')}"
        self._client.transport.json("DELETE", path)

    def set_public_ports(self, ports: Sequence[int]) -> Sandbox:
        """Let anyone reach these ports by their host names, instead of those so far; return the sandbox."""
        self.update(self._client.transport.json("PATCH", self._path, json={"public_ports": list(ports)}))
        return self

    def metrics(self) -> dict[str, Any]:
        """Return what the sandbox's machine uses now."""
        return self._client.transport.json("GET", f"{self._path}/metrics")

    def flows(self, **filters: Any) -> dict[str, Any]:
        """Return what the sandbox's machine talked to. Filters: verdict (`allowed` or `refused`), limit."""
        given = {name: value for name, value in filters.items() if value is not None}
        return self._client.transport.json("GET", f"{self._path}/flows", params=given)

    def metrics_series(self) -> dict[str, Any]:
        """Return what its machine used over its life: arrays `seconds`, `cpu`, `memory_bytes`, …"""
        return self._client.transport.json("GET", f"{self._path}/metrics", params={"series": True})

    def _result(
        self,
        body: dict[str, Any],
        *,
        stdin: str | bytes | None = None,
        max_output_bytes: int = _MAX_OUTPUT_BYTES,
        **options: Any,
    ) -> CommandResult:
        body = {**body, **options, **_input(stdin)}
        with Process.followed(self._client.transport, self._path, body) as process:
            return process.result(max_output_bytes)


def _listed(args: Sequence[str]) -> list[str]:
    if isinstance(args, str):
        raise TypeError(f"args is the text {args!r:.100}; use a list, or run() for a command line of a shell")
    return list(args)


def _input(stdin: str | bytes | None) -> dict[str, Any]:
    """Return the field of a command's input."""
    if stdin is None:
        return {}
    if isinstance(stdin, str):
        return {"stdin": stdin}
    return {"stdin_base64": base64.b64encode(stdin).decode()}
