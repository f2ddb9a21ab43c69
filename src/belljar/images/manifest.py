"""What an image is: a kernel, an initramfs with the agent, a root filesystem, and how its languages are run.

The manifest is a JSON file; every part is named by its sha256 and lies in a folder of parts that images share. An
`Image` is a manifest whose parts are there.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Language(Value):
    """How an image runs a script of one language."""

    name: str
    #: File name endings that tell the language, each with its dot.
    extensions: tuple[str, ...] = ()
    #: Interpreter names in a `#!` line that tell the language (`python3`, `bash`).
    interpreters: tuple[str, ...] = ()
    #: Names of an archive's entrypoint, in the order they are looked for.
    entrypoints: tuple[str, ...] = ()
    #: The command, of which the element `{entrypoint}` is replaced by the entrypoint's path in the machine.
    run: tuple[str, ...]
    #: A command that prints the language's version.
    version: tuple[str, ...] = ()
    #: The program in the initramfs that waits in a snapshot to become a script of this language; None: none does.
    prefork: str | None = None
    #: The text of a script that touches what scripts of this language touch: run in a snapshot's clones before they are
    #: given to jobs. None: none is.
    rehearsal: str | None = None


class Part(Value):
    """One file of an image, addressed by its content."""

    sha256: str
    size_bytes: int
    #: Where it came from, for people: a package and its version, a recipe.
    origin: str


class Manifest(Value):
    """Everything a machine needs to boot, by digest. The same inputs give the same manifest."""

    format: int = 1
    name: str
    architecture: str
    #: sha256 over the manifest's other fields.
    digest: str
    description: str = ""
    kernel: Part
    initramfs: Part
    root: Part
    languages: tuple[Language, ...]
    env: dict[str, str] = Field(default_factory=dict)
    #: Packages in the root filesystem, name → version.
    packages: dict[str, str] = Field(default_factory=dict)


class Image(Value):
    """A manifest whose parts lie at these paths on this host."""

    manifest: Manifest
    kernel: Path
    initramfs: Path
    root: Path

    @property
    def name(self) -> str:
        return self.manifest.name

    def language(self, name: str) -> Language | None:
        return next((language for language in self.manifest.languages if language.name == name), None)
