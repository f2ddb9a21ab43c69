"""What a form was sent with and what is wrong with it, so that its page can be shown again with both."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from belljar.model.errors import BelljarError, InvalidOption

M = TypeVar("M", bound=BaseModel)
#: The place of what is wrong with the whole form.
WHOLE = ""
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?\Z")


class InvalidForm(InvalidOption):
    """Fields of a form are invalid; `errors` has a sentence for each."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__(next(iter(errors.values())), option=next(iter(errors)))
        self.errors = dict(errors)


@dataclass(frozen=True, kw_only=True, slots=True)
class FormState:
    """The values of a form's fields, and the errors beside them."""

    values: Mapping[str, str] = field(default_factory=dict)
    #: By the name of the field.
    errors: Mapping[str, str] = field(default_factory=dict)

    def value(self, name: str, default: object = "") -> str:
        """Return what was entered into a field, or its default."""
        return self.values.get(name, "" if default is None else str(default))

    def error(self, name: str) -> str | None:
        """Return what is wrong with a field."""
        return self.errors.get(name)


def rejected(
    fields: Mapping[str, str],
    error: BelljarError,
    message: str,
    *,
    names: Mapping[str, str],
    secret: Collection[str],
) -> FormState:
    """Return the state of a form that was refused; the fields named in `secret` are not filled in again.

    `message` is what the caller may know of the error; `names` has the field of each option whose name differs. An
    error that is about no field of the form is one of the whole.
    """
    values = {name: value for name, value in fields.items() if name not in secret}
    if isinstance(error, InvalidForm):
        errors = {name if name in fields else WHOLE: text for name, text in error.errors.items()}
        return FormState(values=values, errors=errors)
    option = str(error.details.get("option", WHOLE)) if isinstance(error, InvalidOption) else WHOLE
    option = names.get(option, option)
    return FormState(values=values, errors={option if option in fields else WHOLE: message})


def validated(model: type[M], values: Mapping[str, object], names: Mapping[str, str] = MappingProxyType({})) -> M:
    """Return the model of a form's values; `names` has the field of each option whose name differs.

    An error in a part of the model is about the field with the name in that part. Raises InvalidForm.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        errors: dict[str, str] = {}
        for each in error.errors(include_url=False, include_context=False):
            path = [str(part) for part in each["loc"]] or [WHOLE]
            name = path[1] if len(path) > 1 and isinstance(values.get(path[0]), Mapping) else path[0]
            errors.setdefault(names.get(name, name), str(each["msg"]).removeprefix("Value error, "))
        raise InvalidForm(errors) from None


def whole_number(fields: Mapping[str, str], name: str) -> int | None:
    """Return the number in a field; None when it is empty. Raises InvalidForm."""
    text = fields.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidForm({name: f"{text[:40]!r} is no whole number; enter digits only, or nothing"})
    return int(text)


def decimal(fields: Mapping[str, str], name: str) -> float | None:
    """Return the number, which may have a fraction, in a field; None when it is empty. Raises InvalidForm."""
    text = fields.get(name, "").strip()
    if not text:
        return None
    if not _DECIMAL.match(text):
        raise InvalidForm({name: f"{text[:40]!r} is no number; enter one such as 90 or 1.5, or nothing"})
    return float(text)


def pairs(text: str, name: str) -> dict[str, str]:
    """Return the NAME=VALUE lines of a text field. Raises InvalidForm."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        key, separator, value = line.partition("=")
        if not separator or not key.strip():
            raise InvalidForm({name: f"{line[:60]!r} has no name and value; enter lines such as NAME=value"})
        found[key.strip()] = value
    return found


def lines(text: str) -> str:
    """Return the text of a `textarea` with LF at the ends of its lines: browsers send CRLF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
