"""Resolves a request to a sandbox: fills in every default, and checks every value against settings and quotas."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Protocol

from belljar.control.jobs.egress_limit import check_egress, egress_limit_of
from belljar.control.jobs.resolve import check_fits, check_resources, resolve_resources
from belljar.control.sandboxes.request import SandboxRequest, guest_user
from belljar.model.errors import InvalidOption, UnknownImage, UnknownLanguage
from belljar.model.ids import new_id
from belljar.model.image import Image
from belljar.model.quotas import QuotaLimits
from belljar.model.resources import NodeLimits
from belljar.model.sandbox import Sandbox, SandboxSpec, SandboxStatus
from belljar.settings import Settings

_DEFAULT_TEMPLATE = "python"


class ImageNames(Protocol):
    """Knows images by name: `belljar.images.catalog.Images`."""

    def get(self, name: str) -> Image: ...

    def image_for(self, language: str) -> str: ...


def image_of(request: SandboxRequest, images: ImageNames) -> Image:
    """Return the image that a request names, itself or by a language. Raises UnknownImage, UnknownLanguage."""
    if request.image is not None:
        return images.get(request.image)
    template = request.template or _DEFAULT_TEMPLATE
    try:
        return images.get(template)
    except UnknownImage:
        try:
            return images.get(images.image_for(template))
        except UnknownLanguage:
            pass
        raise


def resolve_sandbox(
    request: SandboxRequest,
    image: Image,
    *,
    project: str,
    settings: Settings,
    largest: Collection[NodeLimits],
    limits: QuotaLimits,
) -> Sandbox:
    """Return a new sandbox. Raises InvalidOption that names the option, its limit and the setting or quota."""
    manifest = image.manifest
    min_memory_mb = manifest.min_memory_mb
    resources = resolve_resources(
        request.shape, settings, default_memory_mb=max(min_memory_mb, settings.default_memory_mb)
    )
    needs = f"for the image {image.name}"
    check_resources(resources, settings, limits, min_memory_mb=min_memory_mb, needs=needs)
    check_fits(resources, largest)
    check_egress(request.egress, egress_limit_of(project, settings, limits), settings)
    lifetime_seconds = lifetime_of(request.lifetime_seconds, settings)
    now = datetime.now(UTC)
    return Sandbox(
        id=new_id("sb"),
        project=project,
        status=SandboxStatus.CREATING,
        created_at=now,
        expires_at=now + timedelta(seconds=lifetime_seconds),
        idempotency_key=request.idempotency_key,
        spec=SandboxSpec(
            image=image.name,
            image_digest=manifest.digest,
            template=request.template,
            resources=resources,
            egress=request.egress,
            env=request.env,
            secrets=request.secrets,
            mask_secrets=request.mask_secrets,
            public_ports=request.public_ports,
            user=guest_user(request.user),
            lifetime_seconds=lifetime_seconds,
            idle_seconds=request.idle_seconds or settings.default_sandbox_idle_seconds,
            labels=request.labels,
        ),
    )


def lifetime_of(requested: float | None, settings: Settings) -> float:
    """Return the lifetime in seconds. Raises InvalidOption for more than the settings allow."""
    maximum = settings.max_sandbox_lifetime_seconds
    if requested is None:
        return min(settings.default_sandbox_lifetime_seconds, maximum)
    if requested > maximum:
        raise InvalidOption(
            f"lifetime_seconds is {requested:g}; the maximum is {maximum:g} (setting max_sandbox_lifetime_seconds)",
            option="lifetime_seconds",
            limit=maximum,
        )
    return requested
