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
    #: Other names that a caller may use.
    aliases: tuple[str, ...] = ()
    #: File name endings that tell the language, each with its dot.
    extensions: tuple[str, ...] = ()
    #: Interpreter names in a `#!` line that tell the language (`python3`, `bash`).
    interpreters: tuple[str, ...] = ()
    #: Names of an archive's entrypoint, in the order they are looked for.
    entrypoints: tuple[str, ...] = ()
    #: The command that runs a script. In every word `{entrypoint}` stands for the entrypoint's path in the machine,
    #: `{folder}` for its folder, `{stem}` for its name without an ending, `{output}` for what was compiled.
    run: tuple[str, ...]
    #: Arguments for a job that gives none.
    default_args: tuple[str, ...] = ()
    #: A command that runs before, in the same machine; all it says is the job's stderr, and unless it exits with 0 the
    #: job has failed.
    compile: tuple[str, ...] = ()
    #: The two commands in images that others made, which lack what the recipe lays into its own; empty: the same.
    plain_run: tuple[str, ...] = ()
    plain_compile: tuple[str, ...] = ()
    #: A command that prints the language's version.
    version: tuple[str, ...] = ()
    #: The program in the initramfs that waits in a snapshot to become a script of this language; None: none does.
    prefork: str | None = None
    #: The least memory that its tools get along with; a job's default where that is less.
    memory_mb: int | None = Field(default=None, ge=64)
    #: The memory of the smallest machine that its first program runs in; a job that asks for less is refused.
    min_memory_mb: int = Field(default=64, ge=64)
    #: A first program: prints `Hello from NAME!`. It is also what a snapshot's clones rehearse before they get a job.
    hello: str = ""


class Part(Value):
    """One file of an image, addressed by its content."""

    sha256: str
    size_bytes: int
    #: Where it came from, for people: a package and its version, a recipe.
    origin: str


class User(Value):
    """A user and group in the machine."""

    uid: int = Field(default=1000, ge=0, le=0x7FFFFFFF)
    gid: int = Field(default=1000, ge=0, le=0x7FFFFFFF)


class Manifest(Value):
    """Everything a machine needs to boot, by digest. The same inputs give the same manifest."""

    format: int = 1
    name: str
    architecture: str
    #: sha256 over the manifest's other fields, less the name.
    digest: str
    description: str = ""
    kernel: Part
    initramfs: Part
    root: Part
    languages: tuple[Language, ...]
    #: A machine with less memory cannot start a program of the smallest of its languages.
    min_memory_mb: int = Field(default=64, ge=64)
    env: dict[str, str] = Field(default_factory=dict)
    #: Debian packages in the root filesystem, name → version.
    packages: dict[str, str] = Field(default_factory=dict)
    #: Other packages in it, by the type that package URLs have for them (pypi, npm, apk): name → version.
    other_packages: dict[str, dict[str, str]] = Field(default_factory=dict)
    #: What each language's tools say that their version is, asked when the image was built.
    versions: dict[str, str] = Field(default_factory=dict)
    #: What it was made from, for people: a recipe's digest, an OCI image's.
    origin: str = ""
    #: Who runs the script, and where; a folder below which the script's files do not lie is the image's own.
    user: User = User()
    working_folder: str | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.kernel, self.initramfs, self.root

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


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
