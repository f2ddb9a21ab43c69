"""Prints what a machine talked to: for `belljar jobs flows` and `belljar sandbox flows`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from belljar.cli.printing import print_line, print_table

Refused = Annotated[bool, typer.Option("--refused", help="Only what was not let through.")]
FlowLimit = Annotated[int, typer.Option("--limit", help="Maximum number of flows, those with the most bytes.")]


def verdict_of(refused: bool) -> str | None:
    """Return the filter of the API."""
    return "refused" if refused else None


def print_flows(report: dict[str, Any]) -> None:
    """Print the flows as a table, then what is not in it, and the alerts."""
    rows = [
        (
            _peer(flow),
            flow["protocol"],
            flow["name"],
            flow["verdict"] if flow["rule"] is None else f"{flow['verdict']}: {flow['rule']}",
            flow["tcp_state"],
            flow["bytes_out"],
            flow["bytes_in"],
            flow["first_seen"][:19],
        )
        for flow in report["flows"]
    ]
    print_table(("PEER", "PROTOCOL", "NAME", "VERDICT", "STATE", "OUT", "IN", "FIRST SEEN"), rows)
    for sentence in _remarks(report):
        print_line(sentence)


def _peer(flow: dict[str, Any]) -> str:
    return flow["address"] if flow["port"] is None else f"{flow['address']}:{flow['port']}"


def _remarks(report: dict[str, Any]) -> list[str]:
    left_out, lost, remarks = report["left_out"], report["lost"], []
    if report["source"] == "none":
        remarks.append("no flows: the machine has no network, or has not started")
    if report["source_reason"] is not None:
        remarks.append(f"counted by connection tracking, without names of TLS and HTTP: {report['source_reason']}")
    if left_out["flows"]:
        sums = f"{left_out['bytes_out']} bytes out, {left_out['bytes_in']} bytes in"
        remarks.append(f"{left_out['flows']} more flows are not listed: {sums}")
    if lost["packets"]:
        remarks.append(f"{lost['packets']} packets ({lost['bytes']} bytes) were in more flows than are counted at once")
    if lost["names"]:
        remarks.append(f"{lost['names']} connections began too fast for their names to be noted")
    return remarks + [f"alert {alert['rule']}: it {alert['message']}" for alert in report["alerts"]]
