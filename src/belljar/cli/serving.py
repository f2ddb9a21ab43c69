"""A server's life: open everything, listen, work, and let go of everything when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog

from belljar.cli.maintenance import maintenance_of
from belljar.cli.printing import print_stderr
from belljar.cli.signals import ending_signals
from belljar.control.api.admin_key import ensure_admin_key
from belljar.control.api.descriptors import raise_descriptor_limit
from belljar.control.api.memory import return_large_blocks
from belljar.control.api.server import Server
from belljar.control.api.services import Services, open_services
from belljar.control.queue.queue import Queue
from belljar.data_dir import DataDir, data_folder_error, private_folder, serving
from belljar.local_server import is_loopback
from belljar.model.errors import HostError, InvalidOption
from belljar.node.machines.selector import HypervisorSelector
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.node_name import node_name
from belljar.node.worker.provision import open_provisioner
from belljar.node.worker.warm_ups import WarmUps
from belljar.node.worker.work_folder import clear_work_folders
from belljar.node.worker.worker import Worker
from belljar.settings import Settings
from belljar.settings.server import ServerSettings
from belljar.system.atomic_write import atomic_write
from belljar.system.background import supervise

log = structlog.get_logger()

_BACKLOG = 1024
#: How long a thread that computes keeps the interpreter from others. At Python's own 5 ms each step of a transaction
#: waits so long for a busy event loop, and a request for a thread that unpacks an archive.
_SWITCH_SECONDS = 0.0005


async def serve_until_stopped(settings: Settings, *, with_worker: bool) -> None:
    """The API, with a worker beside it. Ends at SIGTERM or SIGINT. Raises HostError, InvalidOption."""
    _check_auth(settings)
    sys.setswitchinterval(_SWITCH_SECONDS)
    raise_descriptor_limit()
    return_large_blocks()
    await asyncio.to_thread(clear_work_folders, settings.data_dir)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(settings.host, settings.port))
        stack.enter_context(serving(settings.data_dir))
        name = stack.enter_context(node_name(settings.data_dir)) if with_worker else None
        async with open_services(settings) as services:
            await ensure_admin_key(services.keys, settings.data_dir)
            url = _url(listener)
            stack.enter_context(_address_file(settings.data_dir, url))
            server = _server(services, url)
            async with asyncio.TaskGroup() as group:
                queue = open_queue(services)
                keeping = group.create_task(queue.run())
                work = group.create_task(_worker(services, queue, name).run()) if name is not None else None
                maintenance = maintenance_of(settings, services.database, services.blobs)
                cleaning = group.create_task(supervise("maintenance", maintenance.run))
                _stop_on_signals(server)
                await server.serve(sockets=[listener])
                for task in (cleaning, keeping, work):
                    if task is not None:
                        task.cancel()


async def work_until_stopped(settings: Settings) -> None:
    """A worker alone. Ends at SIGTERM or SIGINT."""
    raise_descriptor_limit()
    with node_name(settings.data_dir) as name:
        async with open_services(settings) as services:
            queue = open_queue(services)
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(queue.run())
                work = group.create_task(_worker(services, queue, name).run())
                for number in (signal.SIGTERM, *ending_signals()):
                    asyncio.get_running_loop().add_signal_handler(number, work.cancel)
                print_stderr(f"belljar works as {name}, data in {settings.data_dir}")
                await asyncio.wait({work})
                keeping.cancel()


def open_queue(services: Services) -> Queue:
    """Return the queue over a process's services."""
    return Queue(
        settings=services.settings,
        claims=services.claims,
        nodes=services.nodes,
        scripts=services.scripts,
        blobs=services.blobs,
        changes=services.changes,
    )


def _worker(services: Services, queue: Queue, name: str) -> Worker:
    capacity = Capacity.of_host(services.settings)
    capacity.disk = services.disk
    context = WorkerContext(
        settings=services.settings,
        link=queue.link,
        images=services.images,
        hypervisor=HypervisorSelector(services.settings).hypervisor,
        provisioner=open_provisioner(services.settings, capacity),
        warm_ups=WarmUps(services.settings),
    )
    return Worker(context, name, capacity)


def _server(services: Services, url: str) -> Server:
    settings = services.settings
    key = "no key is asked for" if settings.auth == "off" else f"key in {settings.paths.admin_key}"
    greeting = f"belljar serves on {url}, data in {settings.data_dir}, {key}"
    return Server(services, lambda: print_stderr(greeting))


def _stop_on_signals(server: Server) -> None:
    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, *ending_signals()):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def _check_auth(settings: ServerSettings) -> None:
    if settings.auth == "on" or is_loopback(settings.host):
        return
    raise InvalidOption(f"--auth off is for this machine only; {settings.host} is no loopback address", option="auth")


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. Raises HostError when the address is taken or not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise HostError(f"cannot listen on {host}: {error.strerror or error}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise HostError(f"port {port} on {host} is in use; choose another with --port") from None
            raise HostError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 (shown, not bound)
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _address_file(data_dir: Path, url: str) -> Iterator[None]:
    """Where commands on this machine find the server while it runs."""
    path = DataDir(data_dir).server_address
    private_folder(path.parent)
    try:
        atomic_write(path, json.dumps({"url": url, "pid": os.getpid()}), mode=0o600)
    except OSError as error:
        raise data_folder_error(path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
