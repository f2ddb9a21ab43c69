"""Resolves a request to a sandbox: fills in every default, and checks every value against settings and quotas."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Protocol

from belljar.control.jobs.egress_limit import check_egress, egress_limit_of
from belljar.control.jobs.resolve import check_fits, check_resources, resolve_resources
from belljar.control.sandboxes.request import ForkRequest, SandboxRequest, guest_user
from belljar.model.egress import parse_egress
from belljar.model.errors import InvalidOption, UnknownImage, UnknownLanguage
from belljar.model.ids import new_id
from belljar.model.image import Image
from belljar.model.quotas import QuotaLimits
from belljar.model.resources import NodeLimits
from belljar.model.sandbox import FrozenState, Sandbox, SandboxSpec, SandboxStatus
from belljar.model.sandbox_snapshot import SandboxSnapshot
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


def resolve_from_snapshot(
    request: SandboxRequest, snapshot: SandboxSnapshot, *, settings: Settings, limits: QuotaLimits
) -> Sandbox:
    """Return a new sandbox that goes on from a snapshot of its project. Raises InvalidOption as `resolve_sandbox`."""
    given, spec = request.model_fields_set, snapshot.spec
    egress = request.egress if "egress" in given else spec.egress
    if (parse_egress(egress).kind == "none") != (parse_egress(spec.egress).kind == "none"):
        had = "no network device" if parse_egress(spec.egress).kind == "none" else "a network device"
        raise InvalidOption(f"the sandbox of the snapshot had {had}, which cannot be changed", option="egress")
    check_resources(spec.resources, settings, limits, min_memory_mb=0, needs="for the snapshot")
    check_egress(egress, egress_limit_of(snapshot.project, settings, limits), settings)
    return _copy_of(
        snapshot.project,
        snapshot.frozen,
        snapshot.id,
        spec.model_copy(
            update={
                "egress": egress,
                "env": {**spec.env, **request.env},
                "idle_seconds": request.idle_seconds if "idle_seconds" in given else spec.idle_seconds,
                "labels": request.labels if "labels" in given else spec.labels,
                "lifetime_seconds": lifetime_of(request.lifetime_seconds or spec.lifetime_seconds, settings),
            }
        ),
        request.idempotency_key,
    )


def resolve_fork(parent: Sandbox, frozen: FrozenState, request: ForkRequest, settings: Settings) -> Sandbox:
    """Return a copy of a sandbox that goes on from what it was frozen into. Raises InvalidOption for its lifetime."""
    spec = parent.spec.model_copy(
        update={
            "lifetime_seconds": lifetime_of(request.lifetime_seconds or parent.spec.lifetime_seconds, settings),
            "labels": parent.spec.labels if request.labels is None else request.labels,
        }
    )
    return _copy_of(parent.project, frozen, parent.id, spec)


def _copy_of(
    project: str, frozen: FrozenState, parent: str, spec: SandboxSpec, idempotency_key: str | None = None
) -> Sandbox:
    now = datetime.now(UTC)
    return Sandbox(
        id=new_id("sb"),
        project=project,
        status=SandboxStatus.CREATING,
        created_at=now,
        expires_at=now + timedelta(seconds=spec.lifetime_seconds),
        idempotency_key=idempotency_key,
        parent=parent,
        frozen=frozen,
        spec=spec,
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
