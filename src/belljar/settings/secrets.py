"""Settings of the key that secrets are sealed with."""

import os
from pathlib import Path

from pydantic import Field, SecretStr

from belljar.settings.area import Area


class SecretSettings(Area):
    """Secrets: where the key comes from that they are sealed with."""

    secrets_key: SecretStr | None = Field(
        None,
        description="The key as 32 bytes in base64, for the environment; after a comma, older ones that only open. "
        "Default: a file.",
    )
    secrets_key_file: Path | None = Field(
        None, description="File of the key; default: `secrets.key` in the data folder, made at the first use."
    )
    secrets_key_command: str | None = Field(
        None, description="Command that prints the key, for example of a key management service; run without a shell."
    )


def remove_key_from_environment() -> None:
    """Remove the key from the environment of programs that this process starts: its settings have it."""
    for name in [name for name in os.environ if name.upper() == "BELLJAR_SECRETS_KEY"]:
        del os.environ[name]
