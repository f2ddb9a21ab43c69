"""A secret on its way to the node that holds the lease of a job which names it."""

from __future__ import annotations

from dataclasses import dataclass

from belljar.model.secrets import SecretValue


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSecret:
    """One version of a secret, with its value."""

    name: str
    version: int
    value: SecretValue
