"""Profiles: what ships is whole, what a site writes is checked, unset fields stay the site's."""

from pathlib import Path

import pytest

from signllm.cluster.profile import Profile, load_profile
from signllm.errors import UsageError
from signllm.shipped import shipped_folder


@pytest.mark.parametrize("path", sorted(shipped_folder("slurm").glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_profile_gives_every_gpu_a_rank(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile == load_profile(str(path))
    assert profile.executor == "local" or profile.tasks_per_node is None
    assert profile.partition is None
    assert profile.account is None


def test_unset_fields_are_left_to_the_site() -> None:
    asked = Profile(nodes=2, mem_gb=1.5).slurm_parameters("job")
    assert asked["nodes"] == 2
    assert asked["mem"] == "1.5GB"
    assert not {"partition", "account", "qos", "constraint", "gpus_per_node"} & set(asked)


def test_environment_is_quoted_for_the_shell() -> None:
    assert Profile(environment={"A": "b c"}).exports() == ["export A='b c'"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nods = 3", "did you mean 'nodes'"),
        ("nodes = 'three'", "nodes is 'three', not int"),
        ("executor = 'slrm'", "did you mean 'slurm'"),
        ("nodes = ", "not TOML"),
        ("nodes = 0", "give 1 or more"),
        ("array_parallelism = 0", "1 or more, or leave it out"),
        ("tasks_per_node = 8\ngpus = 4", "every GPU gets one task"),
        ("time = 1\nsignal_delay_s = 90", "shorter delay"),
        ("executor = 'local'\nnodes = 2", "this one machine"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_remedy(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=told):
        load_profile(str(tmp_path / "mine.toml"))


def test_an_unknown_profile_names_what_there_is() -> None:
    with pytest.raises(UsageError, match="a100, cpu, h100, local"):
        load_profile("dgx")
    with pytest.raises(UsageError, match="no file"):
        load_profile("sites/dgx.toml")
