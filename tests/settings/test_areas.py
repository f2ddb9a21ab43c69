"""Settings by area: each setting in one, described, and flat in `Settings`."""

from __future__ import annotations

from collections import Counter

import pytest

from belljar.model.errors import InvalidOption
from belljar.settings import AREAS, Settings, load_settings

MAX_SETTINGS = 25


def test_every_setting_is_in_one_area() -> None:
    names = Counter(name for area in AREAS for name in area.__annotations__)
    assert names == Counter(list(Settings.model_fields))
    assert all(issubclass(Settings, area) and len(area.__annotations__) <= MAX_SETTINGS for area in AREAS)


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_settings_cannot_be_changed_and_unknown_ones_are_refused() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(InvalidOption, match="invalid setting memroy"):
        load_settings(memroy=5)


@pytest.mark.parametrize("name", ["qemu", "firecracker", "jailer"])
def test_a_program_does_not_depend_on_the_working_folder(name: str) -> None:
    for program in ("", "./tool", "tools/qemu"):
        with pytest.raises(InvalidOption, match=f"invalid setting {name}: .*depends on the working folder"):
            load_settings(**{name: program})
    assert getattr(load_settings(**{name: "/usr/bin/tool"}), name) == "/usr/bin/tool"
