"""The benchmarks still run: small cases through their comparison, and their pictures; nothing is timed."""

import json

import jax
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import timing, vocoder_step
from benchmarks.vocoder_step import libraries, networks


@pytest.fixture(autouse=True)
def _quickly(quick_compilation):
    """None of this needs fast programs."""


def test_names_have_dashes_and_no_helpers(capsys):
    assert set(benchmarks.names()) >= {"optimizers", "parity", "vocoder-step"}
    assert "timing" not in benchmarks.names()
    assert benchmarks.main(["vocoder_step"]) == 2
    assert "vocoder-step" in capsys.readouterr().out


def test_results_are_named_after_accelerators(monkeypatch):
    assert timing.path("some", partial=True).name == "some-partial.json"

    class Device:
        platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(jax, "devices", lambda: [Device])
    assert timing.path("some").name == "some-nvidia-h100-80gb-hbm3.json"


class TestVocoderStep:
    def test_networks_have_the_parameters_and_lengths_that_are_documented(self):
        assert [t.parameters for t in networks.melgan(1, 1)] == [1_138_129, 424_001]
        assert networks.multiply_adds(networks.generator(), 32) == 364_118_016
        (v1,) = networks.v1_generator(1, 1)
        assert v1.parameters == 13_926_017

    @pytest.mark.parametrize("task", networks.melgan(1, 1), ids=lambda t: t.name)
    def test_ours_trains(self, task):
        contestants, missing = libraries.contestants(task, ["ours"])
        assert not missing
        vocoder_step.compare(task, contestants)

    @pytest.mark.peers
    @pytest.mark.parametrize("library", ["flax", "haiku", "equinox", "torch"])
    def test_every_library_takes_our_steps(self, library):
        pytest.importorskip(library)
        task = networks.melgan(1, 1)[1]  # grouped and strided, and quick to compile
        small = task._replace(parts=networks.generator()[:2] + networks.discriminator()[-1:], x=task.x.repeat(80, -1))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax and they need it
            contestants, missing = libraries.contestants(small, ["ours", library])
            assert not missing
            vocoder_step.compare(small, contestants)

    def test_the_report_and_the_picture(self, tmp_path):
        seconds = {name: timing.Timing(t, t, t, 1)._asdict() for name, t in (("ours", 0.1), ("torch", 0.2))}
        records = [
            {"network": "N", "step": step, "dtype": "float32", "parameters": 1, "flops": 1e9, "seconds": seconds}
            | {"missing": ["flax: not installed"]}
            for step in ("generator", "discriminator")
        ]
        table = vocoder_step.report(records, 1e11)
        assert "| torch | 200 (200-200), 2.00x | 200 (200-200), 2.00x | 400, 2.00x |" in table
        assert "not run: flax: not installed" in table
        saved = {"machine": timing.machine(), "results": {"records": records}}
        vocoder_step.draw(json.loads(json.dumps(saved)), tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
