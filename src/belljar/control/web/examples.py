"""A first script for each language, for the playground."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from belljar.model.image import Language

_FOLDER = Path(__file__).parent / "examples"


def example_of(language: Language) -> str:
    """Return the example of a language; for one that has none here, the first program of its recipe."""
    path = _FOLDER / f"{language.name}.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else language.hello.strip() + "\n"


def with_examples(languages: Sequence[Language]) -> dict[str, str]:
    """Return the example of each language that is written as text, by its name."""
    return {each.name: example_of(each) for each in sorted(languages, key=lambda each: each.name) if each.hello}
