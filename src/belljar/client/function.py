# Written by script/sdk from function_async.py; change that instead.
"""A Python function that runs in machines: one job for each call.

Arguments and results travel as JSON. The code of a machine is not trusted: nothing that it returns is unpickled or
evaluated here.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from belljar.client.errors import (
    FunctionRefused,
    JobFailed,
    LimitReached,
    NotFound,
    RemoteError,
    ServerError,
    Unreachable,
)
from belljar.client.function_source import ENTRYPOINT, RESULT, function_files
from belljar.client.json_values import check_json

if TYPE_CHECKING:
    from belljar.client.client import Client
    from belljar.client.job import Job

P = ParamSpec("P")
R = TypeVar("R")
_MAX_IN_FLIGHT = 32


class Call(Generic[R]):
    """A call of a function that was submitted: `job` is its job."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def result(self, timeout_seconds: float | None = None) -> R:
        """Wait for the function's result, at most `timeout_seconds`, and return it.

        Raises TimeoutError, RemoteError for an exception of the function, JobFailed if the job ended otherwise.
        """
        job = self.job.wait(timeout_seconds)
        if not job.is_ended:
            raise TimeoutError(f"the job {job.id} is still {job.status} after {timeout_seconds} seconds")
        try:
            answer = json.loads(job.read_artifact(RESULT))
        except NotFound:
            job.check()
            raise JobFailed(
                f"the job {job.id} succeeded without a result: the function ended its process", job
            ) from None
        except (ValueError, RecursionError):
            raise JobFailed(f"the result of the job {job.id} is no JSON", job) from None
        if not isinstance(answer, dict) or not ("result" in answer or isinstance(answer.get("error"), dict)):
            raise JobFailed(f"the result of the job {job.id} is malformed", job)
        if "error" in answer:
            error = {name: str(answer["error"].get(name, "")) for name in ("type", "message", "traceback")}
            raise RemoteError(error["type"], error["message"], error["traceback"], job)
        job.check()
        result: R = answer["result"]
        return result

    def cancel(self) -> None:
        """Cancel the call's job."""
        self.job.cancel()


class Function(Generic[P, R]):
    """A function that is called here as before, and in a machine with `remote`, `submit` and `map`."""

    def __init__(
        self,
        function: Callable[P, R],
        client: Callable[[], Client],
        dependencies: Sequence[str],
        options: dict[str, Any],
    ) -> None:
        """Raises FunctionRefused for a function that cannot be sent."""
        for name in ("code", "script_id", "files", "entrypoint", "language", "args", "stdin", "stdin_base64"):
            if name in options:
                raise FunctionRefused(f"a function has no option {name}: it is set by the call")
        functools.update_wrapper(self, function)
        self._function = function
        self._client = client
        self._dependencies = tuple(dependencies) if not isinstance(dependencies, str) else dependencies
        self._options = options

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here, without a machine."""
        return self._function(*args, **kwargs)

    @functools.cached_property
    def _files(self) -> dict[str, str]:
        """The script. It is made at the first call, when all that the module defines is there."""
        return function_files(self._function, self._dependencies)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Queue a call with these arguments in a machine of its own; return it without waiting."""
        name = self._function.__name__
        try:
            for index, value in enumerate(args):
                check_json(value, f"argument {index} of {name}")
            for keyword, value in kwargs.items():
                check_json(value, f"the argument {keyword} of {name}")
        except TypeError as error:
            raise FunctionRefused(str(error)) from None
        options = dict(self._options)
        options["artifacts"] = [*options.get("artifacts", ()), RESULT]
        options["labels"] = {"function": name[:63]} | options.get("labels", {})
        stdin = json.dumps({"args": args, "kwargs": kwargs})
        return Call(
            self._client().submit(files=self._files, entrypoint=ENTRYPOINT, language="python", stdin=stdin, **options)
        )

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function in a machine of its own and return its result. Raises as `Call.result`."""
        call = self.submit(*args, **kwargs)
        try:
            return call.result()
        except (JobFailed, ServerError):
            raise
        except BaseException:
            _cancel([call])
            raise

    def map(self, items: Iterable[Any], *, max_in_flight: int = _MAX_IN_FLIGHT) -> Generator[R, None, None]:
        """Yield the function's result for each item, in order; at most `max_in_flight` calls are submitted at once.

        An exception ends it; calls that have not ended are cancelled, also when the caller stops early.
        """
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is {max_in_flight}; use 1 or more")
        calls: collections.deque[Call[R]] = collections.deque()
        try:
            for item in items:
                while len(calls) >= max_in_flight:
                    yield calls.popleft().result()
                while True:
                    try:
                        calls.append(self._submit_item(item))
                        break
                    except LimitReached:
                        if not calls:
                            raise
                    # A quota of queued jobs: room comes when one of these has ended.
                    yield calls.popleft().result()
            while calls:
                yield calls.popleft().result()
        finally:
            _cancel(calls)

    def _submit_item(self, item: Any) -> Call[R]:
        submit: Any = self.submit
        call: Call[R] = submit(item)
        return call


def _cancel(calls: Iterable[Call[Any]]) -> None:
    for call in calls:
        with contextlib.suppress(ServerError, Unreachable):
            call.cancel()
