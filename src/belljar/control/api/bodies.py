"""Reads request bodies into models: bounds first, then JSON, then the model, and nothing large on the event loop."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from belljar.control.api.json_stream import Base64Sink, BytesSink, JsonLimits, JsonStream, Sink
from belljar.model.errors import InvalidOption, InvalidRequest
from belljar.model.job_options import MAX_STDIN_BYTES, JobOptions
from belljar.model.submission_limits import check_shape

M = TypeVar("M", bound=BaseModel)
Options = TypeVar("Options", bound=JobOptions)

KB = 1024
#: Largest JSON body: standard input of 16 MiB in base64, and 2.6 MiB for everything else.
MAX_JSON_BYTES = 24 * 1024 * KB
#: The same of a request that submits nothing.
MAX_SMALL_BYTES = 64 * KB
_SUBMISSION = JsonLimits(max_bytes=MAX_JSON_BYTES, max_values=32_768)
_SMALL = JsonLimits(max_bytes=MAX_SMALL_BYTES, max_values=256)
#: A piece of a body that is looked at without letting others run.
_PIECE_BYTES = 16 * KB
#: Above this, parsing and validating go to a thread.
_THREAD_BYTES = 32 * KB


async def read_options(request: Request, model: type[Options], *, required: bool = True) -> Options:
    """The options of a job, or a submission, from the request's JSON body.

    Raises InvalidRequest, InvalidOption, TooLarge, RequestTimeout.
    """
    sinks: dict[str, Sink] = {
        "stdin": BytesSink("stdin", MAX_STDIN_BYTES),
        "stdin_base64": Base64Sink("stdin_base64", MAX_STDIN_BYTES),
    }
    stream = JsonStream(_SUBMISSION, sinks)
    if not await _receive(request, stream) and not required:
        return model()
    if stream.short_bytes <= _THREAD_BYTES:
        return _options(stream, model)
    return await asyncio.to_thread(_options, stream, model)


async def read_small(request: Request, model: type[M]) -> M:
    """A small model from the request's JSON body. Raises as `read_options`."""
    stream = JsonStream(_SMALL)
    await _receive(request, stream)
    return _validated(model, _object(stream.close()))


async def _receive(request: Request, stream: JsonStream) -> bool:
    """Feed the body to the stream; False when there is none."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (media_type.startswith("application/") and "+json" in media_type)
    found = False
    async for chunk in request.stream():
        for at in range(0, len(chunk), _PIECE_BYTES):
            if not is_json:
                raise _no_object()
            found = True
            stream.feed(chunk[at : at + _PIECE_BYTES])
            if at:
                await asyncio.sleep(0)
    return found


def _options(stream: JsonStream, model: type[Options]) -> Options:
    given = _object(stream.close())
    check_shape(given, model.model_fields)
    decoded = [given.pop(name) for name in ("stdin", "stdin_base64") if isinstance(given.get(name), bytes)]
    if decoded and (len(decoded) > 1 or given.get("stdin") is not None or given.get("stdin_base64") is not None):
        raise InvalidOption("give stdin or stdin_base64, not both", option="stdin")
    options = _validated(model, given)
    if decoded:
        options.set_stdin(decoded[0])
    return options


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _no_object()
    return value


def _no_object() -> InvalidRequest:
    return InvalidRequest("the body must be a JSON object, sent with Content-Type: application/json")


def _validated(model: type[M], given: dict[str, Any]) -> M:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from None
