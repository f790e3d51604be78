"""The GPU check without a GPU: kernels compile for Hopper, limits hold, the kernel tests need little."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests import warm

CHECKOUT = Path(__file__).parents[2]
ABSENT = (
    "deepspeed",
    "transformers",
    "peft",
    "tyro",
    "av",
    "webdataset",
    "submitit",
    "ot",
    "geomloss",
    "faiss",
)


def python(
    *arguments: str, folder: Path = CHECKOUT, path: str = "", program: str | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run Python as a fork, or as another interpreter."""
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [program or warm.python(), *arguments], cwd=folder, env=variables, capture_output=True, text=True
    )


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (extra `test`)"
)
def test_every_kernel_compiles_for_hopper_without_spills(tmp_path: Path) -> None:
    script = str(CHECKOUT / "tools" / "gpu_check")
    done = python(script, "--compile-only", folder=tmp_path, OUT=str(tmp_path / "out"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [part["result"] for part in summary["parts"]] == ["ok"], done.stdout + done.stderr
    kernels = json.loads((tmp_path / "out" / "compiled.json").read_text())
    assert not [kernel for kernel in kernels if kernel["trouble"]], done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    for kernel in kernels:
        assert 0 < kernel["registers"] <= 255
        assert kernel["shared_bytes"] <= 227 * 1024
        assert kernel["name"] in done.stdout
    modules = (CHECKOUT / "signllm" / "kernels").glob("*_triton.py")
    for operator in (module.stem.removesuffix("_triton") for module in modules):
        assert any(kernel["name"].startswith(operator) for kernel in kernels), operator
    assert any(k["matrix_units"] == "wgmma" for k in kernels if k["name"].startswith("vq_assign bf16"))
    assert summary["facts"]["torch"] == torch.__version__


def test_a_part_that_its_limit_ends_says_so_and_how_to_give_it_more_time(tmp_path: Path) -> None:
    script, out = str(CHECKOUT / "tools" / "gpu_check"), str(tmp_path / "out")
    done = python(script, "--compile-only", "--limit-factor", "0.01", folder=tmp_path, OUT=out)
    assert done.returncode == 1, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (result,) = [part["result"] for part in summary["parts"]]
    assert "limit of 0.6 s" in result
    assert "--limit-factor" in result
    assert result in done.stdout
    refused = python(script, "--limit-factor", "0", folder=tmp_path)
    assert refused.returncode == 2
    assert "--limit-factor" in refused.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_checks_nothing(tmp_path: Path) -> None:
    done = python(str(CHECKOUT / "tools" / "gpu_check"), folder=tmp_path)
    assert done.returncode == 2
    assert "no CUDA device here: nothing was checked" in done.stderr
    assert "--compile-only" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_part_that_there_is_not_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    done = python(str(CHECKOUT / "tools" / "gpu_check"), "--part", "trainin", folder=tmp_path)
    assert done.returncode == 2
    assert "there is no part 'trainin'" in done.stderr
    assert "training-full" in done.stderr
    listed = python(str(CHECKOUT / "tools" / "gpu_check"), "--list", folder=tmp_path)
    assert listed.returncode == 0
    assert "--size 7b --device cuda" in listed.stdout
    assert not list(tmp_path.iterdir())


def test_what_runs_by_default_ends_within_nine_minutes_and_few_enough_files_come_back() -> None:
    code = """
from pathlib import Path
from checking.listed import parts
from checking.parts import chosen
from checking.wheels import LIMIT_S
named = parts(Path("out"), rehearsal=False)
default = chosen(named, [])
print(sum(part.limit_s for part in default) + LIMIT_S, [part.name for part in default])
print([part.name for part in chosen(named, ["training-zero2", "compile"])])
print(len({argument for part in default for argument in part.command if argument.startswith("out/")}))
"""
    done = python("-c", code, path=str(CHECKOUT / "tools"))
    default, named, files = done.stdout.splitlines()
    assert float(default.split()[0]) < 9 * 60, done.stderr
    assert "'training'" in default
    assert "'training-full'" in default
    assert named == "['compile', 'training-zero2']"
    assert int(files) + len(("log.txt", "summary.json")) <= 8


def test_a_part_whose_package_is_missing_is_skipped_and_says_why(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['hjson'] = None\n")
    arguments = ("--rehearse", "--part", "training", "--wheels", str(tmp_path / "none"))
    script = str(CHECKOUT / "tools" / "gpu_check")
    done = python(script, *arguments, folder=tmp_path, path=str(hidden), OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    (part,) = json.loads((tmp_path / "out" / "summary.json").read_text())["parts"]
    assert part["result"].startswith("skipped: import of hjson halted")
    assert "--help" in part["result"]
    assert not (tmp_path / "out" / "training.json").exists()


def test_an_import_that_fails_for_another_reason_is_no_reason_to_skip(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('made to fail')\n")
    code = f"""
import os
from checking.parts import missing
environment = {{**os.environ, "PYTHONPATH": {str(tmp_path)!r}}}
print([missing(needs, environment) for needs in ((), ("json",), ("broken",), ("no_such_module",))])
"""
    done = python("-c", code, path=str(CHECKOUT / "tools"))
    assert done.stdout == """[None, None, None, "No module named 'no_such_module'"]\n""", done.stderr


def test_carried_wheels_come_before_what_the_machine_has(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "hjson-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("hjson.py", "CARRIED = True\n")
        wheel.writestr("hjson-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hjson\nVersion: 99.0\n")
        wheel.writestr("hjson-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("hjson-99.0.dist-info/RECORD", "")
    code = f"""
import os, subprocess, sys
from pathlib import Path
from checking.wheels import installed
folder = Path({str(tmp_path)!r})
print(installed(folder / "wheels", folder / "target"))
print(installed(folder / "empty", folder / "target").startswith("none in"))
(folder / "wheels" / "hjson-98.0-cp27-cp27m-win32.whl").write_bytes(b"")
print(installed(folder / "wheels", folder / "target").startswith("not installed: "))
environment = {{**os.environ, "PYTHONPATH": str(folder / "target")}}
subprocess.run([sys.executable, "-c", "import hjson; print(hjson.CARRIED)"], env=environment)
"""
    path = str(CHECKOUT / "tools")
    done = python("-c", code, path=path, program=sys.executable, PYTHONUNBUFFERED="1")
    assert done.stdout.splitlines() == ["hjson-99.0", "True", "True", "True"], done.stderr


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_training_is_rehearsed_without_a_gpu(tmp_path: Path) -> None:
    arguments = ("--rehearse", "--part", "training", "--wheels", str(tmp_path / "none"))
    script = str(CHECKOUT / "tools" / "gpu_check")
    done = python(script, *arguments, folder=tmp_path, OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "log.txt",
        "summary.json",
        "training.json",
    ]
    assert "ratio:" in done.stdout
    assert "ratio:" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_quantised_weights_are_rehearsed_without_a_gpu() -> None:
    path = os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "tools"), os.environ.get("PYTHONPATH", "")))
    done = python("-m", "checking.quantised", "cpu", path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert [line.split()[:2] for line in lines] == [
        [bits, learns] for learns in ("frozen", "LoRA") for bits in ("none", "8bit", "4bit")
    ]
    assert all(line.endswith("16 bits  ok") for line in lines)


def test_a_part_is_stopped_at_its_limit_and_a_failed_one_stops_nothing(tmp_path: Path) -> None:
    code = f"""
import json, os, sys
from pathlib import Path
from checking.parts import Part, run
folder = Path({str(tmp_path)!r})
child = "import subprocess, sys; print('before', flush=True); subprocess.run(['sleep', '60'])"
parts = [Part(name="slow", command=[sys.executable, "-c", child], limit_s=2),
         Part(name="wrong", command=[sys.executable, "-c", "print('why'); exit(3)"], limit_s=20),
         Part(name="right", command=[sys.executable, "-c", "print('done')"], limit_s=20)]
results = [run(part, folder / part.name, folder, dict(os.environ)).result for part in parts]
print([result.partition(":")[0] for result in results])
"""
    done = python("-c", code, path=str(CHECKOUT / "tools"))
    assert done.stdout.splitlines()[-1] == "['stopped at its limit of 2 s', 'failed (exit 3)', 'ok']", (
        done.stderr
    )
    assert (tmp_path / "slow").read_text() == "== slow (limit 2 s)\nbefore\n"
    assert "why" in done.stdout


def test_a_kernel_that_cannot_be_compiled_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / "tools")
    from checking.compiling import _compiled_of

    troubles = [kernel.trouble for kernel in _compiled_of("signllm.kernels.absent_triton", None)]
    assert len(troubles) == 1
    assert troubles[0].startswith("no kernel_variants: ModuleNotFoundError")


def test_the_kernel_tests_need_torch_pytest_and_triton_alone(tmp_path: Path) -> None:
    (tmp_path / "hide.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    path = os.pathsep.join((str(CHECKOUT), str(tmp_path)))
    pytest_hiding = ("-m", "pytest", "-p", "hide", "-q", "-p", "no:cacheprovider")
    ran = python(
        *pytest_hiding, "tests/kernels", "-k", "test_implementation", path=path, program=sys.executable
    )  # imports them all
    assert ran.returncode == 0, ran.stdout
