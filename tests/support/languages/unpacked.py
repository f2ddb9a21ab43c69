"""The root file systems of images, unpacked, and programs that run in them without a machine: quickly."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from belljar.images.catalog import Images
from belljar.model.image import Image
from belljar.node.worker.plan import command_for, compile_command
from belljar.settings import Settings
from support.built_images import BuiltImages


class UnpackedImages:
    """The images of a run, each unpacked when it is first asked for."""

    def __init__(self, images: BuiltImages) -> None:
        self._images = images

    def __getitem__(self, name: str) -> Unpacked:
        return Unpacked(Images(self._images.need(name)).get(name), self._images.unpack(name))


@dataclass(frozen=True)
class Unpacked:
    """An image's root file system in a folder."""

    image: Image
    root: Path

    def run(
        self, files: Mapping[str, str], language: str, entrypoint: str, work: Path, *args: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Compile and run a script as a job would be; of a script that does not compile, the compiler's end."""
        for path, text in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text)
        spoken = self.image.language(language)
        assert spoken is not None
        command = command_for(self.image, spoken, entrypoint, args, {}, Settings())
        steps = [command.argv]
        compiler = compile_command(spoken, entrypoint, command)
        if compiler is not None:
            steps.insert(0, compiler.argv)
        tmp = work.with_name(f"{work.name}.tmp")
        tmp.mkdir()
        for step in steps:
            done = self._run(step, command.env, work, tmp, stdin)
            if done.returncode != 0:
                break
        return done

    def _run(
        self, argv: Sequence[str], env: Mapping[str, str], work: Path, tmp: Path, stdin: bytes
    ) -> subprocess.CompletedProcess[bytes]:
        place = ["--bind", str(self.root), "/", "--bind", str(work), "/work", "--bind", str(tmp), "/tmp"]
        place += ["--dev", "/dev", "--proc", "/proc", "--unshare-pid", "--die-with-parent", "--chdir", "/work"]
        words = [word for name, value in env.items() for word in ("--setenv", name, value)]
        # The shell is the first process there, which does not die of signals, and passes on how the program ended.
        shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
        return subprocess.run(
            ["bwrap", *place, "--clearenv", *words, *shell, *argv],
            capture_output=True,
            timeout=240,
            input=stdin,
            env={"PATH": os.environ["PATH"]},
        )
