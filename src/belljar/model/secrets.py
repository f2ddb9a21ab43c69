"""Secrets as jobs name them, and the value of a secret, which nothing prints."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, NoReturn

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from belljar.model.value import Value

#: Bytes of one secret.
MAX_SECRET_BYTES = 64 * 1024
#: Secrets that one job names, and the bytes of all of them: masking searches a job's output for all at once.
MAX_SECRETS = 32
MAX_JOB_SECRET_BYTES = 256 * 1024
#: Bytes of those that are environment variables: what the agent can take beside the largest `args` and `env`.
MAX_ENV_SECRET_BYTES = 64 * 1024
#: Shorter secrets are not masked: they occur in output by chance.
MIN_MASKED_BYTES = 4
#: The folder in a machine with the secrets that are files.
SECRETS_FOLDER = "/run/secrets"

SECRET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
#: Variables that decide which programs and libraries run, or with which options: no place for a secret.
_RESERVED = re.compile(
    r"(PATH|HOME|IFS|ENV|BASH_ENV|SHELL|SHELLOPTS|LANG|PERL5OPT|PERL5LIB|RUBYOPT|RUBYLIB|NODE_OPTIONS|NODE_PATH|"
    r"PYTHONPATH|PYTHONHOME|PYTHONSTARTUP|PYTHONWARNINGS|PYTHONINSPECT|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|CLASSPATH|"
    r"LUA_INIT|LUA_PATH|LUA_CPATH|PHPRC|PHP_INI_SCAN_DIR|GCONV_PATH|GLIBC_TUNABLES|(LD|LC|MALLOC)_.*)\Z"
)


def check_secret_name(name: str) -> str:
    """Return the name of a secret. Raises ValueError."""
    if not SECRET_NAME.match(name):
        raise ValueError(f"{name[:64]!r} is an invalid name of a secret; use up to 64 letters, digits and _ . -")
    return name


class SecretUse(Value):
    """A secret that a job gets: as an environment variable, or as a file in memory (`/run/secrets/NAME`)."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: str
    form: Literal["env", "file"] = Field(default="env", alias="as")
    """`env`: the value of a variable; `file`: a file that only the job's user may read."""
    env: str | None = None
    """The variable: with `env` it has the value (default: the secret's name), with `file` the path (default: none)."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_secret_name(value)

    @model_validator(mode="after")
    def _check_variable(self) -> SecretUse:
        variable = self.variable
        if variable is None:
            return self
        if not _VARIABLE.match(variable):
            raise ValueError(
                f'{variable[:64]!r} is an invalid variable name; set "env" to letters, digits and _, or "as" to "file"'
            )
        if _RESERVED.match(variable):
            raise ValueError(
                f"a secret cannot be the variable {variable}, which decides how programs run; "
                'set "env" to another name, or "as" to "file"'
            )
        return self

    @property
    def variable(self) -> str | None:
        """The environment variable; None for a file whose path is in none."""
        return self.name if self.env is None and self.form == "env" else self.env

    @property
    def path(self) -> str:
        """The path of the file in the machine."""
        return f"{SECRETS_FOLDER}/{self.name}"


class _NameOrObject:
    """Describes a SecretUse that may also be given by its name alone."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "pattern": r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"}, handler(schema)]}


#: An entry of the option `secrets`.
GivenSecretUse = Annotated[SecretUse, _NameOrObject()]


def parse_secret_uses(given: object) -> object:
    """Return the option `secrets` with an object for each name. What is no list, name or object is left as it is."""
    if not isinstance(given, (list, tuple)):
        return given
    return [{"name": each} if isinstance(each, str) else each for each in given]


def check_secret_uses(uses: Collection[SecretUse], env: Iterable[str]) -> None:
    """Raise ValueError when two uses have the same file or variable, or `env` sets a variable of one."""
    taken = set(env)
    for use in uses:
        if use.variable is not None:
            if use.variable in taken:
                raise ValueError(f"the variable {use.variable} is set twice, by secrets and by env or another secret")
            taken.add(use.variable)
    files = [use.name for use in uses if use.form == "file"]
    if (twice := next((name for name in files if files.count(name) > 1), None)) is not None:
        raise ValueError(f"the secret {twice} is named as a file twice")


class SecretValue:
    """The bytes of a secret, which `reveal` returns. Printing, formatting or logging the object does not show them."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._data

    @property
    def fits_variable(self) -> bool:
        """Whether it can be an environment variable: those end at a NUL."""
        return b"\0" not in self._data

    @property
    def is_masked(self) -> bool:
        """Whether it is long enough to be masked in output."""
        return len(self._data.strip()) >= MIN_MASKED_BYTES

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretValue) and hmac.compare_digest(self._data, other._data)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "SecretValue(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret's value cannot be pickled or copied by pickling")

    def __format__(self, _spec: str, /) -> str:
        return "***"

    def __getstate__(self) -> Any:
        raise TypeError("a secret's value cannot be pickled")
