"""What callers send about contexts: a new one, and code. Validated once, here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from belljar.control.sandboxes.request import (
    DEFAULT_OUTPUT_BYTES,
    MAX_ENV,
    MAX_OUTPUT_BYTES,
    MAX_PATH_BYTES,
    Seconds,
    check_env,
    size_of,
)
from belljar.model.value import Value

#: Characters of one piece of code.
MAX_CODE = 1024 * 1024
DEFAULT_RUN_SECONDS = 300.0

Language = Annotated[str, Field(min_length=1, max_length=40)]


class ContextRequest(Value):
    """A new context."""

    language: Language = "python"
    """`python` or `javascript`; the image must have python3 or node."""
    cwd: str | None = Field(default=None, min_length=1, max_length=MAX_PATH_BYTES)
    """Its working folder; None: /work."""
    env: dict[str, str] = Field(default_factory=dict, max_length=MAX_ENV)
    """Variables beside those of the sandbox and its image, and instead of those with the same name."""

    @field_validator("cwd")
    @classmethod
    def _cwd(cls, value: str | None) -> str | None:
        if value is not None:
            size_of(value, "cwd")
        return value

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        return check_env(value)


class RunRequest(Value):
    """Code for a context."""

    code: str = Field(max_length=MAX_CODE)
    timeout_seconds: Seconds = DEFAULT_RUN_SECONDS
    """It is interrupted after this time; if it ignores that, the context is restarted and its variables are lost."""
    max_output_bytes: int = Field(default=DEFAULT_OUTPUT_BYTES, ge=0, le=MAX_OUTPUT_BYTES)
    """Bytes of each of stdout and stderr that the result has; the rest is dropped, and `…_truncated` is true."""

    @field_validator("code")
    @classmethod
    def _code(cls, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("code has an unpaired surrogate; send valid Unicode") from None
        return value


class DefaultRunRequest(RunRequest):
    """Code for the default context of a language."""

    language: Language = "python"
    """Its context is started with the first code, and has the language as its id."""
