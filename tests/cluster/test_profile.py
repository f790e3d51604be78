"""Profiles: what ships is whole, what a site writes is checked, unset fields stay the site's."""

from dataclasses import replace
from pathlib import Path

import pytest

from signllm.cluster.profile import Profile, load_profile
from signllm.errors import UsageError
from signllm.package_files import package_folder


@pytest.mark.parametrize("path", sorted(package_folder("slurm").glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_profile_gives_every_gpu_a_rank(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile == load_profile(str(path))
    assert profile.executor == "local" or profile.ranks_per_node == max(1, profile.gpus)
    assert profile.partition is None
    assert profile.account is None


def test_unset_fields_are_left_to_the_site() -> None:
    asked = Profile(nodes=2, mem_gb=1.5).slurm_parameters("job")
    assert asked["nodes"] == 2
    assert asked["mem"] == "1.5GB"
    assert not {"partition", "account", "qos", "constraint", "gpus_per_node"} & set(asked)


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        (90, 90),
        ("90", 90),
        ("90:01", 91),
        ("24:00:00", 1440),
        ("00:00:01", 1),
        ("2-00:00:00", 2880),
        ("2-12", 3600),
        ("1-02:03", 1563),
    ],
)
def test_wall_time_is_what_slurm_reads(time: int | str, minutes: int) -> None:
    """Man sbatch: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; resolution is a minute, rounded up."""
    assert Profile(time=time, signal_delay_s=1).slurm_parameters("job")["time"] == minutes


def test_every_gpu_gets_one_rank() -> None:
    profile = replace(load_profile("local"), gpus=4)
    assert load_profile("local").ranks == 2
    assert profile.ranks == 4
    assert replace(profile, executor="slurm", nodes=3).ranks == 12


def test_a_switch_has_no_value() -> None:
    asked = Profile(additional={"exclusive": "", "reservation": "sign"}).slurm_parameters("job")
    assert asked["additional_parameters"] == {"requeue": True, "exclusive": True, "reservation": "sign"}


def test_what_only_looks_like_a_secret_is_none() -> None:
    Profile(environment={"TOKENIZERS_PARALLELISM": "false", "NCCL_DEBUG": "WARN"})
    Profile(setup=("export HF_TOKEN=$(cat ~/.hf-token)", 'export HF_TOKEN="$MINE"', "module load cuda"))


def test_environment_is_quoted_for_the_shell() -> None:
    assert Profile(environment={"A": "b c"}).exports() == ["export A='b c'"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nods = 3", "did you mean 'nodes'"),
        ("nodes = 'three'", "nodes is 'three', not int"),
        ("executor = 'slrm'", "did you mean 'slurm'"),
        ("nodes = ", "not TOML"),
        ("nodes = 0", "give 1 or more"),
        ("array_parallelism = 0", "1 or more, or leave it out"),
        ("time = 'soon'", "give minutes, HH:MM:SS or D-HH:MM:SS"),
        ("time = 0\nsignal_delay_s = 0", "give minutes"),
        ("[additional]\ngpus_per_node = '4'", "set it by --gpus"),
        ("[environment]\nHF_TOKEN = 'hf_1'", "export HF_TOKEN in the shell that launches"),
        ("setup = ['export WANDB_API_KEY=1']", "WANDB_API_KEY, which looks like a secret"),
        ("time = 1\nsignal_delay_s = 90", "shorter delay"),
        ("executor = 'local'\nnodes = 2", "cannot use 2 nodes"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_remedy(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_profile(str(tmp_path / "mine.toml"))


def test_an_unknown_profile_names_what_there_is() -> None:
    with pytest.raises(UsageError, match="a100, cpu, h100, local"):
        load_profile("dgx")
    with pytest.raises(UsageError, match="no file"):
        load_profile("sites/dgx.toml")
