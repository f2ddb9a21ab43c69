"""`bench/plot` draws what `belljar bench --json` prints."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

PLOT = Path(__file__).parents[2] / "bench" / "plot"
MACHINE = {"cpus": 2, "cpu": "A & B", "hypervisor": "qemu 7.2", "accelerator": "tcg"}


def drawn(tmp_path: Path, measured: dict[str, Any]) -> tuple[ElementTree.Element, list[str]]:
    """Return the root of the SVG and its texts."""
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps({"machine": MACHINE, **measured}))
    run = subprocess.run([sys.executable, PLOT, figures], capture_output=True, text=True, check=True, timeout=60)
    root = ElementTree.fromstring(run.stdout)
    return root, [element.text or "" for element in root.iter() if element.tag.endswith("text")]


def test_figures_become_bars(tmp_path: Path) -> None:
    names = ["job, POST /v1/jobs?wait → ended, from pool", "bubblewrap: namespaces", "boot: machine spawned"]
    figures = [{"name": name, "unit": "ms", "p50": 10.0 * n, "p99": 20.0 * n} for n, name in enumerate(names, start=1)]
    root, texts = drawn(tmp_path, {"figures": figures})
    assert sum(element.tag.endswith("rect") for element in root) == 3  # the background and two bars
    assert {"belljar over HTTP, from pool", "10 ms", "20 ms"} <= set(texts)


def test_latency_over_load_becomes_lines_with_the_part_of_hits(tmp_path: Path) -> None:
    def figures(target: str, arrivals: str, rate: float, p50: float, hits: float | None) -> dict[str, Any]:
        run = {"target": target, "arrivals": arrivals, "rate_per_second": rate, "jobs": 9, "failed": 0}
        return {**run, "hit_rate": hits, "p50_ms": p50, "p90_ms": 2 * p50, "p99_ms": 3 * p50}

    sustained = [
        figures(target, arrivals, rate, p50 * rate, hits)
        for target, p50, hits in (("belljar", 50.0, 0.97), ("before", 90.0, 0.5), ("runsc & co", 200.0, None))
        for arrivals in ("fixed", "poisson")
        for rate in (1.0, 2.0)
    ]
    sustained.append(figures("belljar", "fixed", 1.0, 70.0, 0.99))  # another round: the median counts
    sustained.append(figures("broken", "fixed", 1.0, 0.0, None))  # everything failed
    root, texts = drawn(tmp_path, {"sustained": sustained, "highest": []})
    assert sum(element.tag.endswith("polyline") for element in root) == 3 * 2 * 2
    assert [texts.count(text) for text in ("97%", "98%", "50%")] == [3, 1, 4]
    assert {"equal intervals", "random intervals (Poisson)", "belljar", "before", "runsc & co"} <= set(texts)
    assert "broken" not in texts
