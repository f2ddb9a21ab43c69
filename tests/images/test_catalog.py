"""Images by name, parts by digest: incomplete images are not found; unused parts are deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.images.build import manifest_digest
from belljar.images.catalog import Images
from belljar.model.errors import UnknownImage, UnknownLanguage
from belljar.model.image import Language
from support.registered_images import register


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


def test_a_registered_image_is_found(images: Images) -> None:
    assert images.list() == []
    image = register(images.data_dir, "python")
    assert images.find("python") == images.get("python") == image
    assert images.list() == [image]
    assert image.manifest.digest == manifest_digest(image.manifest)


def test_the_digest_covers_all_other_fields(images: Images) -> None:
    manifest = register(images.data_dir, "python").manifest
    assert manifest_digest(manifest.model_copy(update={"digest": "x"})) == manifest.digest
    for change in ({"env": {"A": "b"}}, {"root": manifest.kernel}, {"languages": ()}):
        assert manifest_digest(manifest.model_copy(update=change)) != manifest.digest


@pytest.mark.parametrize("text", ["", "{}", "{", "[]", '{"format": 1}', "\ufeff"])
def test_an_invalid_manifest_is_not_an_image(images: Images, text: str) -> None:
    image = register(images.data_dir, "shell")
    register(images.data_dir, "python")
    (images.folder / "python.json").write_text(text)
    assert images.list() == [image]
    with pytest.raises(UnknownImage, match="python is not built here"):
        images.get("python")


@pytest.mark.parametrize("name", ["kernel", "initramfs", "root"])
def test_an_image_with_a_missing_part_is_not_found(images: Images, name: str) -> None:
    image = register(images.data_dir, "python")
    getattr(image, name).unlink()
    assert images.find("python") is None


def test_an_unknown_image_names_the_next_command(images: Images) -> None:
    with pytest.raises(UnknownImage, match=r"^there is no image 'x' here; none is built yet; build one, for example: "):
        images.get("x")
    with pytest.raises(UnknownImage, match=r"run: belljar image build python$"):
        images.get("python")
    register(images.data_dir, "shell")
    with pytest.raises(UnknownImage, match=r"^there is no image 'x' here; built images: shell$"):
        images.get("x")


@pytest.mark.parametrize("name", ["../images/python", "/etc/passwd", "", "Python", "python\n", "python.json", "a" * 64])
def test_an_invalid_name_is_not_looked_up(images: Images, name: str) -> None:
    register(images.data_dir, "python")
    assert images.find(name) is None
    with pytest.raises(UnknownImage, match="built images: python"):
        images.get(name)


def test_parts_are_deleted_with_the_last_image_that_uses_them(images: Images) -> None:
    python, shell = register(images.data_dir, "python"), register(images.data_dir, "shell")
    assert python.kernel == shell.kernel and python.root != shell.root
    images.remove("python")
    assert images.list() == [shell]
    assert not python.root.exists() and shell.kernel.exists()
    images.remove("shell")
    assert list(images.blobs.folder.iterdir()) == []
    with pytest.raises(UnknownImage):
        images.remove("shell")


@pytest.mark.parametrize("language", ["python", "shell", "node", "c", "go", "java", "binary"])
def test_built_images_do_not_change_a_languages_default_image(images: Images, language: str) -> None:
    default = images.image_for(language)
    for name in ("python", "shell", "scripting", "native", "go", "java", "other", "aaa"):
        register(images.data_dir, name)
        assert images.image_for(language) == default
    images.remove(default)
    assert images.image_for(language) == default
    with pytest.raises(UnknownImage, match=f"belljar image build {default} .*built.*: .*aaa"):
        images.get(images.image_for(language))


def test_a_language_of_no_recipe_runs_in_the_one_image_that_has_it(images: Images) -> None:
    with pytest.raises(UnknownLanguage, match=r"no image here runs 'cobol'; known languages: .*python"):
        images.image_for("cobol")
    cobol = Language(name="cobol", run=("cobc", "{entrypoint}"))
    images.register(register(images.data_dir, "mine").manifest.model_copy(update={"languages": (cobol,)}))
    images.tag("mine", "mine:1")
    assert images.image_for("cobol") in ("mine", "mine:1")
    other = {"name": "other", "digest": "f" * 64, "languages": (cobol,)}
    images.register(register(images.data_dir, "other").manifest.model_copy(update=other))
    with pytest.raises(UnknownImage, match=r"several images here run cobol: mine.*, other; choose one"):
        images.image_for("cobol")


def test_languages_are_those_of_images_and_of_recipes_each_once(images: Images) -> None:
    names = [language.name for language in images.languages()]
    assert {"python", "shell"} <= set(names) and len(names) == len(set(names))
    register(images.data_dir, "python")
    assert sorted(language.name for language in images.languages()) == sorted(names)
