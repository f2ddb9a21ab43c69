"""Settings: flags, then `BELLJAR_*` environment variables, then `belljar.toml`, then the defaults.

Each area has a file here; `file.py` decides which `belljar.toml` is read. script/reference makes docs/settings.md from
the descriptions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from belljar.model.errors import InvalidOption
from belljar.settings.area import Area
from belljar.settings.file import find_settings_file, read_settings_file
from belljar.settings.flows import FlowSettings
from belljar.settings.images import ImageSettings
from belljar.settings.jobs import JobSettings
from belljar.settings.logs import LogSettings
from belljar.settings.machines import MachineSettings
from belljar.settings.network import NetworkSettings
from belljar.settings.packages import PackageSettings
from belljar.settings.quotas import QuotaSettings
from belljar.settings.retention import RetentionSettings
from belljar.settings.sandboxes import SandboxSettings
from belljar.settings.secrets import SecretSettings
from belljar.settings.server import ClientSettings, ServerSettings
from belljar.settings.sign_in import SignInSettings
from belljar.settings.storage import StorageSettings, default_data_dir
from belljar.settings.tracing import TracingSettings
from belljar.settings.worker import WorkerSettings


class Settings(
    StorageSettings,
    ServerSettings,
    SignInSettings,
    ClientSettings,
    JobSettings,
    SandboxSettings,
    QuotaSettings,
    WorkerSettings,
    MachineSettings,
    NetworkSettings,
    FlowSettings,
    PackageSettings,
    ImageSettings,
    SecretSettings,
    RetentionSettings,
    LogSettings,
    TracingSettings,
    BaseSettings,
):
    """All settings, with units in their names. Frozen: read once when a command starts."""

    model_config = SettingsConfigDict(env_prefix="BELLJAR_", extra="forbid", frozen=True)

    @model_validator(mode="after")
    def _check_domains(self) -> Settings:
        if self.sandbox_domain is not None and self.public_url is not None:
            host = urlsplit(self.public_url).hostname or ""
            if host.endswith(f".{self.sandbox_domain}"):
                raise ValueError(
                    f"sandbox_domain: {host} of public_url is below {self.sandbox_domain}, where only ports of "
                    "sandboxes are; use a domain of its own for them"
                )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, strongest first: flags, the environment, the settings file."""
        flags = init_settings()
        config = flags.pop("config", None)
        path = find_settings_file(config, _data_dir_for_lookup(flags.get("data_dir")))
        file_values = {} if path is None else read_settings_file(path)
        return InitSettingsSource(settings_cls, flags), env_settings, InitSettingsSource(settings_cls, file_values)


#: The areas in the order of the documentation.
AREAS: tuple[type[Area], ...] = tuple(base for base in Settings.__bases__ if issubclass(base, Area))


def _data_dir_for_lookup(data_dir: Path | str | None) -> Path:
    """Return the data folder to look for `belljar.toml` in: by flag, environment or default, not by the file itself."""
    return Path(data_dir or os.environ.get("BELLJAR_DATA_DIR") or default_data_dir())


def settings_file(config: Path | None = None, data_dir: Path | None = None) -> Path | None:
    """Return the file that `load_settings` reads with these flags; None when there is none. Raises InvalidOption."""
    return find_settings_file(config, _data_dir_for_lookup(data_dir))


def load_settings(*, config: Path | None = None, **flags: Any) -> Settings:
    """Return the settings from flags (those that are not None), the environment and `belljar.toml`.

    `config` names the settings file. Raises InvalidOption, naming the setting, for a value out of bounds or an unknown
    name, and for a settings file that cannot be read or that other users could have written.
    """
    try:
        values = {name: value for name, value in {**flags, "config": config}.items() if value is not None}
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        reason = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidOption(f"invalid setting {name}: {reason}; see docs/settings.md", option=name) from None
    return settings.model_copy(update={"data_dir": absolute(settings.data_dir.expanduser(), "data_dir")})


def absolute(path: Path, option: str) -> Path:
    """Return the absolute path. Raises InvalidOption for a relative path if the working folder was deleted."""
    try:
        return path.absolute()
    except FileNotFoundError:
        raise InvalidOption(
            f"{option} is {path}, but the working folder does not exist any more; change to another", option=option
        ) from None
