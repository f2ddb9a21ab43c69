"""A root filesystem that is built from a recipe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from belljar.images.build_context import BuildContext
from belljar.images.prefork_programs import rootfs_programs
from belljar.images.recipe import Recipe
from belljar.images.rootfs import FORMAT, build_rootfs
from belljar.images.rootfs_source import RootfsMetadata
from belljar.settings import Settings


class RecipeRootfs:
    """The root filesystem of a recipe."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        self.name = recipe.name
        self._recipe = recipe
        self._suite = settings.debian_suite

    async def prepare(self, context: BuildContext) -> None:
        """Do nothing: the recipe determines the inputs."""

    def inputs(self) -> list[str]:
        """Return the suite, the recipe's fields for the content, and the format and programs of this version."""
        fields = {"packages", "pip", "npm", "exclude", "files", "prepare"}
        versions = [[language.name, *language.version] for language in self._recipe.languages]
        programs = rootfs_programs(language.prefork for language in self._recipe.languages)
        digests = [hashlib.sha256(text).hexdigest() for text in programs.values()]
        return [self._suite, self._recipe.model_dump_json(include=fields), json.dumps(versions), str(FORMAT), *digests]

    async def is_current(self, metadata: RootfsMetadata, context: BuildContext) -> bool:
        """Return whether Debian has no newer packages; False with pip or npm packages, whose versions are unknown."""
        if self._recipe.pip or self._recipe.npm:
            return False
        return await (await context.debian_archive()).versions(metadata.packages) == metadata.packages

    async def build(self, out: Path, work: Path, context: BuildContext) -> RootfsMetadata:
        """Build the root filesystem with mmdebstrap. Raises MissingTool, DiskFull, ImageBuildError."""
        archive = await context.debian_archive()
        await archive.check(self._recipe.packages)
        context.progress.step(f"building the root filesystem of {self.name} (about 30 s)")
        return await build_rootfs(self._recipe, archive, out, work)

    def origin(self) -> str:
        """Return Debian's suite and the recipe's packages."""
        return f"Debian {self._suite}: {', '.join(self._recipe.packages) or 'essential packages'}"

    def manifest_fields(self, metadata: RootfsMetadata) -> dict[str, Any]:
        """Return the recipe's fields for the manifest."""
        recipe = self._recipe
        digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
        return {
            "description": recipe.description,
            "languages": recipe.languages,
            "env": recipe.env,
            "min_memory_mb": recipe.min_memory_mb,
            "origin": f"recipe sha256:{digest}",
        }
