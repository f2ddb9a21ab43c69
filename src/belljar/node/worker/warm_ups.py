"""The warm-up of an image's machines before there is a job: commands for the languages of its manifest."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

from belljar.images.prefork_programs import prefork_command
from belljar.model.image import Image, Language
from belljar.node.guest.command import Command
from belljar.node.machines.provision.warm_up import WarmUp
from belljar.node.worker.plan import command_for, default_env
from belljar.scripts.pack import pack_tree
from belljar.settings import Settings
from belljar.system.host_errors import host_errors
from belljar.system.temp_folders import temp_folder


class WarmUps:
    """Makes the warm-up of each image once, with its disk in the data folder's cache."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[str, WarmUp] = {}
        self._making = asyncio.Lock()

    async def of(self, image: Image) -> WarmUp:
        """Return the commands for this image's templates and clones. Raises MissingTool, DiskFull, HostError."""
        digest = image.manifest.digest
        async with self._making:
            if digest not in self._made:
                self._made[digest] = await self._make(image)
            return self._made[digest]

    async def _make(self, image: Image) -> WarmUp:
        scripts = _scripts(image)
        commands = tuple(command_for(image, language, name, (), {}, self._settings) for name, language, _ in scripts)
        return WarmUp(
            disk=await self._disk({name: text for name, _, text in scripts}),
            preload_commands=tuple(replace(command, prefork="") for command in commands),
            waiting_commands=self._waiting(image),
            warm_up_commands=tuple(command for command in commands if command.prefork) or commands[:1],
            session_commands=self._session(image),
        )

    def _waiting(self, image: Image) -> tuple[Command, ...]:
        """Return the prefork programs, and the waiting processes that run any command of the other languages."""
        env, user = default_env(image.manifest), image.manifest.user
        languages = image.manifest.languages
        preforks = {language.prefork: language for language in languages if language.prefork}
        max_processes = self._settings.max_processes
        waiting = tuple(
            Command(
                argv=prefork_command(name, language.run), env=env, cwd="/", max_processes=max_processes, prefork=name
            )
            for name, language in preforks.items()
        )
        if len(preforks) == len(languages):
            return waiting
        command = Command(argv=[], env=env, cwd="/", uid=user.uid, gid=user.gid, max_processes=max_processes)
        return (*waiting, command)

    def _session(self, image: Image) -> tuple[Command, ...]:
        """Return a program that is started in the clones for sandboxes; none in an image that may not have it."""
        if "dash" not in image.manifest.packages:
            return ()
        user, max_processes = image.manifest.user, self._settings.max_processes
        argv, env = ["/bin/sh", "-c", "/bin/true"], default_env(image.manifest)
        return (Command(argv=argv, env=env, cwd="/", uid=user.uid, gid=user.gid, max_processes=max_processes),)

    async def _disk(self, files: dict[str, str]) -> Path:
        digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:32]
        path = self._settings.paths.warm_up_cache / f"{digest}.erofs"
        if not path.exists():
            with host_errors("write the disk of the image's warm-up"), temp_folder(path.parent / "making") as folder:
                tree = folder / "tree"
                tree.mkdir()
                for name, text in files.items():
                    (tree / name).write_text(text)
                await pack_tree(tree, folder / "disk")
                (folder / "disk").replace(path)
        return path


def _scripts(image: Image) -> list[tuple[str, Language, str]]:
    """Return file name, language and text of a script of each language.

    Languages with a prefork program come first: most jobs use one.
    """
    languages = sorted(image.manifest.languages, key=lambda each: each.prefork is None)
    return [
        (f"hello{number}{language.extensions[0] if language.extensions else ''}", language, language.hello)
        for number, language in enumerate(languages)
        if language.hello and not language.compile
    ]
