"""The prefork programs: their commands, their place, the memory that they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.images.prefork_programs import prefork_command, prefork_programs, rootfs_programs
from belljar.images.recipe import recipes
from belljar.node.guest.command import Command
from belljar.node.machines.provision.warm_up import WarmUp


def test_every_program_of_a_recipe_exists() -> None:
    languages = [each for recipe in recipes(Path("/nonexistent")).values() for each in recipe.languages]
    named = {each.prefork for each in languages if each.prefork}
    assert named == set(prefork_programs())


def test_only_programs_that_are_loaded_by_name_are_in_the_rootfs() -> None:
    texts = prefork_programs()
    assert rootfs_programs(["python", None, "node", "ruby", "node", "none"]) == {
        "/usr/lib/belljar/prefork/node.js": texts["node"],
        "/usr/lib/belljar/prefork/ruby.rb": texts["ruby"],
    }


@pytest.mark.parametrize("name", ["python", "node", "ruby"])
def test_a_waiting_program_has_the_options_of_the_run_command(name: str) -> None:
    command = prefork_command(name, [name, "--flag", "{entrypoint}"])
    assert command[0] == name and "--flag" in command and "{entrypoint}" not in command
    assert len(" ".join(command)) > 2048  # space for the command line of a script


def test_a_small_machine_lacks_memory_for_large_programs() -> None:
    waiting = tuple(Command(argv=[], env={}, prefork=name) for name in ("python", "node", "ruby", ""))
    preparation = WarmUp(disk=Path("/nowhere"), waiting_commands=waiting)
    assert [each.prefork for each in preparation.within(64).waiting_commands] == ["python", ""]
    assert [each.prefork for each in preparation.within(128).waiting_commands] == ["python", "ruby", ""]
    assert preparation.within(256) == preparation
