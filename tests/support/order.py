"""The order in which tests run: a parallel run ends when its last worker does.

Each worker of `pytest -n` takes the next file. Files without images come first: meanwhile the images are built.
Of the files with images the longest come first, so that short ones are left when the workers end.
"""

from __future__ import annotations

import pytest

from support.paths import TESTS

#: Files with images that take more than ten seconds on two processors, the longest first. Those that need the image of
#: one language come after those that need python and shell; the two with the host's network are far from each other.
LONG_FILES = (
    "end_to_end/test_dependencies.py",
    "images/test_own_images.py",
    "end_to_end/test_registries.py",
    "node/machines/provision/test_provisioner.py",
    "languages/test_languages.py",
    "end_to_end/test_networks_without_root.py",
    "end_to_end/test_pooled_networks.py",
    "end_to_end/test_real_index.py",
    "end_to_end/test_networks_gone.py",
    "end_to_end/test_pool.py",
    "end_to_end/test_flow.py",
    "node/machines/firecracker/test_machine.py",
    "end_to_end/test_firecracker.py",
    "end_to_end/test_networks.py",
    "end_to_end/test_hostile_scripts.py",
    "languages/test_unlike_clones.py",
    "images/test_ordinary_user.py",
    "images/test_build.py",
    "cli/test_ordinary_user.py",
    "images/oci/test_import.py",
    "languages/test_prefork.py",
    "languages/test_programs.py",
    "node/machines/firecracker/test_clone.py",
    "cli/test_run.py",
)
_PLACES = {TESTS / name: place for place, name in enumerate(LONG_FILES)}


def sort(items: list[pytest.Item]) -> None:
    """Sort the items of a run by their files; tests of one file stay together in their order."""
    with_images = {item.path for item in items if item.get_closest_marker("image")}
    items.sort(key=lambda item: (item.path in with_images, _PLACES.get(item.path, len(_PLACES))))
