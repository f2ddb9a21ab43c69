"""The environment of a job's commands."""

from __future__ import annotations

from typing import Any

import pytest

from belljar.model.image import Manifest, Part, User
from belljar.node.worker.plan import WORKING_FOLDER, default_env

PART = Part(sha256="0" * 64, size_bytes=0, origin="nowhere")


def manifest(**fields: Any) -> Manifest:
    return Manifest(
        name="none", architecture="x86_64", digest="", kernel=PART, initramfs=PART, root=PART, languages=(), **fields
    )


@pytest.mark.parametrize(
    ("fields", "home"),
    [
        ({}, "/home/job"),
        ({"user": User(uid=33, gid=33)}, "/home/job"),
        ({"user": User(uid=0, gid=0)}, "/root"),
        ({"user": User(uid=0, gid=0), "env": {"HOME": "/srv"}}, "/srv"),
    ],
)
def test_home_is_a_folder_of_its_own_unless_the_image_names_one(fields: dict[str, Any], home: str) -> None:
    assert default_env(manifest(**fields))["HOME"] == home
    assert home != WORKING_FOLDER
