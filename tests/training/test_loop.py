"""The loop as processes: ZeRO stages and numbers of ranks agree; stopping is as not having stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from signllm.package_files import package_folder
from signllm.training.checkpoint import last_checkpoint
from signllm.training.training_log import read_log
from tests import warm
from tests.training.toy import FRAMES, build

STEPS = 11
STAGES = ("zero0", "zero1", "zero2", "zero3")
LEFT = {"zero0": "zero3", "zero2": "zero0", "zero3": "zero2"}
"""Runs that a signal to rank 1 ends early on 2 ranks, and the stage under which 1 rank continues them."""
FLOAT_NOISE = 2e-6
"""Ranks and stages add the same fp32 numbers in another order; losses are about 0.1."""


def order(
    run: Path,
    deepspeed: str = "zero2",
    *,
    dropout: float = 0.0,
    trouble: tuple | None = None,
    until: int | None = None,
    **config,
) -> dict:
    asked = {
        "deepspeed": deepspeed,
        "steps": STEPS,
        "learning_rate": 0.02,
        "warmup_steps": 2,
        "save_every": 4,
        **config,
    }
    made = {"run": str(run), "config": asked, "dropout": dropout, "until": until}
    return made | ({"trouble": dict(zip(("kind", "at", "rank"), trouble, strict=True))} if trouble else {})


def launch(orders: list[dict], *, ranks: int) -> warm.Ended:
    """Carry out orders by ``ranks`` processes; one rank is a plain process without a launcher's variables."""
    words = ("tests.training.run_toy", json.dumps(orders))
    return warm.run(*words) if ranks == 1 else warm.run_ranks(*words, ranks=ranks)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in read_log(run)]


def ended(run: Path, rank: int = 0) -> dict:
    return json.loads((run / f"rank-{rank}.json").read_text())


def outcome(run: Path, rank: int = 0) -> tuple[int, bool]:
    return ended(run, rank)["step"], ended(run, rank)["preempted"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = last_checkpoint(run)
    assert folder is not None
    return load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: 2 ranks up to a kill -9, 1 rank over what they left, 2 ranks up to an exception."""
    root = tmp_path_factory.mktemp("runs")
    two = [order(root / f"two-{stage}", stage) for stage in STAGES]
    settings = json.loads((package_folder("ds_configs") / "zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # cut even the toy's tiny weights
    (root / "cut.json").write_text(json.dumps(settings))
    settings["zero_optimization"]["zero_hpz_partition_size"] = 2  # both ranks are a node
    (root / "hpz.json").write_text(json.dumps(settings))
    two += [order(root / f"two-{name}", str(root / f"{name}.json")) for name in ("cut", "hpz")]
    two += [order(root / "two-offload", "zero3_offload")]
    two += [order(root / f"gradient-{stage}", stage, trouble=("gradient", 7, 1)) for stage in STAGES]
    two += [order(root / "accumulated", accumulation=2), order(root / "nan", "zero1", trouble=("nan", 6, 1))]
    two += [order(root / f"left-{stage}", stage, trouble=("usr2", 5, 1)) for stage in LEFT]
    killed = launch([*two, order(root / "killed", "zero3", dropout=0.3, trouble=("kill", 6, 1))], ranks=2)
    assert killed.codes[1] == -signal.SIGKILL
    assert killed.stdout.strip() == "", f"a library wrote to standard output: {killed.stdout[:500]}"
    for stage in LEFT:
        assert [outcome(root / f"left-{stage}", rank) for rank in (0, 1)] == [(6, True)] * 2
    assert losses(root / "killed")[-1][0] >= 5, "it got beyond the checkpoint of step 4"

    single_rank = [order(root / "one", "zero0"), order(root / "one-zero3", "zero3")]
    single_rank += [order(root / f"left-{stage}", other) for stage, other in LEFT.items()]
    single_rank += [order(root / "stretches", "zero0", log_every=3, until=until) for until in (5, 6, 50)]
    done = launch(single_rank, ranks=1)
    assert not any(done.codes), done.stderr

    two = [
        order(root / "killed", "zero3", dropout=0.3, profile=2),
        order(root / "whole", "zero3", dropout=0.3),
    ]
    done = launch([*two, order(root / "raised", trouble=("raise", 3, 1))], ranks=2)
    assert not any(done.codes), done.stderr
    return root


ALIKE = [*(f"two-{name}" for name in (*STAGES, "cut", "hpz", "offload")), "one-zero3"]


@pytest.mark.parametrize("name", ALIKE)
def test_stages_and_ranks_log_the_same_losses(runs: Path, name: str) -> None:
    # The toy takes its branches in turn, so in each step a parameter has no gradient.
    assert [step for step, _ in losses(runs / name)] == list(range(1, STEPS + 1))
    values = [loss for _, loss in losses(runs / name)]
    assert values == pytest.approx([loss for _, loss in losses(runs / "one")], abs=FLOAT_NOISE)


@pytest.mark.parametrize("name", ALIKE)
def test_stages_and_ranks_log_the_same_gradient_norms(runs: Path, name: str) -> None:
    result, expected = ([line["grad_norm"] for line in read_log(runs / of)] for of in (name, "one"))
    assert result == pytest.approx(expected, abs=FLOAT_NOISE)
    assert min(result) > 0.05


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_no_number_on_one_rank_stops_all_before_it_is_saved(
    runs: Path, stage: str
) -> None:
    """The loss of the step is sound; ZeRO-0 would have taken the step, and step 8 would have been saved."""
    for rank in (0, 1):
        assert ended(runs / f"gradient-{stage}", rank)["error"] == "NotFiniteError"
        assert "the gradient of step 8 is not a number" in ended(runs / f"gradient-{stage}", rank)["message"]
    assert last_checkpoint(runs / f"gradient-{stage}").name == "step-00000004"


def test_stretches_are_one_run(runs: Path) -> None:
    """Stopped at steps 5 and 6: the schedule, a cosine, runs over all steps, and the log shows no seam."""
    assert losses(runs / "stretches") == [
        (step, loss) for step, loss in losses(runs / "one") if step in (3, 6, 9, 11)
    ]
    assert outcome(runs / "stretches") == (STEPS, False)


def test_zero3_leaves_half_of_the_frozen_weights_on_each_of_two_ranks(runs: Path) -> None:
    frozen = sum(p.numel() for p in build().head.parameters())
    for rank in (0, 1):
        frozen_bytes = ended(runs / "two-cut", rank)["frozen_held"]
        assert frozen / 2 <= frozen_bytes <= frozen / 2 + 4, (
            "up to one element of padding for each of four tensors"
        )
    assert ended(runs / "one")["frozen_held"] == frozen


@pytest.mark.parametrize("name", ["one", "two-zero2", "two-zero3", "accumulated"])
def test_counts_are_summed_over_ranks_and_forward_passes(runs: Path, name: str) -> None:
    for line in read_log(runs / name):
        assert line["frames_per_s"] == pytest.approx(FRAMES * line["videos_per_s"])
        assert 0.0 <= line["data_wait"] < 1.0
        assert line["memory_gib"] >= line["memory_mean_gib"] > 0.05, "a process with torch in it"


def test_learning_happens(runs: Path) -> None:
    values = [loss for _, loss in losses(runs / "one")]
    assert sum(values[-3:]) < 0.8 * sum(values[:3])


def test_stages_end_with_the_same_weights(runs: Path) -> None:
    expected = weights(runs / "one")
    assert "mean" in expected, "buffers of trainable modules are kept"
    assert not any(name.startswith("head") for name in expected), "frozen parts are not"
    for stage in STAGES:
        result = weights(runs / f"two-{stage}")
        assert result.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(result[name], expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stage", LEFT)
def test_two_ranks_preempted_resume_on_one_under_another_stage(runs: Path, stage: str) -> None:
    assert outcome(runs / f"left-{stage}") == (STEPS, False)
    values = [loss for _, loss in losses(runs / f"left-{stage}")]
    assert values == pytest.approx([loss for _, loss in losses(runs / "one")], abs=FLOAT_NOISE)


def test_accumulation_takes_as_many_steps_of_smaller_forwards(runs: Path) -> None:
    assert outcome(runs / "accumulated") == (STEPS, False)
    state = json.loads((last_checkpoint(runs / "accumulated") / "state.json").read_text())
    assert state["order"]["epoch"] * 5 * 2 + state["order"]["samples_consumed"] == STEPS * 4


def test_nan_on_one_rank_stops_all_with_the_same_message(runs: Path) -> None:
    for rank in (0, 1):
        assert ended(runs / "nan", rank)["error"] == "NotFiniteError"
        assert "loss of step 7 is not a number" in ended(runs / "nan", rank)["message"]
    assert "on rank 1: ['loss']" in ended(runs / "nan", 1)["message"]
    assert "nothing wrong" in ended(runs / "nan", 0)["message"]
    assert last_checkpoint(runs / "nan").name == "step-00000004", "the broken step is not saved"


def test_kill_and_restart_equals_not_having_stopped(runs: Path) -> None:
    assert losses(runs / "killed") == losses(runs / "whole")
    resumed, expected = weights(runs / "killed"), weights(runs / "whole")
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_profile_of_two_steps_after_the_resume_is_a_trace_of_each_rank(runs: Path) -> None:
    """That it changes nothing is in the test before: the resumed run was traced, the other was not."""
    written = {path.name: path for path in (runs / "killed" / "profile").iterdir()}
    assert set(written) == {f"toy-rank-{rank}.10.pt.trace.json" for rank in (0, 1)}
    for path in written.values():
        events = json.loads(path.read_text())["traceEvents"]
        assert sum(event["name"].startswith("ProfilerStep#") for event in events if event["ph"] == "X") == 2
        assert any(event["name"] == "aten::addmm" for event in events)
    assert not (runs / "whole" / "profile").exists()


def test_the_start_tells_what_the_run_sets_out_to_do(runs: Path) -> None:
    result = json.loads((runs / "two-cut" / "startup.json").read_text())
    assert (result["ranks"], result["zero_stage"], result["precision"]) == (2, 3, "fp32")
    assert result["batch"] == {"videos": 4, "per_rank": 2, "forward_passes": 1}
    assert result["steps"] == {"first": 0, "end": STEPS, "epochs": None}
    assert result["resumes"] is None
    assert result["parameters"] == {
        "body": {"trained": 104, "frozen": 0},
        "branches": {"trained": 140, "frozen": 0},
        "head": {"trained": 0, "frozen": 84},
    }
    assert result["held_bytes"]["frozen"] == 4 * max(
        ended(runs / "two-cut", r)["frozen_held"] for r in (0, 1)
    )
    resumed = json.loads((runs / "killed" / "startup.json").read_text())
    assert (resumed["steps"]["first"], resumed["resumes"]) == (4, "checkpoints/step-00000004")


def test_an_exception_on_one_rank_ends_the_others_with_its_message(runs: Path) -> None:
    assert ended(runs / "raised", 1) == {"error": "LookupError", "message": "video 17 is broken"}
    other = ended(runs / "raised", 0)
    assert other["error"] == "RankFailedError"
    assert "rank-1 failed first" in other["message"]
    assert "video 17 is broken" in other["message"]
