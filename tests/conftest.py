"""What tests stand on: images built once, disks that are full or read-only, and the reasons to skip."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import structlog

from support import order
from support.built_images import IMAGES, BuiltImages, kept_folder
from support.mounts import mounted, small_tmpfs
from support.private_host import PrivateHost

#: Modules with tests that make networks, or watch the host's: they have a network of their own for a host's.
_network_modules: set[Path] = set()
#: Fixtures that make a network of its own, or compile and run the agent.
_PROCESS_FIXTURES = {"internet", "unchanged_host", "agent", "sanitized_agent"}
_IMAGES = pytest.StashKey[BuiltImages]()
_VM_TOOLS = ("qemu-system-x86_64", "bwrap", "mmdebstrap", "mkfs.erofs", "setpriv")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs to run as root")
    if item.get_closest_marker("vm") or item.get_closest_marker("image"):
        missing = [tool for tool in _VM_TOOLS if shutil.which(tool) is None]
        if missing:
            pytest.skip(f"{', '.join(missing)} not found; script/bootstrap installs it")


@pytest.hookimpl(tryfirst=True)  # before -m chooses among the items
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs images or processes, and put the tests into the order in which they finish soonest."""
    for item in items:
        fixtures = {fixture.argname for fixture in _fixtures(item)}
        if {"internet", "unchanged_host"} & fixtures:
            _network_modules.add(item.path)
        if "images_of_the_run" in fixtures:
            item.add_marker("image")
        if fixtures & _PROCESS_FIXTURES:
            item.add_marker("process")
    order.sort(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build images beside the first tests, which need none."""
    if any(item.get_closest_marker("image") for item in session.items) and not session.config.option.collectonly:
        _images(session.config).build_in_background()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (images := session.config.stash.get(_IMAGES, None)) is not None:
        images.close()


def _images(config: pytest.Config) -> BuiltImages:
    if _IMAGES not in config.stash:
        config.stash[_IMAGES] = BuiltImages(kept_folder(), os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}"))
    return config.stash[_IMAGES]


def _fixtures(item: pytest.Item) -> list[Any]:
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009
    return [found[-1] for found in definitions.values()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run tests of networks in a network namespace of their own; only root may make one for this process."""
    host = _host() if item.path in _network_modules else None
    with host.entered() if host is not None else contextlib.nullcontext():
        return (yield)


@cache
def _host() -> PrivateHost | None:
    """Return the private network, or None where it may not be made: networks are the host's own then."""
    if os.geteuid() != 0:
        return None
    try:
        return PrivateHost()
    except PermissionError:  # root of a container that may not
        return None


def pytest_sessionstart() -> None:
    """Make the private network before there are threads: one that is there stays in the mount namespace it is in."""
    _host()


@pytest.fixture(autouse=True)
def _default_logging() -> None:
    """Undo what a test that ran a command in this process has set up: which events are logged, and where."""
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def images_of_the_run(request: pytest.FixtureRequest) -> BuiltImages:
    """The images of this run; whose tests use them are marked `image`."""
    return _images(request.config)


@pytest.fixture(scope="session")
def built_images(images_of_the_run: BuiltImages) -> Path:
    """A data folder with the images python and shell, built as a person would build them."""
    return images_of_the_run.need("python", "shell")


@pytest.fixture(scope="session")
def scripting_image(images_of_the_run: BuiltImages) -> Path:
    """A data folder with the image scripting."""
    return images_of_the_run.need("scripting")


@pytest.fixture(scope="session")
def language_images(images_of_the_run: BuiltImages) -> Path:
    """A data folder with the images of all languages."""
    return images_of_the_run.need(*IMAGES)


@pytest.fixture
def host_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This host's own network, for one test at a time: whose jobs reach real registries."""
    with (_folder_of_the_run(tmp_path_factory) / "network.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _folder_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all workers of a parallel run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def data_dir(built_images: Path, tmp_path: Path) -> Path:
    """An empty data folder with the built images."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "images").symlink_to(built_images / "images")
    # The choice is a matter of its own test; probing for KVM takes seconds.
    (folder / "belljar.toml").write_text('accelerator = "tcg"\nlog_format = "text"\n')
    return folder


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that other users can reach, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="belljar-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    with small_tmpfs(tmp_path / "small", "size=256k") as folder:
        yield folder


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB that holds at most 100 files and folders."""
    with small_tmpfs(tmp_path / "few", "size=8m,nr_inodes=100") as folder:
        yield folder


@pytest.fixture
def database_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB: room for a database's empty tables and some rows."""
    with small_tmpfs(tmp_path / "small", "size=1m") as folder:
        yield folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder one that cannot be written, for root too."""
    with contextlib.ExitStack() as stack:

        def protect(folder: Path) -> None:
            if os.geteuid() != 0:
                folder.chmod(0o500)
                stack.callback(folder.chmod, 0o700)
                return
            stack.enter_context(mounted(folder, "--bind", str(folder)))
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

        yield protect
