"""The Python SDK: `Client` and `AsyncClient`, and what they return and raise."""

from belljar.client.client import Client
from belljar.client.client_async import AsyncClient
from belljar.client.code_result import CodeError, CodeEvent, CodeResult, RichResult
from belljar.client.command_result import CommandResult, ProcessOutput
from belljar.client.context import Context
from belljar.client.context_async import AsyncContext
from belljar.client.errors import (
    CodeFailed,
    CommandFailed,
    Conflict,
    FunctionRefused,
    JobFailed,
    LimitReached,
    LocalPathRefused,
    NotFound,
    Refused,
    RemoteError,
    ServerError,
    Unreachable,
)
from belljar.client.function import Call, Function
from belljar.client.function_async import AsyncCall, AsyncFunction
from belljar.client.job import Job, Output
from belljar.client.job_async import AsyncJob, AsyncOutput
from belljar.client.port_forward import AsyncPortForward, PortForward
from belljar.client.process import Process
from belljar.client.process_async import AsyncProcess
from belljar.client.sandbox import Sandbox
from belljar.client.sandbox_async import AsyncSandbox

__all__ = [
    "AsyncCall",
    "AsyncClient",
    "AsyncContext",
    "AsyncFunction",
    "AsyncJob",
    "AsyncOutput",
    "AsyncPortForward",
    "AsyncProcess",
    "AsyncSandbox",
    "Call",
    "Client",
    "CodeError",
    "CodeEvent",
    "CodeFailed",
    "CodeResult",
    "CommandFailed",
    "CommandResult",
    "Conflict",
    "Context",
    "Function",
    "FunctionRefused",
    "Job",
    "JobFailed",
    "LimitReached",
    "LocalPathRefused",
    "NotFound",
    "Output",
    "PortForward",
    "Process",
    "ProcessOutput",
    "Refused",
    "RemoteError",
    "RichResult",
    "Sandbox",
    "ServerError",
    "Unreachable",
]
