"""Where settings come from, and where they must not: the working folder, and files that others could have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from belljar.model.errors import InvalidOption
from belljar.settings import Settings, load_settings
from support.command import ORDINARY, belljar, belljar_each, complaint, output
from support.registered_images import register

pytestmark = pytest.mark.process

MARKER_TOOL = """#!/bin/sh
echo ran >>"{marker}"
echo "Firecracker v1.15.0"
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working folder whose files want to run on this host; each leaves a marker where it did."""
    folder = tmp_path / "repository"
    folder.mkdir()
    tool = MARKER_TOOL.format(marker=tmp_path / "marker")
    for name in ("tool.sh", "firecracker", "jailer", "qemu-system-x86_64", "mkfs.erofs", "bwrap", "setpriv", "ldd"):
        (folder / name).write_text(tool)
        (folder / name).chmod(0o755)
    programs = [f'{name} = "./tool.sh"\n' for name in ("firecracker", "jailer", "qemu")]
    (folder / "belljar.toml").write_text("".join(programs))
    (folder / ".env").write_text("BELLJAR_QEMU=./tool.sh\nBELLJAR_SERVER=http://evil.example\n")
    for module in ("socket", "json", "typing", "asyncio", "belljar"):
        (folder / f"{module}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'a').write({module!r})\n")
    (folder / "main.py").write_text("print(1)")
    return folder


def test_nothing_in_the_working_folder_runs_on_this_host(hostile: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    register(data_dir, "python")
    for path in (os.environ["PATH"], f".:{os.environ['PATH']}", f":{os.environ['PATH']}:"):
        given = {"PATH": path, "BELLJAR_BOOT_TIMEOUT_SECONDS": "1", "BELLJAR_ACCELERATOR": "tcg"}
        result = _installed("run", "main.py", data_dir=data_dir, cwd=hostile, **given)
        assert result.returncode == 125 and b"./belljar.toml is ignored" in result.stderr
        _installed("doctor", data_dir=data_dir, cwd=hostile, **given)
        assert not (tmp_path / "marker").exists(), (tmp_path / "marker").read_text()


def _installed(*words: str, **more: object):  # type: ignore[no-untyped-def]
    """The command as it is installed: `python -m` would look for modules in the working folder by itself."""
    return belljar(*words, safe_path=True, **more)  # type: ignore[arg-type]


def test_a_file_in_the_working_folder_is_reported_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "belljar.toml").write_text("memroy = 5\n")
    result = belljar("image", "ls", cwd=tmp_path, data_dir=tmp_path / "data")
    assert result.returncode == 0
    assert result.stderr.decode().splitlines() == [
        "belljar: ./belljar.toml is ignored: anyone could have written it; use it with --config ./belljar.toml"
    ]
    # Where it is the file that is read after all, there is nothing to be told.
    assert "memroy" in complaint(belljar("image", "ls", cwd=tmp_path, data_dir=tmp_path), 1)


def test_a_setting_that_does_not_exist_is_named(tmp_path: Path) -> None:
    (tmp_path / "belljar.toml").write_text("memroy = 5\n")
    assert "invalid setting memroy" in complaint(belljar("image", "ls", data_dir=tmp_path), 1)
    (tmp_path / "belljar.toml").write_text("memory = = 5\n")
    assert "belljar.toml" in complaint(belljar("image", "ls", data_dir=tmp_path), 1)


def test_the_sources_of_a_setting_are_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    (tmp_path / "data").mkdir()
    (tmp_path / "user/belljar").mkdir(parents=True)
    (tmp_path / "belljar.toml").write_text("port = 9\n")
    assert load_settings(data_dir=tmp_path / "data").port == 8080
    (tmp_path / "user/belljar/belljar.toml").write_text("port = 1\nhost = '::1'\n")
    assert load_settings(data_dir=tmp_path / "data").port == 1
    (tmp_path / "data/belljar.toml").write_text("port = 2\n")
    assert load_settings(data_dir=tmp_path / "data").port == 2
    assert load_settings(data_dir=tmp_path / "data").host == "127.0.0.1"  # one file alone is read
    (tmp_path / "named.toml").write_text("port = 3\n")
    assert load_settings(data_dir=tmp_path / "data", config=tmp_path / "named.toml").port == 3
    monkeypatch.setenv("BELLJAR_CONFIG", str(tmp_path / "named.toml"))
    assert Settings(data_dir=tmp_path / "data").port == 3
    monkeypatch.setenv("BELLJAR_PORT", "4")
    assert Settings(data_dir=tmp_path / "data").port == 4
    assert Settings(data_dir=tmp_path / "data", port=5).port == 5


def test_the_file_is_named_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "wrong.toml").write_text("memroy = 5\n")
    named, absent, by_variable = (
        belljar("image", "ls", "--config", "wrong.toml", cwd=tmp_path, data_dir=tmp_path / "data"),
        belljar("image", "ls", "--config", "absent.toml", cwd=tmp_path, data_dir=tmp_path / "data"),
        belljar("image", "ls", cwd=tmp_path, data_dir=tmp_path / "data", BELLJAR_CONFIG="wrong.toml"),
    )
    assert "memroy" in complaint(named, 1) and "memroy" in complaint(by_variable, 1)
    assert "there is no settings file" in complaint(absent, 1)


def test_a_file_that_others_could_have_written_is_refused(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(InvalidOption) as error:
            load_settings(config=path)
        return error.value.message

    good = tmp_path / "good.toml"
    good.write_text("port = 1\n")
    assert load_settings(config=good).port == 1
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    (open_folder / "a.toml").write_text("port = 1\n")
    for mode in (0o775, 0o777):
        open_folder.chmod(mode)
        assert f"others may write {open_folder}" in refused(open_folder / "a.toml")
    open_folder.chmod(0o1777)  # as /tmp: what is in it is its owner's
    assert load_settings(config=open_folder / "a.toml").port == 1
    for mode in (0o664, 0o646):
        (open_folder / "a.toml").chmod(mode)
        assert "chmod go-w" in refused(open_folder / "a.toml")
    (tmp_path / "link.toml").symlink_to(open_folder / "a.toml")
    assert f"others may write {open_folder / 'a.toml'}" in refused(tmp_path / "link.toml")
    (tmp_path / "circle.toml").symlink_to("circle.toml")
    assert "there is no settings file" in refused(tmp_path / "circle.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    assert "not a regular file" in refused(tmp_path / "pipe.toml")
    good.write_text("#" * 300_000)
    assert "256 KB" in refused(good)
    good.write_text("a=" + "[" * 5000)
    assert "cannot be read" in refused(good)


@pytest.mark.root
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/belljar.toml").write_text("port = 1\n")
    os.chown(tmp_path / "data/belljar.toml", ORDINARY, ORDINARY)
    assert f"user id {ORDINARY}" in complaint(belljar("image", "ls", data_dir=tmp_path / "data"), 1)
    os.chown(tmp_path / "data/belljar.toml", 0, 0)
    os.chown(tmp_path / "data", ORDINARY, ORDINARY)
    assert f"user id {ORDINARY}" in complaint(belljar("image", "ls", data_dir=tmp_path / "data"), 1)


def test_what_depends_on_the_working_folder_is_refused(tmp_path: Path) -> None:
    for line in (
        'qemu = "./qemu"',
        'firecracker = "bin/firecracker"',
        'jailer = ""',
        'data_dir = "data"',
        'package_ca_file = "ca.pem"',
        'database_url = "sqlite:///here.db"',
        'blobs_url = "file://blobs"',
    ):
        (tmp_path / "belljar.toml").write_text(line)
        name = line.split()[0]
        with pytest.raises(InvalidOption, match=f"invalid setting {name}: .*depends on the working folder"):
            load_settings(data_dir=tmp_path)
    (tmp_path / "belljar.toml").unlink()
    result = belljar("doctor", data_dir=tmp_path, BELLJAR_FIRECRACKER="./firecracker")
    assert "working folder" in complaint(result, 1)


def test_relative_homes_are_not_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "belljar").mkdir()
    (tmp_path / "belljar/belljar.toml").write_text("port = 1\n")
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.setenv(variable, ".")
    assert load_settings(data_dir=tmp_path / "data").port == 8080


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    before = ["/bin/sh", "-c", f'mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && exec "$@"', "sh"]
    assert output(belljar("version", before=before))
    assert output(belljar("image", "ls", before=before, data_dir=tmp_path / "data"))
    for words in (["image", "ls", "--data-dir", "data"], ["run", "main.py"]):
        text = complaint(belljar(*words, before=before, data_dir=tmp_path / "data"), 125 if words[0] == "run" else 1)
        assert "does not exist any more" in text or "there is no file or folder main.py" in text


def test_many_commands_do_not_mind_a_strange_file(tmp_path: Path) -> None:
    (tmp_path / "belljar.toml").mkdir()
    for result in belljar_each(["version"], ["key", "ls"], data_dir=tmp_path / "data", cwd=tmp_path):
        output(result)
