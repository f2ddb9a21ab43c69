"""The images on this host: manifests by name and by digest, and the files that they refer to.

In the data folder, `images/NAME.json` is the manifest that a name refers to, written last; the same manifest is
`images/manifests/DIGEST.json`, for jobs that were submitted before the name changed; `images/parts/SHA256` are the
files of manifests, shared between images and never changed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from belljar.data_dir import DataDir
from belljar.images.image_blobs import ImageBlobs
from belljar.images.recipe import IMAGE_NAME, default_image, recipes
from belljar.model.errors import DataFolderError, InvalidOption, UnknownImage, UnknownLanguage
from belljar.model.image import Image, Language, Manifest
from belljar.system.atomic_write import atomic_write

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(:[A-Za-z0-9_][A-Za-z0-9._-]{0,62})?\Z")
_DIGEST = re.compile(r"sha256:([0-9a-f]{12,64})\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """NAME or NAME:TAG, optionally with @sha256:DIGEST, or sha256:DIGEST alone; 12 digits of a digest suffice."""

    #: With its tag; the tag `latest` is omitted.
    name: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """Return the reference, None when the text is not one."""
        digest_only = _DIGEST.match(text)
        if digest_only:
            return cls(None, digest_only[1])
        name, at, digest = text.partition("@")
        name_match, digest_match = _NAME.match(name), _DIGEST.match(digest)
        if not name_match or (at and not digest_match):
            return None
        return cls(name.removesuffix(":latest"), digest_match[1] if digest_match else None)


class Images:
    """The images of a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.folder = DataDir(data_dir).images
        self.manifests = self.folder / "manifests"
        self.blobs = ImageBlobs(data_dir)
        #: Parsed manifests with their files' inode, size and mtime, since every job reads them.
        self._parsed: dict[Path, tuple[tuple[int, int, int], Manifest]] = {}

    def list(self) -> list[Image]:
        """Return all complete images that have a name, by name."""
        names = sorted(path.name.removesuffix(".json") for path in self.folder.glob("*.json"))
        images = (self.find(name) for name in names)
        return [image for image in images if image is not None]

    def find(self, reference: str) -> Image | None:
        """Return the image of that name, tag or digest, None when it is not built or incomplete."""
        parsed = Reference.parse(reference)
        if parsed is None:
            return None
        return self._by_digest(parsed.digest) if parsed.digest else self._read(self.folder / f"{parsed.name}.json")

    def get_for_job(self, name: str, digest: str | None) -> Image:
        """Return the image with the digest of the job's submission; on hosts without it, the one of that name.

        Raises UnknownImage.
        """
        image = self._by_digest(digest) if digest else None
        return image or self.get(name)

    def _by_digest(self, digest: str) -> Image | None:
        paths = [*self.manifests.glob(f"{digest}*.json")]
        if len(paths) == 1:
            return self._read(paths[0])
        # Older versions of belljar kept manifests by name only.
        named = (image for image in self.list() if image.manifest.digest.startswith(digest))
        return next(named, None)

    def _read(self, path: Path) -> Image | None:
        try:
            manifest = self._manifest(path)
        except (FileNotFoundError, ValidationError):
            return None
        image = self.image(manifest)
        complete = all(path.is_file() for path in (image.kernel, image.initramfs, image.root))
        return image if complete else None

    def _manifest(self, path: Path) -> Manifest:
        status = path.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        parsed = self._parsed.get(path)
        if parsed is None or parsed[0] != stamp:
            parsed = self._parsed[path] = stamp, Manifest.model_validate_json(path.read_text())
        return parsed[1]

    def image(self, manifest: Manifest) -> Image:
        """Return the image of a manifest, with the paths of its files."""
        folder = self.blobs.folder
        return Image(
            manifest=manifest,
            kernel=folder / manifest.kernel.sha256,
            initramfs=folder / manifest.initramfs.sha256,
            root=folder / manifest.root.sha256,
        )

    def registered_at(self, name: str) -> datetime | None:
        """Return when the name was given to its image: its build, import or tag. None when there is none."""
        try:
            return datetime.fromtimestamp((self.folder / f"{name}.json").stat().st_mtime, UTC)
        except OSError:
            return None

    def digests(self) -> set[str]:
        """Return the digests of all complete images, with and without a name."""
        without_name = (self._read(path) for path in self.manifests.glob("[!.]*.json"))
        return {image.manifest.digest for image in (*self.list(), *without_name) if image is not None}

    def get(self, name: str) -> Image:
        """Return the image of that name, tag or digest. Raises UnknownImage with the command that builds it."""
        image = self.find(name)
        if image is not None:
            return image
        built = ", ".join(image.name for image in self.list())
        if name in recipes(self.data_dir):
            other = f" (or choose a built one with `image`: {built})" if built else ""
            raise UnknownImage(
                f"the image {name} is not built here; run: belljar image build {name}{other}", option="image"
            )
        choice = (
            f"built images: {built}"
            if built
            else "none is built yet; build one, for example: belljar image build python"
        )
        raise UnknownImage(f"there is no image {name!r} here; {choice}", option="image")

    def register(self, manifest: Manifest) -> Image:
        """Add the image, and make its name refer to it. Raises OSError."""
        self.manifests.mkdir(parents=True, exist_ok=True)
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
        for path in (self.manifests / f"{manifest.digest}.json", self.folder / f"{manifest.name}.json"):
            atomic_write(path, text)
        return self.image(manifest)

    def tag(self, reference: str, name: str) -> Image:
        """Give an image another name, NAME or NAME:TAG. Raises UnknownImage, InvalidOption."""
        parsed = Reference.parse(name)
        if parsed is None or parsed.digest or parsed.name is None:
            raise InvalidOption(f"{name!r} is not a valid image name; give NAME or NAME:TAG", option="name")
        return self.register(self.get(reference).manifest.model_copy(update={"name": parsed.name}))

    def remove(self, name: str, needed: Collection[str] = ()) -> None:
        """Remove a name, and delete the files that no other name and no job needs.

        `needed` are the digests of the images of jobs that have not ended.

        Raises UnknownImage, InvalidOption, DataFolderError.
        """
        self.get(name)
        parsed = Reference.parse(name)
        assert parsed is not None
        if parsed.digest:
            raise InvalidOption("give the name or tag to remove, not a digest", option="name")
        try:
            (self.folder / f"{parsed.name}.json").unlink()
            self.collect(needed)
        except OSError as error:
            message = f"cannot remove from {self.folder}: {error.strerror}; do it as its owner, or set --data-dir"
            raise DataFolderError(message) from error

    def unnamed(self) -> tuple[Manifest, ...]:
        """Return the manifests that no name refers to."""
        named = {image.manifest.digest for image in self.list()}
        return tuple(manifest for manifest in self._manifests() if manifest.digest not in named)

    def collect(self, needed: Collection[str] = ()) -> int:
        """Delete the images without a name that are not `needed`, and unused files; return the bytes of those.

        Nothing is deleted during a build, whose files no manifest refers to yet.
        """
        with self.blobs.exclude_builds() as may_delete:
            return self._collect(needed) if may_delete else 0

    def _collect(self, needed: Collection[str]) -> int:
        for manifest in self.unnamed():
            if manifest.digest not in needed:
                (self.manifests / f"{manifest.digest}.json").unlink(missing_ok=True)
        named = [image.manifest for image in self.list()]
        return self.blobs.delete_unused(part.sha256 for each in (*named, *self._manifests()) for part in each.parts)

    def _manifests(self) -> Iterable[Manifest]:
        for path in sorted(self.manifests.glob("[!.]*.json")):
            with contextlib.suppress(ValidationError, FileNotFoundError):
                yield Manifest.model_validate_json(path.read_text())

    def verify(self, image: Image) -> None:
        """Raise DamagedImage when a file does not have the manifest's digest. Only changed files are read again."""
        for part, path in zip(image.manifest.parts, (image.kernel, image.initramfs, image.root), strict=True):
            self.blobs.verify(path, part.sha256, image.name)

    def languages(self) -> tuple[Language, ...]:
        """Return the languages of all images and recipes, each once."""
        known: dict[str, Language] = {}
        for image in self.list():
            for language in image.manifest.languages:
                known.setdefault(language.name, language)
        for recipe in recipes(self.data_dir).values():
            for language in recipe.languages:
                known.setdefault(language.name, language)
        return tuple(known.values())

    def image_for(self, language: str) -> str:
        """Return the name of the language's default image, built or not.

        It is the one that the recipes define, whatever is built; a language of no recipe runs in the only image that
        has it.

        Raises UnknownImage when several have it, UnknownLanguage with the known ones.
        """
        default = default_image(language, self.data_dir)
        if default is not None:
            return default
        named = {image.manifest.digest: image.name for image in self.list() if image.language(language) is not None}
        if len(named) > 1:
            names = ", ".join(sorted(named.values()))
            raise UnknownImage(f"several images here run {language}: {names}; choose one with `image`", option="image")
        if named:
            return next(iter(named.values()))
        names = ", ".join(each.name for each in self.languages())
        raise UnknownLanguage(f"no image here runs {language!r}; known languages: {names}", option="language")


def check_image_name(name: str) -> str:
    """Return the name when it is valid for an image. Raises InvalidOption."""
    if not IMAGE_NAME.match(name):
        raise InvalidOption(
            f"{name[:80]!r} is not a valid image name; use lower-case letters, digits and . _ -, at most 63",
            option="name",
        )
    return name


def summary(image: Image, snapshots: Iterable[Mapping[str, object]] = ()) -> dict[str, object]:
    """Return an image for the API and `image ls --json`: its manifest with languages' versions, size and snapshots.

    `snapshots` may include those of other images, which are omitted.
    """
    manifest = image.manifest
    shown = manifest.model_dump(mode="json")
    for language in shown["languages"]:
        language["version"] = manifest.versions.get(language["name"], "")
    return shown | {
        "size_bytes": manifest.size_bytes,
        "snapshots": [each for each in snapshots if each.get("digest") == manifest.digest],
    }
