"""Limits of rates: by the option, the default and the maximum, and the resources of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from belljar.control.jobs.resolve import ResolvedScript, resolve_job
from belljar.model.errors import InvalidOption
from belljar.model.job import Resources
from belljar.model.job_options import JobOptions
from belljar.node.machines.provision.shapes import round_up_shape
from belljar.settings import Settings

RATES = ("disk_mb_per_second", "disk_iops", "network_mbit_per_second")


def resolved(options: dict[str, Any], **settings: Any) -> Resources:
    return resolve_job(
        JobOptions(**options),
        ResolvedScript(script_id="a" * 64, language="python", entrypoint="main.py"),
        project="mine",
        image="python",
        settings=Settings(data_dir=Path("/nonexistent"), **settings),
        largest=[],
    ).resources


@pytest.mark.parametrize("rate", RATES)
def test_without_a_word_there_is_no_limit(rate: str) -> None:
    assert getattr(resolved({}), rate) is None


@pytest.mark.parametrize("rate", RATES)
def test_the_option_counts_then_the_default_then_the_maximum(rate: str) -> None:
    settings = {f"default_{rate}": 50, f"max_{rate}": 100}
    assert getattr(resolved({rate: 70}, **settings), rate) == 70
    assert getattr(resolved({}, **settings), rate) == 50
    assert getattr(resolved({}, **{f"max_{rate}": 100}), rate) == 100
    assert getattr(resolved({}, **{f"default_{rate}": 500, f"max_{rate}": 100}), rate) == 100


@pytest.mark.parametrize("rate", RATES)
def test_more_than_the_most_is_refused_and_the_setting_named(rate: str) -> None:
    with pytest.raises(InvalidOption, match=rf"{rate} is 101; the maximum is 100 \(setting max_{rate}\)"):
        resolved({rate: 101}, **{f"max_{rate}": 100})


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e300, "fast"])
def test_what_is_no_rate_is_refused(rate: str, value: object) -> None:
    with pytest.raises(ValidationError):
        JobOptions(**{rate: value})


def test_a_machine_is_cut_to_them_and_the_networks_only_with_a_network() -> None:
    rates = {"disk_mb_per_second": 20.5, "disk_iops": 100, "network_mbit_per_second": 8.0}
    shape = round_up_shape(1, 256, None, **rates)
    assert (shape.disk_mb_per_second, shape.disk_iops, shape.network_mbit_per_second) == (20.5, 100, None)
    assert round_up_shape(1, 256, None, network=True, **rates).network_mbit_per_second == 8.0
