"""The Python SDK: `Client` and `AsyncClient`, and what they return and raise."""

from belljar.client.client import Client
from belljar.client.client_async import AsyncClient
from belljar.client.errors import (
    Conflict,
    FunctionRefused,
    JobFailed,
    LimitReached,
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

__all__ = [
    "AsyncCall",
    "AsyncClient",
    "AsyncFunction",
    "AsyncJob",
    "AsyncOutput",
    "Call",
    "Client",
    "Conflict",
    "Function",
    "FunctionRefused",
    "Job",
    "JobFailed",
    "LimitReached",
    "NotFound",
    "Output",
    "Refused",
    "RemoteError",
    "ServerError",
    "Unreachable",
]
