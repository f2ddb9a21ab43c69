"""Settings: flags, then `BELLJAR_*` environment variables, then `belljar.toml`, then the defaults here.

settings_file.py says where `belljar.toml` is looked for. `docs/settings.md` is made from the descriptions below.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from belljar.data_dir import DataDir
from belljar.model.errors import InvalidOption
from belljar.settings.file import find_settings_file, read_settings_file, user_folder


def default_data_dir() -> Path:
    """/var/lib/belljar for root, the XDG data folder for anyone else."""
    if os.geteuid() == 0:
        return Path("/var/lib/belljar")
    return user_folder("XDG_DATA_HOME", ".local/share") / "belljar"


class Settings(BaseSettings):
    """Every setting, with its unit in its name. Frozen: read once when a command starts."""

    model_config = SettingsConfigDict(env_prefix="BELLJAR_", extra="forbid", frozen=True)

    data_dir: Path = Field(default_factory=default_data_dir, description="Folder that holds everything belljar keeps.")
    host: str = Field("127.0.0.1", description="Address the server listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the server listens on; 0 picks a free one.")
    auth: Literal["on", "off"] = Field("on", description="`off` asks for no key; allowed on loopback addresses only.")
    server: str | None = Field(None, description="Server that client commands use instead of the local one.")
    api_key: str | None = Field(None, description="Key that client commands send; default: the admin key here.")

    database_url: str | None = Field(None, description="SQLAlchemy URL; by default SQLite in the data folder.")
    blobs_url: str | None = Field(None, description="Object store URL; by default a folder in the data folder.")

    hypervisor: Literal["auto", "firecracker", "qemu"] = Field(
        "auto", description="What runs machines; `auto`: Firecracker if it is there and boots the kernel, else QEMU."
    )
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        "auto", description="`auto` uses KVM when it really boots the kernel, else software emulation."
    )
    qemu: str = Field("qemu-system-x86_64", description="QEMU's executable, a name or a path.")
    firecracker: str = Field("firecracker", description="Firecracker's executable, a name or a path.")
    jailer: str = Field("jailer", description="Firecracker's jailer, of the same release; used when belljar is root.")
    jail_uid_base: int = Field(
        2_000_000, ge=1000, description="First of the user ids that machines run as when belljar runs as root."
    )
    jail_uid_count: int = Field(1000, ge=1, description="How many user ids from the first on belong to machines.")

    debian_suite: str = Field("bookworm", description="Debian release that images are built from.")
    debian_mirror: str | None = Field(
        None, description="Package mirror for image builds; default: this host's own, else deb.debian.org."
    )

    debian_security_mirror: str | None = Field(None, description="The same for security updates.")

    image_disk_mb: int | None = Field(
        None, ge=256, description="Most disk for images, layers and what building them keeps; default: no limit."
    )
    max_image_mb: int = Field(16384, ge=64, description="Largest tree that an imported image may unpack to.")
    max_image_files: int = Field(1_000_000, ge=100, description="Most files in an imported image.")
    snapshots: Literal["on", "off"] = Field("on", description="`off` boots every machine.")
    snapshot_disk_mb: int = Field(
        4096, ge=0, description="Disk that snapshots may take; those used longest ago are removed."
    )
    pool: Literal["auto", "fixed", "off"] = Field(
        "auto", description="Whether clones of snapshots wait for jobs: as recent demand asks, a fixed number, or none."
    )
    pool_size: int = Field(
        4, ge=1, description="How many clones of one image and shape wait (`fixed`), or at most (`auto`)."
    )
    pool_memory_mb: int | None = Field(
        None, ge=0, description="Memory for waiting clones; default: a quarter of what jobs may have."
    )

    worker_vcpus: int | None = Field(None, ge=1, description="vCPUs for jobs together; default: 2 × the cores.")
    worker_memory_mb: int | None = Field(None, ge=64, description="Memory for jobs; default: 80 % of the host's.")
    memory_overcommit: float = Field(
        1.0,
        ge=1,
        le=16,
        description="Jobs may be promised this many times the memory there is; use is watched.",
    )
    default_vcpus: int = Field(1, ge=1)
    default_memory_mb: int = Field(256, ge=64)
    default_timeout_seconds: float = Field(60, gt=0)
    max_vcpus: int = Field(8, ge=1, description="Most vCPUs one job may ask for.")
    max_memory_mb: int = Field(16384, ge=64, description="Most memory one job may ask for.")
    max_disk_mb: int = Field(16384, ge=16, description="Largest scratch disk one job may ask for.")
    default_disk_mb_per_second: float | None = Field(
        None, ge=0.1, description="What each disk of a machine may read and write, in MiB/s; by default no limit."
    )
    default_disk_iops: int | None = Field(None, ge=1, description="The same in operations per second.")
    default_network_mbit_per_second: float | None = Field(
        None, ge=0.1, description="What a machine's network may carry in each direction, in 10^6 bits/s."
    )
    max_disk_mb_per_second: float | None = Field(None, ge=0.1, description="Most of that one job may ask for.")
    max_disk_iops: int | None = Field(None, ge=1, description="Most of that one job may ask for.")
    max_network_mbit_per_second: float | None = Field(None, ge=0.1, description="Most of that one job may ask for.")
    max_timeout_seconds: float = Field(3600, gt=0, description="Longest time one job may ask for.")
    grace_seconds: float = Field(2, ge=0, description="Time between SIGTERM and SIGKILL for a job that is stopped.")
    boot_timeout_seconds: float = Field(
        60, gt=0, description="Deadline for a machine to come up. Over 60, other deadlines of machines grow with it."
    )
    max_processes: int = Field(512, ge=16, description="Most processes and threads a job may have at once.")

    max_egress: str = Field(
        "open", description="The most that a job may reach: `none`, `packages`, `open`, or destinations with commas."
    )
    project_max_egress: dict[str, str] = Field({}, description="The same for single projects, by name.")
    package_hosts: tuple[str, ...] = Field(
        (
            "pypi.org:443",
            "files.pythonhosted.org:443",
            "registry.npmjs.org:443",
            "deb.debian.org",
            "security.debian.org",
        ),
        description="What jobs reach under `packages`, besides the mirrors below.",
    )
    package_pypi_url: str | None = Field(None, description="Index that pip uses in jobs under `packages`.")
    package_npm_url: str | None = Field(None, description="Registry that npm uses in jobs under `packages`.")
    package_ca_file: Path | None = Field(
        None, description="Certificates (PEM) that the index is trusted by; default: those that this host trusts."
    )
    package_private_networks: tuple[str, ...] = Field(
        (),
        description="ADDRESS[:PORT] or NETWORK[:PORT] among the private ones that jobs under `packages` may reach all "
        "the same: where a mirror of yours is.",
    )
    dependencies: Literal["on", "off"] = Field(
        "on", description="`off` installs nothing that scripts ask for: they find what their image has."
    )
    dependencies_timeout_seconds: float = Field(600, gt=0, description="Longest time that installing may take.")
    dependencies_memory_mb: int = Field(
        1024, ge=256, description="Memory of the machine that packages are installed in."
    )
    dependencies_disk_mb: int = Field(4096, ge=64, description="Disk of that machine: downloads and what they become.")
    max_layer_mb: int = Field(1024, ge=1, description="Largest set of packages, installed, that a script may ask for.")
    layer_disk_mb: int = Field(
        8192, ge=1, description="Disk for installed packages; those used longest ago are removed."
    )
    network_range: IPv4Network = Field(
        IPv4Network("198.19.0.0/16"),
        description="Addresses on this host for the machines' networks, two for each; nothing else may use them.",
    )
    guest_network: IPv4Network = Field(
        IPv4Network("172.30.0.0/30"), description="The network that every machine sees: the gateway and itself."
    )
    network_slots: int = Field(4, ge=0, le=1000, description="Networks kept ready once a job has asked for one.")
    nameservers: tuple[IPv4Address, ...] = Field(
        (), description="Name servers for jobs; default: this host's own, then 1.1.1.1 and 8.8.8.8."
    )
    refused_networks: tuple[IPv4Network, ...] = Field(
        (), description="What no job may reach, besides private addresses, this host's own, and networks it is in."
    )
    network_mbit: int = Field(1000, ge=1, le=10_000, description="Megabits per second of one machine, each way.")
    network_packets_per_second: int = Field(50_000, ge=100, description="Packets that one machine may send.")
    network_connections: int = Field(1024, ge=1, le=65536, description="Connections that one machine may hold.")
    network_connections_per_second: int = Field(200, ge=1, description="New connections of one machine.")

    max_connections: int = Field(
        2048, ge=8, description="Most connections to the server at once; fewer where `ulimit -n` is low."
    )
    max_body_memory_mb: int = Field(
        64, ge=64, description="Memory for the bodies of requests in flight; one key gets at most half of it."
    )
    max_upload_mb: int = Field(50, ge=1, description="Largest upload; refused while it streams in.")
    max_unpacked_mb: int = Field(200, ge=1, description="Most bytes an archive may unpack to.")
    max_archive_members: int = Field(10_000, ge=1, description="Most files and folders in an archive.")
    max_output_mb: float = Field(16, gt=0, description="Bytes kept of each of stdout and stderr; a marker follows.")
    max_console_kb: int = Field(256, ge=1, description="Bytes kept of a machine's serial console.")
    max_artifacts_mb: float = Field(256, gt=0, description="All artifacts of a job together.")
    max_artifact_count: int = Field(1000, ge=1)
    lease_seconds: float = Field(30, gt=1, description="A worker silent for this long is taken for dead.")

    min_free_disk_mb: int = Field(
        256, ge=0, description="Free disk kept in reserve; with less, no new jobs and uploads are taken."
    )
    min_free_disk_percent: float = Field(
        5, ge=0, le=90, description="The same as a share of the disk and of its inodes; the smaller reserve counts."
    )
    min_free_inodes: int = Field(1000, ge=0, description="The same in files that can still be made.")

    maintenance_interval_seconds: float = Field(
        300, ge=1, description="How often a server looks for what is past its retention period and removes it."
    )
    keep_succeeded_jobs_days: float = Field(
        14, ge=0, description="How long jobs that succeeded are kept, with their logs and artifacts; 0: for ever."
    )
    keep_failed_jobs_days: float = Field(30, ge=0, description="The same for jobs that failed or timed out.")
    keep_cancelled_jobs_days: float = Field(14, ge=0, description="The same for cancelled jobs.")
    keep_lost_jobs_days: float = Field(30, ge=0, description="The same for lost jobs.")
    keep_stdin_days: float = Field(
        1, ge=0, description="How long the standard input of jobs that ended is kept; 0: as long as the job."
    )
    keep_unused_scripts_days: float = Field(
        90, ge=0, description="How long scripts are kept that no job uses and nobody uploads again; 0: for ever."
    )
    keep_gone_nodes_days: float = Field(
        7, ge=0, description="How long nodes are listed that are not heard of any more; 0: for ever."
    )
    keep_revoked_keys_days: float = Field(90, ge=0, description="How long revoked keys are listed; 0: for ever.")
    keep_unused_snapshots_days: float = Field(
        30, ge=0, description="How long snapshots are kept that no machine is cloned from; 0: for ever."
    )
    keep_unused_layers_days: float = Field(
        30, ge=0, description="How long installed packages are kept that no job uses; 0: for ever."
    )
    keep_build_cache_days: float = Field(
        30, ge=0, description="How long downloads and logs of image builds are kept; 0: for ever."
    )
    keep_backups_days: float = Field(
        30, ge=0, description="How long backups of the database are kept, the newest aside; 0: for ever."
    )
    keep_orphan_blobs_days: float = Field(
        1, ge=0, description="How long blobs are kept that no record names; 0: for ever."
    )

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "json"] = Field("auto", description="`auto`: text on terminals.")

    @property
    def paths(self) -> DataDir:
        """Where everything in the data folder lies."""
        return DataDir(self.data_dir)

    @field_validator("qemu", "firecracker", "jailer")
    @classmethod
    def _is_one_program(cls, program: str) -> str:
        """Refuse a program that another one would replace in another working folder."""
        if not program or ("/" in program and not program.startswith("/")):
            raise ValueError(f"{program!r} depends on the working folder; give a name on PATH, or an absolute path")
        return program

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        given = init_settings()
        config = given.pop("config", None)
        path = find_settings_file(config, _lookup_data_dir(given.get("data_dir")))
        found = {} if path is None else read_settings_file(path)
        flags, file = InitSettingsSource(settings_cls, given), InitSettingsSource(settings_cls, found)
        return flags, env_settings, file


def _lookup_data_dir(given: Path | str | None) -> Path:
    """The data folder that may hold the settings file, which is not asked for it."""
    return Path(given or os.environ.get("BELLJAR_DATA_DIR") or default_data_dir())


def settings_file(config: Path | None = None, data_dir: Path | None = None) -> Path | None:
    """The file that `load_settings` reads with these flags; None when there is none. Raises InvalidOption."""
    return find_settings_file(config, _lookup_data_dir(data_dir))


def load_settings(*, config: Path | None = None, **flags: Any) -> Settings:
    """Settings from flags (those that are not None), the environment and `belljar.toml`.

    `config` names the settings file. Raises InvalidOption, naming the setting, for a value that is out of bounds or a
    name that does not exist, and for a settings file that cannot be read or that others could have written.
    """
    try:
        given = {name: value for name, value in {**flags, "config": config}.items() if value is not None}
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        reason = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidOption(f"the setting {name} is wrong: {reason}; see docs/settings.md", option=name) from None
    return settings.model_copy(update={"data_dir": absolute(settings.data_dir.expanduser(), "data_dir")})


def absolute(path: Path, option: str) -> Path:
    """The path from the root. Raises InvalidOption for a relative one in a working folder that was deleted."""
    try:
        return path.absolute()
    except FileNotFoundError:
        raise InvalidOption(
            f"{option} is {path}, and the working folder does not exist any more; change to another", option=option
        ) from None
