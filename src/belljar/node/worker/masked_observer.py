"""An observer of a job with secrets: all that the job prints passes through the masking on its way to the observer."""

from __future__ import annotations

import asyncio

from belljar.node.guest.sinks import OutputSink
from belljar.node.guest.usage_sampler import UsageSampler
from belljar.node.guest.wire import Stream
from belljar.node.machines.protocol import Hypervisor
from belljar.node.machines.provision.request import Source
from belljar.node.worker.attempt_end import AttemptEnd
from belljar.node.worker.masking import MaskedStream, Masker
from belljar.node.worker.observer import AttemptObserver

#: Output is masked in pieces of this length, between which the event loop may run other tasks.
PIECE_BYTES = 16 * 1024


class MaskedOutput:
    """Passes output on to `output` without secrets. `flush` it when the command has ended."""

    def __init__(self, output: OutputSink, masker: Masker) -> None:
        self._output = output
        self._streams = {stream: MaskedStream(masker) for stream in (Stream.STDOUT, Stream.STDERR)}

    async def write(self, stream: Stream, data: bytes) -> None:
        for at in range(0, len(data), PIECE_BYTES):
            if at:
                await asyncio.sleep(0)
            await self._pass_on(stream, self._streams[stream].feed(data[at : at + PIECE_BYTES]))

    def full(self, stream: Stream) -> bool:
        return self._output.full(stream)

    async def flush(self) -> None:
        """Pass on what waited for the rest of a secret."""
        for stream, masked in self._streams.items():
            await self._pass_on(stream, masked.flush())

    async def _pass_on(self, stream: Stream, data: bytes) -> None:
        if data:
            await self._output.write(stream, data)


class MaskedObserver(AttemptObserver):
    """Passes every event on to `inner`."""

    output: MaskedOutput

    def __init__(self, inner: AttemptObserver, masker: Masker) -> None:
        self._inner = inner
        self._masker = masker
        self.output = MaskedOutput(inner.output, masker)
        self.artifacts = inner.artifacts

    def on_hypervisor(self, hypervisor: Hypervisor) -> None:
        self._inner.on_hypervisor(hypervisor)

    def on_phase(self, name: str, milliseconds: float) -> None:
        self._inner.on_phase(name, milliseconds)

    def on_build_notice(self, sentence: str) -> None:
        self._inner.on_build_notice(sentence)

    def on_build_output(self, data: bytes) -> None:
        self._inner.on_build_output(data)

    def on_machine(self, source: Source) -> None:
        self._inner.on_machine(source)

    def on_started(self) -> None:
        self._inner.on_started()

    def on_usage(self, sampler: UsageSampler) -> None:
        self._inner.on_usage(sampler)

    async def on_output_ended(self) -> None:
        await self.output.flush()
        await self._inner.on_output_ended()

    def on_script_ended(self, end: AttemptEnd) -> None:
        self._inner.on_script_ended(end)

    def on_console(self, data: bytes, dropped_bytes: int) -> None:
        self._inner.on_console(self._masker.mask(data), dropped_bytes)
