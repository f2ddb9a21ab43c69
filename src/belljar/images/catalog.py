"""The images that are built on this host: manifests by name and by digest, parts by digest.

`images/NAME.json` in the data folder is what an image's name stands for, written last; `images/manifests/DIGEST.json`
is the same for jobs that were submitted while the name stood for it; `images/parts/SHA256` are the files that manifests
name, shared between images and never changed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from belljar.images.image_blobs import ImageBlobs
from belljar.images.recipe import IMAGE_NAME, default_image, recipes
from belljar.model.errors import DataFolderError, InvalidOption, UnknownImage, UnknownLanguage
from belljar.model.image import Image, Language, Manifest
from belljar.system.atomic_write import atomic_write

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(:[A-Za-z0-9_][A-Za-z0-9._-]{0,62})?\Z")
_DIGEST = re.compile(r"sha256:([0-9a-f]{12,64})\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """NAME or NAME:TAG, perhaps with @sha256:DIGEST behind it, or sha256:DIGEST alone; 12 digits of it are enough."""

    #: With its tag; `latest` is no tag.
    name: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """None for what is no reference, which then names nothing."""
        alone = _DIGEST.match(text)
        if alone:
            return cls(None, alone[1])
        name, at, digest = text.partition("@")
        named, digested = _NAME.match(name), _DIGEST.match(digest)
        if not named or (at and not digested):
            return None
        return cls(name.removesuffix(":latest"), digested[1] if digested else None)


class Images(ImageBlobs):
    """What is built in a data folder."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.manifests = self.folder / "manifests"
        #: Manifests that were read, with what tells whether their files are still the same: each job looks at them.
        self._seen: dict[Path, tuple[tuple[int, int, int], Manifest]] = {}

    def list(self) -> list[Image]:
        """Every whole image that has a name, by name."""
        names = sorted(path.name.removesuffix(".json") for path in self.folder.glob("*.json"))
        found = (self.find(name) for name in names)
        return [image for image in found if image is not None]

    def find(self, reference: str) -> Image | None:
        """The image of that name, tag or digest, or None when it is not built or a part of it is missing."""
        named = Reference.parse(reference)
        if named is None:
            return None
        return self._by_digest(named.digest) if named.digest else self._read(self.folder / f"{named.name}.json")

    def of_job(self, name: str, digest: str | None) -> Image:
        """What a job's image stood for when the job was submitted; what it stands for where that was never built.

        Raises UnknownImage.
        """
        image = self._by_digest(digest) if digest else None
        return image or self.get(name)

    def _by_digest(self, digest: str) -> Image | None:
        found = [*self.manifests.glob(f"{digest}*.json")]
        if len(found) == 1:
            return self._read(found[0])
        # Built by a belljar that kept manifests by name alone.
        named = (image for image in self.list() if image.manifest.digest.startswith(digest))
        return next(named, None)

    def _read(self, path: Path) -> Image | None:
        try:
            manifest = self._manifest(path)
        except (FileNotFoundError, ValidationError):
            return None
        image = self.image(manifest)
        whole = all(part.is_file() for part in (image.kernel, image.initramfs, image.root))
        return image if whole else None

    def _manifest(self, path: Path) -> Manifest:
        status = path.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        seen = self._seen.get(path)
        if seen is None or seen[0] != stamp:
            seen = self._seen[path] = stamp, Manifest.model_validate_json(path.read_text())
        return seen[1]

    def image(self, manifest: Manifest) -> Image:
        """The manifest with the places of its parts."""
        return Image(
            manifest=manifest,
            kernel=self.parts / manifest.kernel.sha256,
            initramfs=self.parts / manifest.initramfs.sha256,
            root=self.parts / manifest.root.sha256,
        )

    def digests(self) -> set[str]:
        """The digests of all whole images, whether a name stands for them or not."""
        without_name = (self._read(path) for path in self.manifests.glob("[!.]*.json"))
        return {image.manifest.digest for image in (*self.list(), *without_name) if image is not None}

    def get(self, name: str) -> Image:
        """The image of that name, tag or digest. Raises UnknownImage: how to build it, or which there are."""
        image = self.find(name)
        if image is not None:
            return image
        built = ", ".join(each.name for each in self.list()) or "none"
        if name in recipes(self.data_dir):
            raise UnknownImage(
                f"the image {name} is not built here; run: belljar image build {name} (or choose one that is built "
                f"with `image`: {built})",
                option="image",
            )
        raise UnknownImage(f"there is no image {name!r} here; built are: {built}", option="image")

    def register(self, manifest: Manifest) -> Image:
        """From this moment on the image is there, and its name stands for it."""
        self.manifests.mkdir(parents=True, exist_ok=True)
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
        for path in (self.manifests / f"{manifest.digest}.json", self.folder / f"{manifest.name}.json"):
            atomic_write(path, text)
        return self.image(manifest)

    def tag(self, reference: str, name: str) -> Image:
        """Give an image one more name, NAME or NAME:TAG. Raises UnknownImage, InvalidOption."""
        named = Reference.parse(name)
        if named is None or named.digest or named.name is None:
            raise InvalidOption(f"{name!r} is no name for an image; give NAME or NAME:TAG", option="name")
        return self.register(self.get(reference).manifest.model_copy(update={"name": named.name}))

    def remove(self, name: str, needed: Collection[str] = ()) -> None:
        """Forget a name, and delete what no other name and no job needs. Raises UnknownImage, InvalidOption.

        `needed` are the digests of the images of jobs that have not ended.
        """
        self.get(name)
        named = Reference.parse(name)
        assert named is not None
        if named.digest:
            raise InvalidOption("give the name or tag that is to be removed, not a digest", option="name")
        try:
            (self.folder / f"{named.name}.json").unlink()
            self.collect(needed)
        except OSError as error:
            reason = f"cannot remove from {self.folder}: {error.strerror}; do it as its owner, or set --data-dir"
            raise DataFolderError(reason) from error

    def unnamed(self) -> tuple[Manifest, ...]:
        """Images that no name stands for any more."""
        named = {image.manifest.digest for image in self.list()}
        return tuple(manifest for manifest in self._manifests() if manifest.digest not in named)

    def collect(self, needed: Collection[str] = ()) -> int:
        """Delete the images without a name that are not `needed`, and parts that nothing names; returns their bytes.

        While an image is built, nothing is deleted: what has been made of it has no name yet.
        """
        with self.no_build_meanwhile() as may_delete:
            return self._collect(needed) if may_delete else 0

    def _collect(self, needed: Collection[str]) -> int:
        for manifest in self.unnamed():
            if manifest.digest not in needed:
                (self.manifests / f"{manifest.digest}.json").unlink(missing_ok=True)
        named = [image.manifest for image in self.list()]
        return self.collect_parts(part.sha256 for each in (*named, *self._manifests()) for part in each.parts)

    def _manifests(self) -> Iterable[Manifest]:
        for path in sorted(self.manifests.glob("[!.]*.json")):
            with contextlib.suppress(ValidationError, FileNotFoundError):
                yield Manifest.model_validate_json(path.read_text())

    def verify(self, image: Image) -> None:
        """Raises DamagedImage when a part is not what the manifest says. Reads again only what has changed."""
        for part, path in zip(image.manifest.parts, (image.kernel, image.initramfs, image.root), strict=True):
            self.verify_part(path, part.sha256, image.name)

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
        """Name of the image that scripts of a language run in unless another is asked for, built or not.

        What a recipe says does not change with what is built. A language of no recipe runs in the image that has it.
        Raises UnknownImage when several have, UnknownLanguage, naming those that are known.
        """
        default = default_image(language, self.data_dir)
        if default is not None:
            return default
        runs = {image.manifest.digest: image.name for image in self.list() if image.language(language) is not None}
        if len(runs) > 1:
            names = ", ".join(sorted(runs.values()))
            raise UnknownImage(f"several images here run {language}: {names}; choose one with `image`", option="image")
        if runs:
            return next(iter(runs.values()))
        names = ", ".join(each.name for each in self.languages())
        raise UnknownLanguage(f"no image here runs {language!r}; known languages: {names}", option="language")


def check_image_name(name: str) -> str:
    """The name, if an image may have it. Raises InvalidOption."""
    if not IMAGE_NAME.match(name):
        raise InvalidOption(
            f"{name[:80]!r} is no name for an image; use lower-case letters, digits and . _ -, at most 63",
            option="name",
        )
    return name


def summary(image: Image, snapshots: Iterable[Mapping[str, object]] = ()) -> dict[str, object]:
    """An image as the API and `image ls --json` show it: its manifest, with what people ask for first.

    `snapshots` are those that are known; those of other images are left out.
    """
    manifest = image.manifest
    shown = manifest.model_dump(mode="json")
    for language in shown["languages"]:
        language["version"] = manifest.versions.get(language["name"], "")
    return shown | {
        "size_bytes": manifest.size_bytes,
        "snapshots": [each for each in snapshots if each.get("digest") == manifest.digest],
    }


def write_manifest(images: Images, manifest: Manifest) -> Image:
    """Register an image: from this moment on it is there."""
    return images.register(manifest)
