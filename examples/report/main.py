"""Read a file of the script and write two artifacts.

belljar run examples/report --artifacts /tmp/report
"""

import csv
import json
from pathlib import Path

with (Path(__file__).parent / "grades.csv").open() as file:
    rows = list(csv.DictReader(file))
by_student: dict[str, list[float]] = {}
for row in rows:
    by_student.setdefault(row["student"], []).append(float(row["points"]))
report = {student: {"exams": len(points), "mean": sum(points) / len(points)} for student, points in by_student.items()}

out = Path("out")
out.mkdir()
(out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
(out / "report.txt").write_text("".join(f"{name:10} {entry['mean']:5.1f}\n" for name, entry in sorted(report.items())))
print(f"{len(rows)} rows, {len(report)} students; wrote out/report.json and out/report.txt")
