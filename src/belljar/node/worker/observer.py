"""What the node reports about one job while it runs, and where the job's output and artifacts go.

The worker's recorder, the terminal of `belljar run` and the package builder are observers. The machine waits for their
methods, which must return at once.
"""

from __future__ import annotations

from belljar.model.flows import FlowReport
from belljar.node.guest.sinks import ArtifactSink, OutputSink
from belljar.node.guest.usage_sampler import UsageSampler
from belljar.node.machines.protocol import Hypervisor
from belljar.node.machines.provision.request import Source
from belljar.node.worker.attempt_end import AttemptEnd


class AttemptObserver:
    """An observer of one job. A subclass overrides the methods whose events it needs; the others do nothing."""

    #: Takes the output of the script and its compiler.
    output: OutputSink
    #: Takes the files that the job keeps.
    artifacts: ArtifactSink

    def on_hypervisor(self, hypervisor: Hypervisor) -> None:
        """The hypervisor of the job's machine was chosen."""

    def on_phase(self, name: str, milliseconds: float) -> None:
        """A step ended that comes before the job has a machine."""

    def on_build_notice(self, sentence: str) -> None:
        """The installation of the script's packages made progress."""

    def on_build_output(self, data: bytes) -> None:
        """The installer of the script's packages printed these bytes, which may be anything."""

    def on_machine(self, source: Source) -> None:
        """The job has a machine, from this source."""

    def on_started(self) -> None:
        """The entrypoint runs."""

    def on_usage(self, sampler: UsageSampler) -> None:
        """The machine's usage was sampled once more; `sampler` has the series."""

    async def on_output_ended(self) -> None:
        """A command of the job has ended, or its machine: no output of it follows."""

    def on_script_ended(self, end: AttemptEnd) -> None:
        """The script has ended, or its compiler failed; nothing that follows changes how."""

    def on_flows(self, report: FlowReport) -> None:
        """What the machine talked to so far, at intervals."""

    def on_console(self, data: bytes, dropped_bytes: int) -> None:
        """The first bytes of the serial console, once, before the machine is removed; the rest was dropped."""
