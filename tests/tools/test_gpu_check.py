"""The GPU check without a GPU: kernels compile for Hopper, limits hold, the kernel tests need little."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    *arguments: str, folder: Path = CHECKOUT, path: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=variables, capture_output=True, text=True, timeout=600
    )


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (extra `test`)"
)
def test_every_kernel_compiles_for_hopper_without_spills(tmp_path: Path) -> None:
    script = str(CHECKOUT / "tools" / "gpu_check")
    done = python(script, "--compile-only", folder=tmp_path, OUT=str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "compiled.json").read_text())
    assert not [kernel for kernel in found if kernel["trouble"]], done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    for kernel in found:
        assert 0 < kernel["registers"] <= 255
        assert kernel["shared_bytes"] <= 227 * 1024
        assert kernel["name"] in done.stdout
    modules = (CHECKOUT / "signllm" / "kernels").glob("*_triton.py")
    for operator in (module.stem.removesuffix("_triton") for module in modules):
        assert any(kernel["name"].startswith(operator) for kernel in found), operator
    assert any(k["matrix_units"] == "wgmma" for k in found if k["name"].startswith("vq_assign bf16"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [part["result"] for part in summary["parts"]] == ["ok"]
    assert summary["facts"]["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_checks_nothing(tmp_path: Path) -> None:
    done = python(str(CHECKOUT / "tools" / "gpu_check"), folder=tmp_path)
    assert done.returncode == 2
    assert "no CUDA device here: nothing was checked" in done.stderr
    assert "--compile-only" in done.stderr
    assert not list(tmp_path.iterdir())


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
print([run(part, folder / part.name, folder, dict(os.environ)).result for part in parts])
"""
    done = python("-c", code, path=str(CHECKOUT / "tools"))
    assert done.stdout.splitlines()[-1] == "['stopped after 2 s', 'failed (exit 3)', 'ok']", done.stderr
    assert (tmp_path / "slow").read_text() == "before\n"
    assert "why" in done.stdout


def test_a_kernel_that_cannot_be_compiled_is_told_of() -> None:
    code = """
from checking.compiling import _compiled_of
print([kernel.trouble for kernel in _compiled_of("signllm.kernels.absent_triton", None)])
"""
    done = python("-c", code, path=os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "tools"))))
    assert "no specimens: ModuleNotFoundError" in done.stdout, done.stderr


def test_the_kernel_tests_need_torch_pytest_and_triton_alone(tmp_path: Path) -> None:
    (tmp_path / "hide.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    path = os.pathsep.join((str(CHECKOUT), str(tmp_path)))
    pytest_hiding = ("-m", "pytest", "-p", "hide", "-q", "-p", "no:cacheprovider")
    ran = python(*pytest_hiding, "tests/kernels", "-k", "test_choice", path=path)  # imports them all
    assert ran.returncode == 0, ran.stdout
