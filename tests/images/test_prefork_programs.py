"""What the prefork programs are started by, where they lie, and where they have no room."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.images.prefork_programs import prefork_programs, programs_in_root, waiting_command
from belljar.images.recipe import recipes
from belljar.node.guest.command import Command
from belljar.node.machines.provision.warm_up import WarmUp


def test_every_program_that_a_recipe_names_is_there() -> None:
    languages = [each for recipe in recipes(Path("/nonexistent")).values() for each in recipe.languages]
    named = {each.prefork for each in languages if each.prefork}
    assert named == set(prefork_programs())


def test_only_what_is_loaded_by_its_name_lies_in_the_root() -> None:
    texts = prefork_programs()
    assert programs_in_root(["python", None, "node", "ruby", "node", "none"]) == {
        "/usr/lib/belljar/prefork/node.js": texts["node"],
        "/usr/lib/belljar/prefork/ruby.rb": texts["ruby"],
    }


@pytest.mark.parametrize("name", ["python", "node", "ruby"])
def test_what_waits_is_started_with_the_scripts_own_options(name: str) -> None:
    words = waiting_command(name, [name, "--flag", "{entrypoint}"])
    assert words[0] == name and "--flag" in words and "{entrypoint}" not in words
    assert len(" ".join(words)) > 2048  # room for the script's own command line


def test_a_small_machine_has_no_room_for_what_is_large() -> None:
    waiting = tuple(Command(argv=[], env={}, prefork=name) for name in ("python", "node", "ruby", ""))
    preparation = WarmUp(disk=Path("/nowhere"), waiting_commands=waiting)
    assert [each.prefork for each in preparation.within(64).waiting_commands] == ["python", ""]
    assert [each.prefork for each in preparation.within(128).waiting_commands] == ["python", "ruby", ""]
    assert preparation.within(256) == preparation
