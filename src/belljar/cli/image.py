"""`belljar image`: build, import, list, tag and remove images; list their contents; delete unused ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from belljar.cli import options
from belljar.cli.printing import ProgressLines, print_json, print_table
from belljar.cli.signals import run_async

if TYPE_CHECKING:
    from belljar.model.image import Image
    from belljar.settings import Settings

app = typer.Typer(help="Build, import, list and remove images.", no_args_is_help=True)


Name = Annotated[str, typer.Argument(metavar="IMAGE", help="Name of an image, as in `belljar image ls`.")]
Packages = Annotated[list[str] | None, typer.Option("--apt", metavar="PKG", help="Add a Debian package.")]


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Name of a recipe, or of the new image.")],
    base: Annotated[str | None, typer.Option("--from", metavar="RECIPE", help="Recipe to extend.")] = None,
    apt: Packages = None,
    pip: Annotated[list[str] | None, typer.Option(metavar="PKG", help="Add a Python package (a wheel).")] = None,
    npm: Annotated[list[str] | None, typer.Option(metavar="PKG", help="Add a package of npm's registry.")] = None,
    dockerfile: Annotated[Path | None, typer.Option(metavar="FILE", help="Build this Dockerfile with buildah.")] = None,
    context: Annotated[Path | None, typer.Option(metavar="DIR", help="Build context; default: FILE's folder.")] = None,
    kernel: Annotated[
        str,
        typer.Option(
            metavar="KERNEL",
            help="stock (Debian's), backports (newer), custom (compiled here), or PATH of a vmlinux or bzImage.",
        ),
    ] = "stock",
    modules: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The modules of the kernel in PATH: /lib/modules/RELEASE.")
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Look for newer Debian packages.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Build an image from a recipe or a Dockerfile. Packages can be added; finished steps are reused."""
    from belljar.cli.logging import start_logging
    from belljar.images.build import build_image
    from belljar.images.kernel_source import parse_kernel_choice
    from belljar.images.recipe_extension import RecipeExtension
    from belljar.model.errors import InvalidOption
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings, "error")  # progress lines report what a person needs
    choice = parse_kernel_choice(kernel, modules)
    if dockerfile is not None:
        from belljar.images.oci.rootfs import build_from_dockerfile

        if base or apt or pip or npm or refresh or choice != "stock":
            raise InvalidOption("--dockerfile defines the whole image; remove the other options", option="image")
        image = run_async(build_from_dockerfile(name, dockerfile, context, settings, ProgressLines()))
    else:
        extension = None
        if base or apt or pip or npm:
            extension = RecipeExtension(
                base=base or name, apt=tuple(apt or ()), pip=tuple(pip or ()), npm=tuple(npm or ())
            )
        image = run_async(
            build_image(
                name,
                settings,
                ProgressLines(),
                refresh=refresh,
                extension=extension,
                kernel=choice,
                trial_boot=lambda image: _try_boot(image, settings),
            )
        )
    _record(settings, "image.build", image.name, digest=image.manifest.digest)
    _collect(settings)
    run_async(_make_snapshot(image, settings))
    _print(image, as_json=as_json)


@app.command("import")
def import_(
    reference: Annotated[str, typer.Argument(metavar="REF|PATH", help="OCI layout, image archive, or registry image.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name on this host. Default: from the reference.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Import a container image. REF is an OCI layout (PATH[:TAG]), a docker or OCI archive, or a registry's image."""
    from belljar.images.oci.rootfs import import_image
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    image = run_async(import_image(reference, name, settings, ProgressLines()))
    _record(settings, "image.import", image.name, digest=image.manifest.digest)
    _collect(settings)
    _print(image, as_json=as_json)


async def _try_boot(image: Image, settings: Settings) -> None:
    """Boot a machine of the image. Raises ImageBuildError with the reason when its kernel does not run."""
    from belljar.cli.printing import print_message
    from belljar.model.errors import MissingTool
    from belljar.node.machines.selector import HypervisorSelector
    from belljar.node.machines.trial_boot import try_boot

    ProgressLines().step(f"booting machines with the kernel {image.manifest.kernel.origin}")
    try:
        hypervisor = await HypervisorSelector(settings).hypervisor(image)
    except MissingTool as missing:  # images may be built for other hosts
        print_message(f"the kernel was not tried: {missing.message}")
        return
    await try_boot(hypervisor, image, max(settings.default_memory_mb, 128), settings.boot_timeout_seconds)


async def _make_snapshot(image: Image, settings: Settings) -> None:
    """Make the snapshot for the first jobs. A failure is printed; the image is built all the same."""
    from belljar.cli.printing import print_message
    from belljar.model.errors import BelljarError
    from belljar.node.machines.provision.shapes import round_up_shape
    from belljar.node.machines.provision.snapshots import Snapshots
    from belljar.node.machines.selector import HypervisorSelector
    from belljar.node.worker.warm_ups import WarmUps

    if settings.snapshots == "off":
        return
    min_mb = max((language.memory_mb or 0 for language in image.manifest.languages), default=0)
    shape = round_up_shape(settings.default_vcpus, max(settings.default_memory_mb, min_mb), None)
    snapshots = Snapshots(settings)
    try:
        hypervisor = await HypervisorSelector(settings).hypervisor(image)
        warm_up_steps = await WarmUps(settings).of(image)
        if snapshots.find(snapshots.key(hypervisor, image, shape, warm_up_steps)) is None:
            ProgressLines().step(f"booting a machine of {image.name} for the snapshot that jobs are cloned from")
            await snapshots.make(hypervisor, image, shape, warm_up_steps)
    except BelljarError as error:
        print_message(f"the image is built, but no snapshot could be made of it: {error.message}")


@app.command("ls")
def list_images(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """List the images on this host."""
    from belljar.images.catalog import Images, summary
    from belljar.node.machines.provision.snapshots import Snapshots
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    images = Images(settings.data_dir).list()
    if as_json:
        snapshots = Snapshots(settings).list()
        print_json([summary(image, snapshots) for image in images])
        return
    rows = []
    for image in images:
        manifest = image.manifest
        languages = ", ".join(language.name for language in manifest.languages)
        size = f"{manifest.size_bytes / 1e6:.0f} MB"
        rows.append((manifest.name, manifest.digest[:12], size, languages, manifest.description))
    print_table(("NAME", "DIGEST", "SIZE", "LANGUAGES", "DESCRIPTION"), rows)


@app.command()
def languages(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """List the languages of the images on this host. Shows versions, and the languages that can be built."""
    from belljar.images.catalog import Images
    from belljar.images.recipe import recipes
    from belljar.settings import load_settings

    folder = load_settings(data_dir=data_dir).data_dir
    rows = []
    built = Images(folder).list()
    for image in built:
        for language in image.manifest.languages:
            version = image.manifest.versions.get(language.name, "")
            rows.append((language.name, version, image.name, " ".join(language.extensions), "yes"))
    names = {image.name for image in built}
    for recipe in recipes(folder).values():
        for language in recipe.languages if recipe.name not in names else ():
            rows.append((language.name, "", recipe.name, " ".join(language.extensions), "no"))
    headings = ("LANGUAGE", "VERSION", "IMAGE", "FILES", "BUILT")
    if as_json:
        print_json([dict(zip((heading.lower() for heading in headings), row, strict=True)) for row in sorted(rows)])
        return
    print_table(headings, sorted(rows))


@app.command()
def tag(
    reference: Annotated[str, typer.Argument(metavar="IMAGE", help="Name, NAME:TAG, or NAME@sha256:DIGEST.")],
    name: Annotated[str, typer.Argument(metavar="NAME[:TAG]", help="Additional name.")],
    data_dir: options.DataDir = None,
) -> None:
    """Add a name to an image. It keeps its image when the first name is given to a new build."""
    from belljar.images.catalog import Images
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    image = Images(settings.data_dir).tag(reference, name)
    _record(settings, "image.tag", image.name, digest=image.manifest.digest)


@app.command("rm")
def remove(name: Name, data_dir: options.DataDir = None) -> None:
    """Remove an image's name. Removes its files too, unless another name or a queued or running job needs them."""
    from belljar.control.store.jobs import needed_images
    from belljar.images.catalog import Images
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    images = Images(settings.data_dir)
    digest = images.get(name).manifest.digest
    images.remove(name, run_async(needed_images(settings)))
    _record(settings, "image.remove", name, digest=digest)


@app.command()
def gc(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """Delete unnamed images that no queued or running job needs."""
    from belljar.control.store.jobs import needed_images
    from belljar.images.catalog import Images
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    images = Images(settings.data_dir)
    freed = images.collect(run_async(needed_images(settings)))
    if freed:
        _record(settings, "image.collect", None, freed_bytes=freed)
    if as_json:
        print_json({"freed_bytes": freed, "disk_bytes": images.blobs.disk_bytes()})
        return
    print(f"{freed / 1e6:.0f} MB freed; images and their caches use {images.blobs.disk_bytes() / 1e6:.0f} MB")


@app.command()
def sbom(name: Name, data_dir: options.DataDir = None) -> None:
    """Print the contents of an image as CycloneDX JSON."""
    from belljar.images.catalog import Images
    from belljar.images.sbom import bill_of_materials
    from belljar.settings import load_settings

    print_json(bill_of_materials(Images(load_settings(data_dir=data_dir).data_dir).get(name).manifest))


def _record(settings: Settings, action: str, name: str | None, **details: object) -> None:
    """Record in the audit log what the command did to an image. A failure is logged, not raised."""
    from belljar.control.audit.local import record_locally

    run_async(record_locally(settings, action, name, **details))


def _collect(settings: Settings) -> None:
    """Delete the image that a new one has replaced, unless a job needs it."""
    from belljar.images.catalog import Images

    images = Images(settings.data_dir)
    if images.unnamed():
        from belljar.cli.printing import print_message
        from belljar.control.store.jobs import needed_images
        from belljar.model.errors import HostError

        try:
            images.collect(run_async(needed_images(settings)))
        except HostError as error:  # for example a database of another version; the new image is built all the same
            print_message(f"images without a name were not removed: {error.message}")


def _print(image: Image, *, as_json: bool) -> None:
    from belljar.images.catalog import summary

    if as_json:
        print_json(summary(image))
        return
    print(f"{image.name}  {image.manifest.digest[:12]}  {image.manifest.size_bytes / 1e6:.0f} MB")
