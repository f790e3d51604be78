"""MMD over training, read from logs: the phases are joined, and a step that was logged twice counts once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from signllm.errors import UsageError
from signllm.experiments.mmd_over_training import draw_alignments, format_alignments, read_alignment_curves
from tests import warm

TOOL = Path(__file__).parents[2] / "tools" / "mmd_over_training"


def validation(step: int, mmd: float, sim: float) -> dict[str, float]:
    return {"step": step, "validate/mmd_fixed": mmd, "validate/l_sim": sim}


def run_with(folder: Path, *log: dict[str, float], frozen: tuple[dict[str, float], ...] = ()) -> Path:
    for place, records in ((folder, log), (folder / "frozen", frozen)):
        place.mkdir(parents=True, exist_ok=True)
        (place / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_joint_phase_continues_the_steps_of_the_first(tmp_path: Path) -> None:
    frozen = ({"step": 3, "l_sim": 2.0}, validation(5, 0.5, 3.0), validation(10, 0.25, 2.0), {"step": 12})
    joint = (validation(4, 0.125, 1.5), {"step": 5}, validation(8, 0.2, 1.25))
    (curve,) = read_alignment_curves([run_with(tmp_path / "run", *joint, frozen=frozen)])
    assert curve.steps == (5, 10, 16, 20)
    assert curve.joint == 12
    assert curve.mmd == (0.5, 0.25, 0.125, 0.2)
    assert curve.sim == (3.0, 2.0, 1.5, 1.25)
    rows = [line.split() for line in format_alignments([curve])[1:]]
    assert rows == [
        ["run", "first", "5", "+0.5000", "3.000"],
        ["run", "least", "16", "+0.1250", "1.500"],
        ["run", "last", "20", "+0.2000", "1.250"],
    ]


def test_the_later_record_of_a_step_counts_and_invalid_records_are_ignored(tmp_path: Path) -> None:
    log = [validation(5, 0.5, 3.0), validation(5, 0.4, 2.0), validation(9, float("nan"), 1.0)]
    log += [{"validate/mmd_fixed": 0.1, "validate/l_sim": 1.0}, {**validation(9, 0.1, 1.0), "step": "x"}]
    (curve,) = read_alignment_curves([run_with(tmp_path / "run", *log)])
    assert (curve.steps, curve.mmd, curve.sim, curve.joint) == ((5,), (0.4,), (2.0,), 0)
    assert "first and least and last" in format_alignments([curve])[1]


def test_the_picture_has_a_line_for_each_run(tmp_path: Path) -> None:
    runs = [
        run_with(tmp_path / name / "run", validation(5, 0.5, 3.0), validation(9, mmd, 1.0))
        for name, mmd in (("with", 0.1), ("without", 0.6))
    ]
    draw_alignments(read_alignment_curves(runs), tmp_path / "mmd.svg")
    drawn = (tmp_path / "mmd.svg").read_text()
    assert "<!-- with -->" in drawn
    assert "<!-- without -->" in drawn
    with pytest.raises(UsageError, match=r"mmd\.txt"):
        draw_alignments(read_alignment_curves(runs), tmp_path / "mmd.txt")


def test_the_tool_prints_draws_and_names_what_a_run_lacks(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", validation(5, 0.5, 3.0), validation(9, 0.1, 1.0))
    done = run_tool(run, "--out", tmp_path / "mmd.png")
    assert done.returncode == 0, done.stderr
    assert "least and last" in done.stdout
    assert (tmp_path / "mmd.png").read_bytes()[1:4] == b"PNG"
    bare = run_tool(run_with(tmp_path / "bare", {"step": 1, "l_mmd": 0.1}), "--out", "none")
    assert bare.returncode == 2
    assert "--training.validate-every" in bare.stderr
    assert run_tool(tmp_path / "none", "--out", "none").returncode == 2


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [warm.python(), str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
