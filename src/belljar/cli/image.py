"""`belljar image`: build, list, remove."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from belljar.cli import options
from belljar.cli.printing import Lines, print_json, print_table

if TYPE_CHECKING:
    from belljar.images.manifest import Image
    from belljar.settings import Settings

app = typer.Typer(help="What machines boot: build, list, remove images.", no_args_is_help=True)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Name of a recipe: python, shell.")],
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask Debian for newer packages.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Build an image from Debian packages; what is built already is kept."""
    from belljar.images.build import build_image
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    image = asyncio.run(build_image(name, settings, Lines(), refresh=refresh))
    asyncio.run(_freeze(image, settings))
    if as_json:
        print_json(image.manifest.model_dump(mode="json"))
        return
    parts = (image.manifest.kernel, image.manifest.initramfs, image.manifest.root)
    size_mb = sum(part.size_bytes for part in parts) / 1e6
    print(f"{image.name}  {image.manifest.digest[:12]}  {size_mb:.0f} MB")


async def _freeze(image: Image, settings: Settings) -> None:
    """Make the snapshot that first jobs are cloned from; a host that cannot, builds the image all the same."""
    from belljar.cli.printing import complain
    from belljar.errors import BelljarError
    from belljar.machines.choose import Chooser
    from belljar.machines.shapes import fitted
    from belljar.machines.snapshots import Snapshots
    from belljar.worker.preparing import Preparations

    if settings.snapshots == "off":
        return
    shape = fitted(settings.default_vcpus, settings.default_memory_mb, None)
    try:
        Lines().step(f"booting a machine of {image.name}, to be cloned for jobs")
        hypervisor = await Chooser(settings).hypervisor(image)
        preparation = await Preparations(settings).of(image)
        await Snapshots(settings).make(hypervisor, image, shape, preparation)
    except BelljarError as error:
        complain(f"the image is built, but no snapshot could be made of it: {error.message}")


@app.command("ls")
def list_images(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """List the images that are built here."""
    from belljar.images.catalog import Images
    from belljar.settings import load_settings

    manifests = [image.manifest for image in Images(load_settings(data_dir=data_dir).data_dir).list()]
    if as_json:
        print_json([manifest.model_dump(mode="json") for manifest in manifests])
        return
    rows = []
    for manifest in manifests:
        size = sum(part.size_bytes for part in (manifest.kernel, manifest.initramfs, manifest.root))
        languages = ", ".join(language.name for language in manifest.languages)
        rows.append((manifest.name, manifest.digest[:12], f"{size / 1e6:.0f} MB", languages, manifest.description))
    print_table(("NAME", "DIGEST", "SIZE", "LANGUAGES", "DESCRIPTION"), rows)


@app.command("rm")
def remove(name: str, data_dir: options.DataDir = None) -> None:
    """Remove an image, and the parts that no other image uses."""
    from belljar.images.catalog import Images
    from belljar.settings import load_settings

    Images(load_settings(data_dir=data_dir).data_dir).remove(name)
