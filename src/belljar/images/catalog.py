"""The images that are built on this host: manifests by name, parts by digest.

`images/NAME.json` in the data folder is an image's manifest, written last; `images/parts/SHA256` are the files that
manifests name, shared between images and never changed.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from belljar.errors import DataFolderError, UnknownImage, UnknownLanguage
from belljar.images.manifest import Image, Language, Manifest
from belljar.images.recipe import IMAGE_NAME, recipes


class Images:
    """What is built in a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.folder = data_dir / "images"
        self.parts = self.folder / "parts"

    def list(self) -> list[Image]:
        """Every whole image, by name."""
        names = sorted(path.stem for path in self.folder.glob("*.json"))
        found = (self.find(name) for name in names)
        return [image for image in found if image is not None]

    def find(self, name: str) -> Image | None:
        """The image of that name, or None when it is not built or a part of it is missing."""
        if not IMAGE_NAME.match(name):
            return None
        try:
            manifest = Manifest.model_validate_json((self.folder / f"{name}.json").read_text())
        except (FileNotFoundError, ValidationError):
            return None
        image = self.image(manifest)
        whole = all(path.is_file() for path in (image.kernel, image.initramfs, image.root))
        return image if whole else None

    def image(self, manifest: Manifest) -> Image:
        """The manifest with the places of its parts."""
        return Image(
            manifest=manifest,
            kernel=self.parts / manifest.kernel.sha256,
            initramfs=self.parts / manifest.initramfs.sha256,
            root=self.parts / manifest.root.sha256,
        )

    def get(self, name: str) -> Image:
        """The image of that name. Raises UnknownImage, which says how to build it or which there are."""
        image = self.find(name)
        if image is not None:
            return image
        if name in recipes(self.data_dir):
            raise UnknownImage(f"the image {name} is not built here; run: belljar image build {name}", option="image")
        built = ", ".join(each.name for each in self.list()) or "none"
        raise UnknownImage(f"there is no image {name!r} here; built are: {built}", option="image")

    def remove(self, name: str) -> None:
        """Forget an image and delete the parts that no other image names. Raises UnknownImage, DataFolderError."""
        self.get(name)
        try:
            (self.folder / f"{name}.json").unlink()
            used = {path for each in self.list() for path in (each.kernel, each.initramfs, each.root)}
            for part in self.parts.iterdir():
                if part not in used:
                    part.unlink()
        except OSError as error:
            reason = f"cannot remove from {self.folder}: {error.strerror}; do it as its owner, or set --data-dir"
            raise DataFolderError(reason) from error

    def languages(self) -> tuple[Language, ...]:
        """The languages of what is built and of what could be, each once."""
        known: dict[str, Language] = {}
        for image in self.list():
            for language in image.manifest.languages:
                known.setdefault(language.name, language)
        for recipe in recipes(self.data_dir).values():
            for language in recipe.languages:
                known.setdefault(language.name, language)
        return tuple(known.values())

    def image_for(self, language: str) -> str:
        """Name of the image that runs a language: of its own name, else one that is built, else one that could be.

        Raises UnknownLanguage, naming those that are known.
        """
        built = [image.manifest for image in self.list()]
        for known in (built, recipes(self.data_dir).values()):
            runs = [each.name for each in known if language in (one.name for one in each.languages)]
            if runs:
                return language if language in runs else runs[0]
        names = ", ".join(each.name for each in self.languages())
        raise UnknownLanguage(f"no image here runs {language!r}; known languages: {names}", option="language")


def write_manifest(images: Images, manifest: Manifest) -> Image:
    """Register an image: from this moment on it is there."""
    path = images.folder / f"{manifest.name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n")
    partial.replace(path)
    return images.image(manifest)
