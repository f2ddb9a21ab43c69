"""Settings of belljar's own log."""

from typing import Literal

from pydantic import Field

from belljar.settings.area import Area


class LogSettings(Area):
    """Logging: belljar's own log, on standard error."""

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="`auto`: text on a terminal, else JSON, one object per line."
    )
