"""The benchmarks still run: small cases through their comparison, and their pictures; nothing is timed."""

import functools
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import kernels, memory, muon, sequence, timing, training, vocoder_step
from benchmarks.kernels import picture, programs, report
from benchmarks.kernels.cases import CASES, FAMILIES
from benchmarks.sequence import attention, generation, gpt, norms, recurrent
from benchmarks.sequence import libraries as sequence_libraries
from benchmarks.training import depth, loops, problems, processes, sweeps
from benchmarks.training import libraries as training_libraries
from benchmarks.training import picture as training_picture
from benchmarks.vocoder_step import libraries, networks


def test_names_have_dashes_and_no_helpers(capsys):
    assert set(benchmarks.names()) >= {"kernels", "optimizers", "parity", "training", "vocoder-step"}
    assert "timing" not in benchmarks.names()
    assert benchmarks.main(["vocoder_step"]) == 2
    assert "vocoder-step" in capsys.readouterr().out


def test_results_are_named_after_accelerators(monkeypatch):
    class Device:
        platform, device_kind = "cpu", "cpu"

    monkeypatch.setattr(jax, "devices", lambda: [Device])
    assert timing.path("some", partial=True).name == "some-partial.json"
    Device.platform, Device.device_kind = "gpu", "NVIDIA H100 80GB HBM3"
    assert timing.path("some").name == "some-nvidia-h100-80gb-hbm3.json"


def test_results_of_another_jax_or_processor_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform="cpu", device_kind="cpu")])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    here = {"cpu": "Some (R) CPU", "instructions": "AVX2", "versions": {"jax": "0.10.2"}, "devices": ["cpu"]}
    monkeypatch.setattr(timing, "machine", lambda: here)
    assert timing.save("some", [1]).name == "some.json"
    assert timing.path("some").name == "some.json"  # the same machine's next run
    for change in ({"versions": {"jax": "0.12.0"}}, {"cpu": "Other"}, {"instructions": "AMX"}):
        other = here | change
        monkeypatch.setattr(timing, "machine", lambda other=other: other)
        cpu = "-".join(other["cpu"].lower().replace("(r)", "r").split())
        expected = f"some-jax-{other['versions']['jax']}-{cpu}-{other['instructions'].lower()}.json"
        assert timing.save("some", [2]).name == expected
        assert timing.path("some", partial=True).name == "some-partial.json"
    saved = json.loads((tmp_path / "some.json").read_text())
    assert saved["results"] == [1]
    del saved["machine"]["instructions"]  # an older run, which does not say
    (tmp_path / "some.json").write_text(json.dumps(saved))
    monkeypatch.setattr(timing, "machine", lambda: here)
    assert timing.path("some").name == "some.json"


def test_at_their_own_pace_the_slow_are_called_less_often(monkeypatch):
    calls, now = {"fast": 0, "slow": 0}, [0.0]
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda seconds: None))

    def run(name):
        calls[name] += 1
        now[0] += 0.03 if name == "slow" else 0.001

    contestants = {name: functools.partial(run, name) for name in calls}
    times = timing.interleaved(contestants, seconds=0.05, warmup=1, minimum=3, own_pace=True)
    assert times["slow"].repetitions == 3
    assert times["fast"].repetitions in (49, 50)  # by rounding
    assert calls == {"slow": 1 + 3, "fast": 1 + 2 * times["fast"].repetitions}
    even = timing.interleaved(contestants, seconds=0.0, warmup=0, minimum=2)
    assert [t.repetitions for t in even.values()] == [2, 2]


def test_muon(monkeypatch, capsys, tmp_path):
    """Of few arrays; PyTorch's, if it is there, in float32 too, and it ends where ours ends."""
    arrays = {name: np.ones(shape, np.float32) for name, shape in (("wide", (4, 8)), ("tall", (8, 4)), ("bias", (4,)))}
    arrays["wide"][0], arrays["tall"][0] = 3.0, -2.0
    monkeypatch.setattr(muon, "transformer", lambda quick: arrays)
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(timing, "matrix_product_flops", lambda: 1e9)
    monkeypatch.setattr(
        timing, "interleaved", lambda runs, **_: {name: timing.Timing(1.0, 1.0, 1.0, 1) for name in runs}
    )
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        muon.main(["--quick"])
    assert "Muon: 3 arrays, 68 numbers, 64 in matrices" in (printed := capsys.readouterr().out)
    assert "| ours | 1000 (1000-1000) |" in printed
    assert timing.path("muon", partial=True).exists()


def test_memory_is_measured_of_every_way(tmp_path):
    memory.write(tmp_path / "x.npy", 1)
    found = {way: memory.child(way, str(tmp_path / "x.npy")) for way in ("mapped", "blocks")}
    assert all(record["bytes"] >= 0 and record["seconds"] > 0 for record in found.values())
    assert memory.report(found).count("\n") == 3


class TestKernels:
    def test_the_table(self):
        assert len(CASES) >= 60
        assert len({(case.family, case.label) for case in CASES}) == len(CASES)
        assert FAMILIES == ("dense", "strided", "dilated", "grouped", "depthwise", "image", "transposed", "pooling")
        for case in CASES:
            up = case.operation == "conv_transpose"
            assert case.out_lengths == tuple(case.stride * n if up else n // case.stride for n in case.lengths), case

    @pytest.mark.parametrize("family", FAMILIES)
    def test_ours_is_lax_in_every_mode(self, family):
        case = smallest(family)
        for mode in case.modes:
            programs.compare(programs.contestants(case, mode, "float32", libraries=("ours", "lax")), case.label)

    @pytest.mark.peers
    @pytest.mark.parametrize("family", FAMILIES)
    def test_pytorch_is_lax_in_every_mode(self, family):
        pytest.importorskip("torch")
        case = smallest(family)
        for mode in case.modes:
            found = programs.contestants(case, mode, "float32")
            of_torch = [name for name in found if name.startswith("torch")]
            assert len(of_torch) == (2 if "vmap" in mode or len(case.lengths) == 2 else 1)
            del found["ours"]  # which is lax by the test above, and need not be compiled again
            programs.compare(found, case.label)

    def test_a_wrong_result_raises(self, monkeypatch):
        case = smallest("dense")
        monkeypatch.setattr(programs.kernels, "conv", lambda x, kernel, **_: jnp.zeros((1, 8, case.filters)))
        wrong = programs.contestants(case, "forward", "float32", libraries=("ours", "lax"))
        with pytest.raises(AssertionError, match=r"somewhere: y of ours is off by 1.0e\+00 of the largest entry"):
            programs.compare(wrong, "somewhere")

    def test_the_report_and_the_picture(self, tmp_path, monkeypatch):
        monkeypatch.setattr(kernels, "contestants", functools.partial(programs.contestants, libraries=("ours", "lax")))
        records = [
            kernels.measure(*one, kernels.prepare(*one), 1e-4, 1e11)
            for one in itertools.product(map(smallest, FAMILIES), ("gradient", "vmap"), ("float32",))
        ]
        for record in records:
            record["seconds"] |= {"torch loop": {**record["seconds"]["ours"], "median": 0.5}}
        table = report.family_table(records)
        assert table.count("\n") == 1 + len(records)
        assert "| vmap 2 |" in table
        assert " loop |" in table
        assert report.summary_table(records).count("\n") == 1 + len(records)
        assert report.compile_table(records).count("\n") == 1 + len(FAMILIES)
        saved = {"machine": timing.machine(), "results": {"records": records}}
        picture.draw(json.loads(json.dumps(saved)), tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

    def test_the_better_of_in_turns_and_alone_counts(self):
        def times(median):
            return {"median": median, "low": median, "high": median, "repetitions": 3}

        record = {
            "seconds": {"ours": times(2.0), "lax": times(3.0), "torch loop": times(5.0), "torch vmap": times(9.0)},
            "alone": {"ours": times(1.6), "torch loop": times(4.0)},
        }
        assert report.best(record, "ours") == (times(1.6), "alone")
        assert report.best(record, "lax") == (times(3.0), "")
        assert report.best(record, "torch") == (times(4.0), "loop, alone")
        assert report.ratios(record) == {"lax": 1.5, "torch": 2.5}  # lax in turns, as it is timed
        del record["seconds"]["torch loop"], record["seconds"]["torch vmap"], record["alone"]
        assert report.ratios(record) == {"lax": 1.5}

    def test_a_process_of_its_own_is_asked_for_the_same_plan(self, monkeypatch):
        options = kernels.parse(["--quick", "--mode", "forward", "--dtype", "float32", "--seconds", "0.001"])
        records = [
            kernels.measure(*one, kernels.prepare(*one, libraries=("lax",)), 1e-4, 1e11)
            for one in kernels.plan_of("pooling", options)
        ]
        monkeypatch.setattr(kernels, "ALONE", ("ours",))
        kernels.measure_alone(records, "pooling", options)
        assert all(set(record["seconds"]) == {"lax"} and set(record["alone"]) == {"ours"} for record in records)

    def test_times_of_a_process_of_its_own_go_to_the_records_of_their_cases(self, monkeypatch):
        each = itertools.product(("some", "other"), ("forward", "gradient"), ("float32", "bfloat16"))
        records = [{"case": case, "mode": mode, "dtype": dtype} for case, mode, dtype in each]
        printed = json.dumps([record | {"seconds": {"ours": i}} for i, record in enumerate(records)][::-1])
        process = kernels.subprocess.CompletedProcess([], 0, stdout=f"progress\n{printed}\n")
        monkeypatch.setattr(kernels.subprocess, "run", lambda *_, **__: process)
        monkeypatch.setattr(kernels, "ALONE", ("ours",))
        kernels.measure_alone(records, "pooling", kernels.parse([]))
        assert [record["alone"] for record in records] == [{"ours": i} for i in range(len(records))]

    def test_processes_measure_the_same_plan(self, monkeypatch):
        plan = [(smallest("pooling"), mode, "float32") for mode in ("forward", "gradient")]
        wrong = smallest("pooling")._replace(operation="no_such_pool"), "forward", "float32"
        records = kernels.in_processes(2, [plan[0], wrong, plan[1]], 1e-4, {"float32": 1e11})
        assert [record["mode"] for record in records] == ["forward", "gradient"]
        assert all(record["seconds"]["ours"]["repetitions"] >= 3 for record in records)

    def test_what_compiling_costs_and_saves(self):
        seconds = {name: {"median": median} for name, median in (("ours", 1.0), ("lax", 4.0))}
        record = {"family": "dense", "case": "a case", "mode": "gradient", "seconds": seconds}
        slow, quick = (record | {"compile_seconds": {"ours": ours, "lax": 1.25}} for ours in (3.0, 1.0))
        rows = report.compile_table([quick, slow]).splitlines()[2:]
        assert rows == ["| dense | 2.00 | 1.25 | 1.75 (a case) | 45 |"]


def smallest(family):
    """A representative case, cut down to a few numbers."""
    case = next(case for case in CASES if case.family == family and case.copies)
    groups = min(case.groups, 4)
    return case._replace(
        batch=1,
        lengths=(8,) * len(case.lengths),
        channels=4,
        filters=4 if groups > 1 or case.pooling else 6,
        size=min(case.size, 5),
        stride=min(case.stride, 2),
        dilation=min(case.dilation, 2),
        groups=groups,
        copies=2,
        both=True,
    )


def small_task():
    """Grouped and strided, and quick to compile."""
    task = networks.melgan(1, 1)[1]
    return task._replace(parts=networks.generator()[:2] + networks.discriminator()[-1:], x=task.x.repeat(80, -1))


class TestVocoderStep:
    def test_networks_have_the_parameters_and_lengths_that_are_documented(self):
        assert [t.parameters for t in networks.melgan(1, 1)] == [1_138_129, 424_001]
        assert networks.multiply_adds(networks.generator(), 32) == 364_118_016
        (v1,) = networks.v1_generator(1, 1)
        assert v1.parameters == 13_926_017

    def test_ours_trains(self):
        contestants, missing = libraries.contestants(small_task(), ["ours"])
        assert not missing
        vocoder_step.compare(small_task(), contestants)

    @pytest.mark.peers
    @pytest.mark.parametrize("library", ["flax", "haiku", "equinox", "torch"])
    def test_every_library_takes_our_steps(self, library):
        pytest.importorskip(library)
        small = small_task()
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax and they need it
            contestants, missing = libraries.contestants(small, ["ours", library])
            assert not missing
            vocoder_step.compare(small, contestants)

    def test_the_report_and_the_picture(self, tmp_path):
        def times(**seconds):
            return {name: timing.Timing(t, t, t, 1)._asdict() for name, t in seconds.items()}

        records = [
            {"network": "N", "step": step, "dtype": "float32", "parameters": 1, "flops": 1e9}
            | {"seconds": times(ours=0.1, torch=0.2), "missing": ["flax: not installed"]}
            | {"alone": times(ours=0.11) | {"torch, CUDA graph": times(torch=0.15)["torch"]}}
            for step in ("generator", "discriminator")
        ]
        table = vocoder_step.report(records, 1e11)
        assert "| torch | 200 (200-200), 2.00x | 200 (200-200), 2.00x | 400, 2.00x |" in table
        assert "not run: flax: not installed" in table
        assert "| torch, CUDA graph | 150 (150-150), 1.36x |" in table
        assert "PyTorch's best, torch, CUDA graph, alone: 300 ms for 200 of ours, 1.50x" in table
        saved = {"machine": timing.machine(), "results": {"records": records}}
        vocoder_step.draw(json.loads(json.dumps(saved)), tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


class TestTraining:
    def test_digits_networks_and_batches(self):
        pytest.importorskip("sklearn")
        mlp, conv = problems.digits_mlp(), problems.digits_conv()
        assert mlp.steps == conv.steps == 19
        assert mlp.order(0).shape == (19, 64)
        assert (mlp.order(0) != mlp.order(1)).any()
        assert sum(leaf.size for w in mlp.weights().values() for leaf in w.values()) == 26_122
        assert conv.one_step().steps == 1

    def test_series_are_those_of_the_archive(self):
        pytest.importorskip("aeon")
        italy, leaf = problems.italy_power_demand(), problems.osu_leaf()
        assert (italy.train[0].shape, italy.held_out[0].shape) == ((67, 24, 1), (1029, 24, 1))
        assert (leaf.train[0].shape, leaf.held_out[0].shape) == ((200, 427, 1), (242, 427, 1))
        assert set(leaf.train[1].tolist()) == set(range(6))
        assert italy.train[0][0, :2, 0].tolist() == pytest.approx([-0.71051757, -1.1833204])

    @pytest.mark.peers
    @pytest.mark.parametrize("name", ["flax, device", "flax, scan", "equinox", "torch, fused"])
    def test_every_library_has_our_losses(self, name):
        pytest.importorskip(name.partition(",")[0])
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax and they need it
            found, missing = training_libraries.contestants(tiny(), ["ours", name], validate=True)
            assert not missing
            loops.compare(tiny(), found)
            scores = [train(2).accuracy for train in found.values()]
        assert scores[0] is not None
        assert scores[0] == pytest.approx(scores[1], abs=0.15)  # an example or two may lie on the border

    def test_other_batches_give_other_losses(self):
        found = {str(seed): training_libraries.ours(tiny()._replace(seed=seed), False) for seed in range(2)}
        with pytest.raises(AssertionError, match="the losses of 1 are"):
            loops.compare(tiny(), found)

    def test_the_first_step_in_this_process(self, monkeypatch):
        monkeypatch.setitem(problems.PROBLEMS, "tiny", (tiny, "numpy"))
        answer = processes.child("ours", "tiny", 0)
        assert min(answer["init_seconds"], answer["seconds"]) > 0
        assert answer["bytes"] >= 0

    def test_the_report_and_the_picture(self, tmp_path, monkeypatch):
        monkeypatch.setattr(depth, "programs", functools.partial(_without_flax, depth.programs))
        results = {
            "loops": [_loop_record()],
            "accuracy": [
                {"problem": "P", "goal": 0.9, "library": name, "seed": 0, "reached": 0.8, "epochs": 3, "seconds": 1.5}
                | {"seconds_compiled": 0.5}
                for name in ("ours", "torch, fused")
            ],
            "processes": [
                {"library": "ours", "problem": "P", "epochs": 0, "seconds": 1.0, "bytes": 3e6, "init_seconds": 0.5},
                {"library": "ours", "problem": "P", "epochs": 3, "seconds": 1.0, "bytes": 3e6},
            ],
            "depth": [depth.measure(2, True)],
            "sweeps": sweeps.measure(tiny(), [2], 1e-3),
        }
        tables = {part: report(results[part]) for part, report in training.REPORTS.items()}
        assert "| torch | 50 (50-50), 2.00x |" in tables["loops"]
        assert "ours against the faster loop of torch: 1.50x P" in tables["loops"]
        assert "| P | 90% | torch, fused | 3! |" in tables["accuracy"]
        assert "| ours | 0.5 + 1 s | 3 MB |" in tables["processes"]
        assert "2 blocks in a repeat compile in 1.00x the time of 2" in tables["depth"]
        assert "| tiny | 2 |" in tables["sweeps"]
        saved = {"machine": timing.machine(), "results": results}
        training_picture.draw(json.loads(json.dumps(saved)), tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def tiny():
    """A problem of every kind of part, and of two steps an epoch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6, 2)).astype(np.float32)
    labels = (x.sum((1, 2)) > 0).astype(np.int32)
    P = problems
    block = P.Conv("conv", 4, 4, 3), P.BatchNorm("norm", 4), P.Relu()
    parts = (
        P.Conv("first", 2, 4, 3), P.Residual(block), P.Pool(2), P.Flatten(), P.Dense("middle", 4, 5, 3), P.Relu(),
        P.Dense("last", 5, 2),
    )  # fmt: skip
    return P.Problem("tiny", parts, 8, (x, labels), (x, labels), 0.9)


def _without_flax(programs, blocks):
    return {name: make for name, make in programs(blocks).items() if name != "flax"}


def _loop_record():
    seconds = {"ours": 0.01, "torch": 0.02, "torch, fused": 0.015}
    return {
        "problem": "P",
        "steps_a_turn": 1,
        "steps_an_epoch": 1,
        "seconds_a_step": {name: timing.Timing(t, t, t, 1)._asdict() for name, t in seconds.items()},
        "missing": [],
    }


SMALL = {
    work.name: work
    for work in (
        *gpt.works(gpt.Size(1, 8, 2, 4, 2, 16)),
        *generation.works(gpt.Size(1, 8, 2, 4, 2, 16), 4),
        *recurrent.works(2, 3, 4),
        *attention.works((4,), 2, 4, 8),
        *norms.works((6, 8), (2, 3, 3, 8), (64, 512)),
    )
}


class TestSequence:
    def test_it_has_the_works_that_the_small_ones_stand_for(self):
        whole, small = ({name.split("-")[0] for name in names} for names in (sequence.works(), SMALL))
        assert whole == small >= {"lstm", "gru", "layer_norm", "dropout"}

    @pytest.mark.peers
    @pytest.mark.parametrize("work", SMALL.values(), ids=lambda work: work.name)
    def test_all_libraries_agree(self, work):
        for package in ("torch", "flax", "equinox"):
            pytest.importorskip(package)
        libraries = [name for name in sequence_libraries.LIBRARIES if name != "torch.compile"]
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax and they need it
            found, missing = sequence_libraries.contestants(work, libraries)
            assert not missing
            assert len(found) == len(work.makers) - ("torch.compile" in work.makers)
            sequence_libraries.compare(work, found)

    def test_a_wrong_result_raises(self):
        work = SMALL["layer_norm"]
        found, _ = sequence_libraries.contestants(work, ["ours"])
        wrong = sequence_libraries.Contestant(found["ours"].run, lambda out: {"dx": np.zeros((6, 8))})
        with pytest.raises(AssertionError, match=r"layer_norm: dx of wrong is 1.0e\+00 from ours's, of the largest"):
            sequence_libraries.compare(work, found | {"wrong": wrong})

    def test_the_better_of_two_times_counts(self):
        times = {"low": 0.5, "high": 2.0, "repetitions": 3}
        record = {
            "work": "lstm",
            "label": "LSTM",
            "cores": 1,
            "seconds": {"ours": times | {"median": 1e-3}, "torch": times | {"median": 4e-3}},
            "alone": {"torch": times | {"median": 2e-3}},
        }
        assert sequence.report([record]).splitlines()[-1].endswith("| 2 |")
