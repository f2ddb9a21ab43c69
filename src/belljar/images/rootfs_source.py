"""The interface of root filesystems that images are built from, and the metadata that is kept beside each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from belljar.images.build_context import BuildContext
from belljar.model.image import Language, User
from belljar.model.value import Value


class RootfsMetadata(Value):
    """The content of a root filesystem, recorded when it was built."""

    #: Debian packages, name → version.
    packages: dict[str, str] = Field(default_factory=dict)
    #: Other packages by their type in package URLs: pypi, npm, apk.
    other_packages: dict[str, dict[str, str]] = Field(default_factory=dict)
    #: Language → the version that its tools print.
    versions: dict[str, str] = Field(default_factory=dict)
    #: The languages and the user of a container image.
    languages: tuple[Language, ...] = ()
    user: User = User()


class RootfsSource(Protocol):
    """Builds a root filesystem: from a recipe or from a container image."""

    #: Name of the image to build.
    name: str

    async def prepare(self, context: BuildContext) -> None:
        """Do what must precede `inputs`, such as fetching. Raises HostError, InvalidImage."""
        ...

    def inputs(self) -> list[str]:
        """Return the values that determine the root filesystem: equal inputs give an equal one."""
        ...

    async def is_current(self, metadata: RootfsMetadata, context: BuildContext) -> bool:
        """Return whether a rebuild would give a root filesystem with this metadata."""
        ...

    async def build(self, out: Path, work: Path, context: BuildContext) -> RootfsMetadata:
        """Build it into the file `out`; `work` is an empty folder. Raises HostError, InvalidImage."""
        ...

    def origin(self) -> str:
        """Return where it comes from, for people."""
        ...

    def manifest_fields(self, metadata: RootfsMetadata) -> dict[str, Any]:
        """Return the manifest fields that depend on the source: description, languages, env, user and so on."""
        ...
