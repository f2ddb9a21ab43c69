"""The image as a value: kernel, initramfs with the agent, root filesystem, and the commands of its languages.

The manifest is a JSON file. Parts are named by their sha256, in a folder that images share. An `Image` is a manifest
whose parts exist.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from belljar.model.value import Value


class Language(Value):
    """How an image runs a script of one language."""

    name: str
    #: Other names that a caller may use.
    aliases: tuple[str, ...] = ()
    #: File extensions of the language, each with its dot.
    extensions: tuple[str, ...] = ()
    #: Interpreter names in a `#!` line (`python3`, `bash`).
    interpreters: tuple[str, ...] = ()
    #: Names of an archive's entrypoint, in the order of preference.
    entrypoints: tuple[str, ...] = ()
    #: The command that runs a script. In each argument `{entrypoint}` stands for the entrypoint's path in the machine,
    #: `{folder}` for its folder, `{stem}` for its name without extension, `{output}` for the compiled program.
    run: tuple[str, ...]
    #: Arguments for a job without any.
    default_args: tuple[str, ...] = ()
    #: A command that runs before, in the same machine. Its output is the job's stderr; the job fails unless it exits
    #: with 0.
    compile: tuple[str, ...] = ()
    #: The two commands for imported images, which lack the files that recipes add to their own; empty: the same.
    plain_run: tuple[str, ...] = ()
    plain_compile: tuple[str, ...] = ()
    #: A command that prints the language's version.
    version: tuple[str, ...] = ()
    #: The program in the initramfs that waits in a snapshot and then runs a script of this language; None: none.
    prefork: str | None = None
    #: The memory that its tools need; the default of its jobs unless the setting's default is larger.
    memory_mb: int | None = Field(default=None, ge=64)
    #: The memory of the smallest machine that runs its first program; a job with less is refused.
    min_memory_mb: int = Field(default=64, ge=64)
    #: A first program: prints `Hello from NAME!`. A snapshot is warmed up with it before clones are made.
    hello: str = ""


class Part(Value):
    """One file of an image, addressed by its content."""

    sha256: str
    size_bytes: int
    #: The origin for display: a package and its version, a recipe.
    origin: str


class KernelOrigin(Value):
    """Where an image's kernel comes from."""

    #: stock, backports, custom, or file for a kernel of the user's.
    source: str
    #: The kernel's release, such as 6.1.0-56-cloud-amd64.
    version: str = ""
    #: The sha256 of the user's file, before its ELF image was taken out of it.
    file_sha256: str | None = None


class User(Value):
    """A user and group in the machine."""

    uid: int = Field(default=1000, ge=0, le=0x7FFFFFFF)
    gid: int = Field(default=1000, ge=0, le=0x7FFFFFFF)


class Manifest(Value):
    """Everything that a machine needs to boot, by digest. The same inputs give the same manifest."""

    format: int = 1
    name: str
    architecture: str
    #: sha256 over the manifest's other fields, without the name.
    digest: str
    description: str = ""
    kernel: Part
    #: None in images of older versions of belljar.
    kernel_origin: KernelOrigin | None = None
    initramfs: Part
    root: Part
    languages: tuple[Language, ...]
    #: The memory that the smallest of its languages needs.
    min_memory_mb: int = Field(default=64, ge=64)
    env: dict[str, str] = Field(default_factory=dict)
    #: Debian packages in the root filesystem, name → version.
    packages: dict[str, str] = Field(default_factory=dict)
    #: Other packages, by the type of their package URL (pypi, npm, apk): name → version.
    other_packages: dict[str, dict[str, str]] = Field(default_factory=dict)
    #: The version of each language, as printed by its tools when the image was built.
    versions: dict[str, str] = Field(default_factory=dict)
    #: The source for display: the digest of a recipe or of an OCI image.
    origin: str = ""
    #: The user and working folder of scripts; a folder outside of the script's files is the image's own.
    user: User = User()
    working_folder: str | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts in the order kernel, initramfs, root."""
        return self.kernel, self.initramfs, self.root

    @property
    def size_bytes(self) -> int:
        """Return the size of all parts."""
        return sum(part.size_bytes for part in self.parts)


class Image(Value):
    """A manifest and the paths of its parts on this host."""

    manifest: Manifest
    kernel: Path
    initramfs: Path
    root: Path

    @property
    def name(self) -> str:
        """Return the manifest's name."""
        return self.manifest.name

    def language(self, name: str) -> Language | None:
        """Return the language of that name; None when the image does not have it."""
        return next((language for language in self.manifest.languages if language.name == name), None)
