"""A script that a waiting Node.js or Ruby became cannot tell it from `node script.js`: the same program both ways.

The agent, its prefork programs and the image's own root file system, without a machine: only so is it quick enough to
look at this much.
"""

from __future__ import annotations

import asyncio
import platform
import re
import socket
import subprocess
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from belljar.images.agent_binary import agent_binary
from belljar.images.prefork_programs import prefork_command, supports_env
from belljar.images.recipe import recipes
from belljar.node.guest.command import Command
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.wire import Exited
from support.conversation import PREFORK, Collector
from support.languages.behaviours import NODE, NODE_MODULES, RUBY
from support.languages.unpacked import UnpackedImages

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/work", "LANG": "C.UTF-8"}
ENV |= recipes(Path("/nonexistent"))["scripting"].env
NEIGHBOURS = {
    "neighbour.js": "module.exports = 'next door';\n",
    "neighbour.json": '{"name": "a table"}\n',
    "neighbour.mjs": "export default 'a module next door';\n",
    "neighbour.rb": "NAME = 'next door' unless defined?(NAME)\nputs __FILE__, __dir__, caller.size\n",
}
Seen = tuple[object, ...]


@pytest.fixture(scope="session")
def root(unpacked: UnpackedImages) -> Path:
    """The root file system of the image `scripting`, unpacked, with room for the agent."""
    folder = unpacked["scripting"].root
    (folder / "agent").touch()
    (folder / "prefork").mkdir(exist_ok=True)
    return folder


@dataclass
class Jar:
    """The agent in that root, with a working folder that outlives it."""

    root: Path
    work: Path

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AgentConnection]:
        ours, theirs = socket.socketpair()
        place = ["--bind", str(self.root), "/", "--bind", str(self.work), "/work", "--dev", "/dev", "--proc", "/proc"]
        place += ["--ro-bind", str(agent_binary(platform.machine())), "/agent", "--ro-bind", str(PREFORK), "/prefork"]
        process = subprocess.Popen(
            ["bwrap", *place, "--tmpfs", "/tmp", "--unshare-pid", "--die-with-parent", "/agent", "--fd",
             str(theirs.fileno()), "/prefork"],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        try:
            connection = AgentConnection(reader, writer)
            await connection.open(20)
            yield connection
        finally:
            writer.close()
            try:
                _, stderr = await asyncio.to_thread(process.communicate, timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert stderr == b"", stderr.decode()

    async def run(self, words: list[str], *, waits: bool, env: dict[str, str] | None = None) -> Seen:
        """What a user would see of `words` (`node /work/script.js one`), less what differs between processes."""
        async with self.connection() as connection:
            started = prefork_command(words[0], [words[0], "{entrypoint}"])
            if waits:
                prepared = Command(argv=started, env=ENV, cwd="/", isolated=False, prefork=words[0])
                await connection.prepare(prepared)
            command = Command(
                argv=words,
                env=ENV | {"MODE": "fast", "TZ": "EST5EDT"} | (env or {}),
                isolated=False,
                prefork=words[0] if waits else "",
            )
            sink = Collector()
            async with asyncio.timeout(60):
                exited = await connection.run(command, "stdin é\n".encode(), sink, lambda _: None)
        return seen(exited, sink)


def seen(exited: Exited, sink: Collector) -> Seen:
    output = (re.sub(rb"0x[0-9a-f]+|\(node:\d+\)", b"~", text) for text in (sink.stdout, sink.stderr))
    return exited.exit_code, exited.signal, *output


@pytest.fixture
def jar(root: Path, tmp_path: Path) -> Jar:
    work = tmp_path / "work"
    work.mkdir()
    for name, text in NEIGHBOURS.items():
        (work / name).write_text(text)
    return Jar(root, work)


async def both(jar: Jar, language: str, name: str, text: str) -> tuple[Seen, Seen]:
    (jar.work / name).write_text(textwrap.dedent(text))
    words = [language, f"/work/{name}", "one", "tw o"]
    return await jar.run(words, waits=False), await jar.run(words, waits=True)


@pytest.mark.parametrize("behaviour", NODE)
async def test_a_node_script_sees_what_it_sees_in_a_fresh_interpreter(behaviour: str, jar: Jar) -> None:
    fresh, waited = await both(jar, "node", "script.js", NODE[behaviour])
    assert waited == fresh
    assert any(fresh), "the behaviour shows nothing"


@pytest.mark.parametrize("behaviour", NODE_MODULES)
async def test_a_node_module_does_too(behaviour: str, jar: Jar) -> None:
    fresh, waited = await both(jar, "node", "script.mjs", NODE_MODULES[behaviour])
    assert waited == fresh
    assert any(fresh)


async def test_a_folder_of_modules_is_one(jar: Jar) -> None:
    (jar.work / "package.json").write_text('{"type": "module"}')
    fresh, waited = await both(jar, "node", "script.js", "console.log(import.meta.url, typeof require);")
    assert waited == fresh and b"file:///work/script.js undefined" in fresh[2]  # type: ignore[operator]


@pytest.mark.parametrize("behaviour", RUBY)
async def test_a_ruby_script_sees_what_it_sees_in_a_fresh_interpreter(behaviour: str, jar: Jar) -> None:
    fresh, waited = await both(jar, "ruby", "script.rb", RUBY[behaviour])
    assert waited == fresh
    assert any(fresh) or behaviour == "an empty script"


@pytest.mark.parametrize("name", ["a.rb", "a name with spaces é.rb", "folder/" + "x" * 200 + ".rb"])
async def test_a_ruby_script_may_have_any_name(name: str, jar: Jar) -> None:
    (jar.work / "folder").mkdir()
    fresh, waited = await both(jar, "ruby", name, "p __FILE__, $0, DATA.path, 'x'.encoding\nnil.foo\n__END__\n")
    assert waited == fresh and fresh[0] == 1


async def test_the_interpreter_that_waited_is_the_one_that_runs(jar: Jar) -> None:
    """The comparisons above mean something: the second of each pair did not start an interpreter of its own."""
    (jar.work / "script.js").write_text("console.log(require('vm').createContext.toString().includes('native code'));")
    (jar.work / "script.rb").write_text("puts File.read('/proc/self/environ').include?('MODE=')")
    for words, answers in (
        (["node", "/work/script.js"], [b"false\n", b"true\n"]),
        (["ruby", "/work/script.rb"], [b"true\n", b"false\n"]),
    ):
        assert [(await jar.run(words, waits=waits))[2] for waits in (False, True)] == answers


async def test_what_a_script_printed_before_it_was_killed_is_there(jar: Jar) -> None:
    fresh, waited = await both(jar, "ruby", "script.rb", "print 'part'\nProcess.kill(:KILL, $$)\nsleep 9\n")
    assert waited == fresh and waited[2] == b"part"
    fresh, waited = await both(jar, "node", "script.js", "process.stdout.write('part'); process.kill(process.pid, 9);")
    assert waited == fresh and waited[2] == b"part"


@pytest.mark.parametrize("env", [{"RUBYOPT": "-w"}, {"RUBYLIB": "/opt"}, {"LC_ALL": "C"}, {"HOME": "/other"}])
async def test_settings_that_ruby_reads_at_its_start_are_honoured(env: dict[str, str], jar: Jar) -> None:
    (jar.work / "script.rb").write_text("p $VERBOSE, $LOAD_PATH.first, Encoding.default_external, Dir.home")
    words = ["ruby", "/work/script.rb"]
    assert await jar.run(words, waits=True, env=env) == await jar.run(words, waits=False, env=env)


async def test_gems_of_the_scripts_own_are_found(jar: Jar) -> None:
    (jar.work / "script.rb").write_text("puts Gem.path, File.read('/proc/self/environ').include?('MODE=')")
    (jar.work / ".local/share/gem/ruby/3.1.0").mkdir(parents=True)
    seen = await jar.run(["ruby", "/work/script.rb"], waits=True)
    assert b"true" in seen[2]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "becomes"), [("NODE_OPTIONS", False), ("LC_ALL", False), ("HOME", False), ("MODE", True), ("PATH", True)]
)
def test_node_is_not_asked_to_become_what_it_cannot(name: str, becomes: bool) -> None:
    assert supports_env("node", [name]) is becomes
    assert supports_env("ruby", [name]) and supports_env("", [name])
