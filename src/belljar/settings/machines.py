"""Settings of hypervisors, snapshots and the warm pool."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from belljar.settings.area import Area


def _check_program(program: str) -> str:
    if not program or ("/" in program and not program.startswith("/")):
        raise ValueError(f"{program!r} depends on the working folder; give a name on PATH, or an absolute path")
    return program


Program = Annotated[str, AfterValidator(_check_program)]


class MachineSettings(Area):
    """Machines: hypervisors, snapshots and the pool of waiting clones."""

    hypervisor: Literal["auto", "firecracker", "qemu"] = Field(
        "auto",
        description="Runs the machines; `auto`: Firecracker if it is installed and boots the kernel, else QEMU.",
    )
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        "auto", description="`auto`: KVM if it boots the kernel here, else software emulation (`tcg`)."
    )
    qemu: Program = Field("qemu-system-x86_64", description="QEMU's executable, a name or an absolute path.")
    firecracker: Program = Field("firecracker", description="Firecracker's executable, a name or an absolute path.")
    jailer: Program = Field(
        "jailer", description="Firecracker's jailer, of the same release; used when belljar runs as root."
    )
    jail_uid_base: int = Field(
        2_000_000, ge=1000, description="First user id that machines run as when belljar runs as root."
    )
    jail_uid_count: int = Field(1000, ge=1, description="Number of user ids for machines, from the first on.")
    boot_timeout_seconds: float = Field(
        60, gt=0, description="Deadline for a machine to boot. Above 60, other deadlines of machines grow with it."
    )
    max_console_kb: int = Field(256, ge=1, description="Output kept of a machine's serial console.")
    snapshots: Literal["on", "off"] = Field("on", description="`off` boots every machine instead of cloning snapshots.")
    snapshot_disk_mb: int = Field(
        4096, ge=0, description="Maximum disk space for snapshots; the least recently used are evicted."
    )
    pool: Literal["auto", "fixed", "off"] = Field(
        "auto",
        description="Whether clones of snapshots wait for jobs: by recent demand (`auto`), a fixed number, or none.",
    )
    pool_size: int = Field(
        8, ge=1, description="Number of waiting clones of each image and shape (`fixed`), or their maximum (`auto`)."
    )
    waiting_processes: int = Field(
        4,
        ge=0,
        le=64,
        description="Maximum number of hypervisor processes that are started before a clone needs one; 0: none.",
    )
    pool_memory_mb: int | None = Field(
        None, ge=0, description="Maximum memory for waiting clones; default: a quarter of the memory for jobs."
    )
