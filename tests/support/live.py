"""The real server at a socket of this process, for browsers: over services whose jobs a test runs itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from belljar.control.api.server import Server
from belljar.control.api.services import Services
from belljar.control.logs.log import LogWriter, keep_log, log_path
from belljar.model.job import Job
from belljar.model.log_stream import LogStream
from support.served import Served


@asynccontextmanager
async def listening(services: Services) -> AsyncIterator[str]:
    """Serve these services; yield the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        server = Server(services)
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            async with asyncio.timeout(30):
                await task


def write_output(api: Served, job: Job, data: bytes, stream: LogStream = LogStream.STDOUT) -> None:
    """Append to the output of a running job, as its worker does."""
    with LogWriter(log_path(api.services.settings.data_dir, job.id), attempt=job.attempt) as writer:
        writer.append(stream, data)
    api.services.changes.notify_log(job.id)


async def keep_output(api: Served, job: Job) -> None:
    """Upload the output of a job that ends now."""
    await keep_log(api.services.settings.data_dir, api.services.blobs, job.id)
