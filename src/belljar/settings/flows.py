"""Settings of flows: what is reported of what machines talk to."""

from pydantic import Field

from belljar.model.flows import AlertRule
from belljar.settings.area import Area


class FlowSettings(Area):
    """Alert rules over the flows of machines."""

    flow_alert_destinations: tuple[str, ...] = Field(
        (),
        description="Destinations that machines may contact without an alert, as in an egress list; empty: any.",
    )
    flow_alert_mb_out: float | None = Field(
        None, gt=0, description="Megabytes of payload that one machine may send without an alert."
    )
    flow_alert_scanned_ports: int = Field(
        100,
        ge=0,
        le=10_000,
        description="Alert when this many different ports or addresses did not answer one machine in a minute; 0: off.",
    )
    flow_alert_beacons: int = Field(
        0,
        ge=0,
        le=32,
        description="Alert on so many connections in a row to one destination at equal intervals, at least 4; 0: off.",
    )
    flow_alert_stops: tuple[AlertRule, ...] = Field(
        (), description="Alert rules that also end the job or sandbox; the others only report."
    )
