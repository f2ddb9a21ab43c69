"""The server: the HTTP API, the control plane's services, and a worker unless the caller wants none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from belljar import __version__
from belljar.app.maintenance import maintenance_of
from belljar.app.worker import open_queue, open_worker
from belljar.control.api.admin_key import ensure_admin_key
from belljar.control.api.file_descriptors import raise_descriptor_limit
from belljar.control.api.listener import listen, url_of
from belljar.control.api.memory import return_large_blocks
from belljar.control.api.server import Server
from belljar.control.api.services import Services, open_services
from belljar.control.audit.entry import SYSTEM, Entry
from belljar.control.audit.heads import Heads
from belljar.data_dir import serving
from belljar.local_server import address_file, is_loopback
from belljar.model.errors import HostError, InvalidOption
from belljar.node.worker.node_name import node_name
from belljar.node.worker.work_folder import clear_work_folders
from belljar.settings import Settings
from belljar.settings.secrets import remove_key_from_environment
from belljar.settings.server import ServerSettings
from belljar.system.background import supervise
from belljar.system.core_dumps import forbid_core_dumps
from belljar.system.tracing import tracing

if TYPE_CHECKING:
    from belljar.control.api.tls import ServerTls

#: How long a computing thread keeps the interpreter from other threads. With Python's default of 5 ms, each step of a
#: transaction waits that long for a busy event loop, and a request for a thread that unpacks an archive.
_SWITCH_SECONDS = 0.0005


async def serve(settings: Settings, *, with_worker: bool, on_ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Serve until `stop` is set. `on_ready` is called with the server's URL once it accepts requests.

    Raises HostError, DataFolderError, InvalidOption.
    """
    _check_auth(settings)
    tls = await asyncio.to_thread(_tls_of, settings)
    sys.setswitchinterval(_SWITCH_SECONDS)
    raise_descriptor_limit()
    forbid_core_dumps()
    remove_key_from_environment()
    return_large_blocks()
    await asyncio.to_thread(clear_work_folders, settings.data_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(tracing(settings.tracing_endpoint, settings.tracing_sample_ratio))
        listener = stack.enter_context(listen(settings.host, settings.port))
        stack.enter_context(serving(settings.data_dir))
        name = stack.enter_context(node_name(settings.data_dir)) if with_worker else None
        async with open_services(settings) as services:
            await ensure_admin_key(services.keys, settings.data_dir)
            await services.secrets.report_key()
            services.sandbox_queue.has_node = with_worker
            url = url_of(listener, "https" if tls else "http")
            await _record(services, "server.start", version=__version__, url=url, auth=settings.auth)
            stack.enter_context(address_file(settings.data_dir, url, *_trust(tls)))
            heads = Heads(settings.paths.audit_heads)
            server = Server(services, lambda: on_ready(url), tls)
            queue = open_queue(services)
            maintenance = maintenance_of(settings, services.database, services.blobs)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(queue.run()),
                    group.create_task(services.sandbox_queue.run()),
                    group.create_task(supervise("maintenance", maintenance.run)),
                    group.create_task(supervise("audit_heads", lambda: services.auditor.note_heads(heads))),
                    group.create_task(_stop_server(server, stop)),
                ]
                if tls is not None:
                    stack.enter_context(_reload_on_hangup(tls))
                    tasks.append(group.create_task(supervise("tls", tls.watch)))
                if name is not None:
                    tasks.append(group.create_task(open_worker(services, queue, name, with_sandboxes=True).run()))
                await server.serve(sockets=[listener])
                for task in tasks:
                    task.cancel()
            await _record(services, "server.stop")
            with contextlib.suppress(HostError, OSError):
                await services.auditor.note_head(heads)


def _tls_of(settings: Settings) -> ServerTls | None:
    if settings.tls == "off" and settings.tls_cert is None and settings.tls_key is None:
        return None
    from belljar.control.api.tls import tls_of  # loads cryptography

    return tls_of(settings)


def _trust(tls: ServerTls | None) -> tuple[Path | None, str | None]:
    """Return what clients on this host trust: the certificate, and the name that it is valid for."""
    if tls is None:
        return None, None
    names = tls.certificate.names
    return tls.trust_file.absolute(), names[0] if names else None


@contextlib.contextmanager
def _reload_on_hangup(tls: ServerTls) -> Iterator[None]:
    """Load the certificate again on SIGHUP, if this process has no terminal whose end the signal would mean."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, tls.reload))
    yield


async def _record(services: Services, action: str, **details: object) -> None:
    await services.auditor.record(Entry(actor=SYSTEM, action=action, details=details))


async def _stop_server(server: Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True


def _check_auth(settings: ServerSettings) -> None:
    if settings.auth == "on":
        return
    if settings.cors_origins:
        raise InvalidOption("--auth off refuses every cross-origin request; unset cors_origins", option="cors_origins")
    if is_loopback(settings.host):
        return
    raise InvalidOption(f"--auth off needs a loopback address such as 127.0.0.1, not {settings.host}", option="auth")
