"""Reads request bodies into models: limits first, then JSON, then the model; large ones outside of the event loop."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from belljar.control.api.json_stream import Base64Sink, BytesSink, JsonLimits, JsonStream, Sink
from belljar.model.errors import InvalidOption, InvalidRequest, TooLarge
from belljar.model.job_options import MAX_STDIN_BYTES, JobOptions
from belljar.model.secrets import MAX_SECRET_BYTES, SecretValue
from belljar.model.submission_limits import check_shape

M = TypeVar("M", bound=BaseModel)
Options = TypeVar("Options", bound=JobOptions)

KB = 1024
#: Largest JSON body: standard input of 16 MiB in base64, and 2.6 MiB for everything else.
MAX_JSON_BYTES = 24 * 1024 * KB
#: Largest JSON body of other requests than submissions.
MAX_SMALL_BYTES = 64 * KB
#: Largest JSON body of a sandbox or a command: its arguments and variables, each of at most 1 MiB.
MAX_MEDIUM_BYTES = 4 * 1024 * KB
_SUBMISSION = JsonLimits(max_bytes=MAX_JSON_BYTES, max_values=32_768)
_SMALL = JsonLimits(max_bytes=MAX_SMALL_BYTES, max_values=256)
#: A secret of 64 KiB, each byte as an escape of six characters.
_MEDIUM = JsonLimits(max_bytes=MAX_MEDIUM_BYTES, max_values=8192, max_depth=5)
_SECRET = JsonLimits(max_bytes=400 * KB, max_values=4, max_depth=1)
#: Bytes that are parsed before the event loop may run other tasks.
_CHUNK_BYTES = 16 * KB
#: Larger bodies are parsed and validated in a thread.
_THREAD_BYTES = 32 * KB


async def read_options(request: Request, model: type[Options], *, required: bool = True) -> Options:
    """Read the options of a job, or a submission, from the request's JSON body.

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


async def read_small(request: Request, model: type[M], *, required: bool = True) -> M:
    """Read a small model from the request's JSON body. Raises like `read_options`."""
    stream = JsonStream(_SMALL)
    if not await _receive(request, stream) and not required:
        return model()
    return _validated(model, _object(stream.close()))


async def read_medium(request: Request, model: type[M]) -> M:
    """Read a model with many strings from the request's JSON body. Raises like `read_options`."""
    stream = JsonStream(_MEDIUM)
    await _receive(request, stream)
    if stream.short_bytes <= _THREAD_BYTES:
        return _validated(model, _object(stream.close()))
    return await asyncio.to_thread(lambda: _validated(model, _object(stream.close())))


async def read_command(request: Request, model: type[M]) -> tuple[M, bytes | None]:
    """Read a command, and its standard input if that is long; a short one is in the model.

    Raises like `read_options`.
    """
    sinks: dict[str, Sink] = {
        "stdin": BytesSink("stdin", MAX_STDIN_BYTES),
        "stdin_base64": Base64Sink("stdin_base64", MAX_STDIN_BYTES),
    }
    stream = JsonStream(_SUBMISSION, sinks)
    await _receive(request, stream)
    if stream.short_bytes <= _THREAD_BYTES:
        return _command(stream, model)
    return await asyncio.to_thread(_command, stream, model)


def _command(stream: JsonStream, model: type[M]) -> tuple[M, bytes | None]:
    values = _object(stream.close())
    decoded = [values.pop(name) for name in ("stdin", "stdin_base64") if isinstance(values.get(name), bytes)]
    if decoded and (len(decoded) > 1 or values.get("stdin") is not None or values.get("stdin_base64") is not None):
        raise InvalidOption("set stdin or stdin_base64, not both", option="stdin")
    return _validated(model, values), decoded[0] if decoded else None


async def read_secret(request: Request) -> SecretValue:
    """Read the value of a secret from the request's JSON body: `value` or `value_base64`.

    Raises like `read_options`. No error quotes the body.
    """
    stream = JsonStream(_SECRET)
    try:
        await _receive(request, stream)
    except TooLarge:
        raise TooLarge(f"a secret has at most {MAX_SECRET_BYTES} bytes; put large data into a script") from None
    body = _object(stream.close())
    if len(body) != 1 or not isinstance(text := body.get("value", body.get("value_base64")), str):
        raise InvalidOption(
            "the body must be an object with either value or value_base64, a string, and nothing else", option="value"
        )
    try:
        data = text.encode() if "value" in body else base64.b64decode(text, validate=True)
    except UnicodeEncodeError:
        raise InvalidOption("value has an unpaired surrogate; send valid Unicode", option="value") from None
    except (binascii.Error, ValueError):
        reason = "value_base64 is invalid base64; encode the bytes as in RFC 4648"
        raise InvalidOption(reason, option="value_base64") from None
    if not 0 < len(data) <= MAX_SECRET_BYTES:
        reason = f"a secret has 1 to {MAX_SECRET_BYTES} bytes, not {len(data)}"
        raise InvalidOption(reason, option=next(iter(body)), limit=MAX_SECRET_BYTES)
    return SecretValue(data)


async def _receive(request: Request, stream: JsonStream) -> bool:
    """Feed the body to the stream. Return whether there is one."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (media_type.startswith("application/") and "+json" in media_type)
    has_body = False
    async for chunk in request.stream():
        for at in range(0, len(chunk), _CHUNK_BYTES):
            if not is_json:
                raise _not_an_object()
            has_body = True
            stream.feed(chunk[at : at + _CHUNK_BYTES])
            if at:
                await asyncio.sleep(0)
    return has_body


def _options(stream: JsonStream, model: type[Options]) -> Options:
    values = _object(stream.close())
    check_shape(values, model.model_fields)
    decoded = [values.pop(name) for name in ("stdin", "stdin_base64") if isinstance(values.get(name), bytes)]
    if decoded and (len(decoded) > 1 or values.get("stdin") is not None or values.get("stdin_base64") is not None):
        raise InvalidOption("set stdin or stdin_base64, not both", option="stdin")
    options = _validated(model, values)
    if decoded:
        options.set_stdin(decoded[0])
    return options


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _not_an_object()
    return value


def _not_an_object() -> InvalidRequest:
    return InvalidRequest("the body must be a JSON object, sent with Content-Type: application/json")


def _validated(model: type[M], values: dict[str, Any]) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from None
