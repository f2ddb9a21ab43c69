"""What is known of a root filesystem that was made: kept beside it, since the file itself is opaque."""

from __future__ import annotations

from pydantic import Field

from belljar.model.image import Language, User
from belljar.model.value import Value


class RootfsMetadata(Value):
    """What is in a root filesystem."""

    #: Debian packages, name → version.
    packages: dict[str, str] = Field(default_factory=dict)
    #: Other packages by their type in package URLs: pypi, npm, apk.
    other_packages: dict[str, dict[str, str]] = Field(default_factory=dict)
    #: Language → what its tools say that their version is.
    versions: dict[str, str] = Field(default_factory=dict)
    #: What a container image turned out to run, and who runs it there.
    languages: tuple[Language, ...] = ()
    user: User = User()
