"""Composes the maintenance of a data folder: the services of the control plane and those of the node."""

from __future__ import annotations

from belljar.control.blobs.store import Blobs
from belljar.control.maintenance.schedule import Maintenance
from belljar.control.maintenance.services import control_services
from belljar.control.store.database import Database
from belljar.node.maintenance.files import node_services
from belljar.settings import Settings


def maintenance_of(settings: Settings, database: Database, blobs: Blobs) -> Maintenance:
    """Return the maintenance of the data folder that the settings name."""
    services = [*control_services(settings, database, blobs), *node_services(settings)]
    return Maintenance(settings, database, services)
