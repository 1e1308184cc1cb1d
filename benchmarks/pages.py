"""The pages of docs/benchmarks: tables from benchmarks/results/*.json, by the functions that the benchmarks print with.

python -m benchmarks.pages   # writes them, and figures of two other pages, as building the site does too
"""

import json
import statistics
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import memory, sequence, speedrun, timing, training, vocoder_step
from benchmarks.diagnosis import cost, outside
from benchmarks.diagnosis.report import confusion
from benchmarks.kernels import report as kernels
from benchmarks.optimizers import RULES
from benchmarks.speedrun import measure

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- figures: written by benchmarks/pages.py -->\n", "<!-- end -->\n"  # in pages written by hand
PAGES = ROOT / "docs" / "benchmarks"
Results = dict[str, Any]


def of_kernels(results: Results) -> Iterator[str]:
    yield "Time over ours, geometric means over the cases and the worst case; above 1, ours is faster. `lax` is the"
    yield "plain form, which Flax, Haiku and Equinox run; of PyTorch's forms the faster counts.\n"
    yield kernels.summary_table(results["records"])
    yield "\nSeconds to compile value and gradients; what a minute of the plain form's steps takes less in ours:\n"
    yield kernels.compile_table(results["records"])
    for family, records in groupby(results["records"], lambda record: record["family"]):
        yield f"\n### {family.capitalize()}, case by case\n\nms, median (10th to 90th percentile).\n"
        yield kernels.family_table(list(records))


def of_sequence(results: Results) -> Iterator[str]:
    yield "Output and all gradients, or a whole step, ms, median (10th to 90th percentile), the better of in turns and"
    yield "alone in a process.\n"
    yield sequence.report(results["records"])


def of_vocoder_step(results: Results) -> Iterator[str]:
    for (_, dtype), records in groupby(results["records"], lambda record: (record["network"], record["dtype"])):
        said, table = vocoder_step.report(list(records), results["matrix_product_flops"][dtype]).split("\n", 1)
        yield f"{said}:\n\n{table}\n"


def of_training(results: Results) -> Iterator[str]:
    for part in training.PARTS:
        if results.get(part):
            yield f"### {part.capitalize()}\n"
            yield training.REPORTS[part](results[part]) + "\n"


def of_optimizers(results: Results) -> Iterator[str]:
    yield "A whole update, ms, median (10th to 90th percentile), and the share of the bytes a second that copying"
    yield f"reaches, {results['copy_bytes_per_second'] / 1e9:.1f} GB/s. Not every rule was run on every tree.\n"
    columns = ["ours", "ours raveled", "ours in flat", "optax", "torch plain", "torch foreach", "torch fused"]
    for tree, records in groupby(results["updates"], lambda record: record["tree"]):
        rows = []
        for record in sorted(records, key=lambda record: list(RULES).index(record["rule"])):
            times = {name: timing.Timing(**t) for name, t in record["seconds"].items()}
            share = record["share_of_copy"]
            cells = [f"{timing.milliseconds(times[c])}, {share[c]:.0%}" if c in times else "-" for c in columns]
            rows.append([record["rule"], *cells])
        yield f"### {tree}\n\n" + timing.table(["rule", *columns], rows) + "\n"
    names = list(dict.fromkeys(name for record in results["steps"] for name in record["seconds"]))
    rows = [[r["problem"], *(milliseconds(r["seconds"], name) for name in names)] for r in results["steps"]]
    yield "### Whole training steps with Adam\n\nGradient included, ms.\n\n" + timing.table(["problem", *names], rows)


def of_muon(results: Results) -> Iterator[str]:
    yield f"{results['arrays']} arrays, {results['numbers']:,} numbers, {results['in_matrices']:,} in matrices.\n"
    rows = [
        [name, milliseconds(results["seconds"], name), f"{seconds:.1f}"]
        for name, seconds in results["first_call"].items()
    ]
    yield timing.table(["", "a step, ms", "first call, s"], rows)
    products, alone = results["product_flops"] / 1e9, timing.figures(1e3 * results["products_alone"])
    yield f"\nIts {products:.1f} GFLOP of products, as fast as large square ones: {alone} ms."


def of_memory(results: Results) -> Iterator[str]:
    yield f"A file of {results['mebibytes']} MiB, in new processes; memory above a training on one batch.\n"
    yield memory.report(results)


def of_checkpoints(results: Results) -> Iterator[str]:
    if "kills" not in results:  # of checkpoints-share.json
        yield "`--share`: what saving costs a run: beside the training, as `fit` does, by orbax, in turn.\n"
        header = ["state", "written", "saves", "s waited a save", "s longer a save", "of the time, every 10 s"]
        yield timing.table(header, [
            [size, way, str(m["saves"]), f"{m['waits']:.4f}", f"{m['longer']:.4f}", f"{m['share']:.2%}"]
            for size, ways in results.items() for way, m in ways.items()
        ])  # fmt: skip
        return
    killed, rates, fuzz = results["kills"], results["rates"], results["fuzz"]
    yield "A process that saves in a tight loop is killed. `readable`: what lay there then could be read; `inside`: the"
    yield "kill came in the middle of a save; `left`: files that no one will read. `replace` saves over one file,"
    yield "`keep` into a run's directory.\n"
    yield timing.table(
        ["way", *killed["replace"]], [[way, *map(str, record.values())] for way, record in killed.items()]
    )
    yield f"\nSingle flipped bits that were found: {results['flips'][0]} of {results['flips'][1]}. Of damaged files"
    yield f"{fuzz['refused']:,} were refused, {fuzz['read']:,} read as what had been saved, {fuzz['wrong']} as another."
    yield f"\nMiB a second, of a checkpoint of {results['mebibytes']} MiB:\n"
    yield timing.table(list(rates), [[f"{rate:.0f}" for rate in rates.values()]])


def of_speedrun(results: Results) -> Iterator[str]:
    yield f"From {results['seeds']} seeds, the same training in every library; median (least-most)."
    yield "[What is timed, and what made it fast](../speedrun.md).\n"
    yield speedrun.report(results["records"])


def of_diagnosis(results: Results) -> Iterator[str]:
    yield "Pathologies that were planted, five seeds in two sizes each. Losses are of validation, over the best"
    yield "constant prediction's, medians.\n"
    yield confusion(results["records"])
    yield "\nWhat a report costs, once compiled:\n"
    yield cost.table(results["cost"])


def milliseconds(seconds: dict[str, Any], name: str) -> str:
    """``median (low-high)`` of one contestant, or a dash."""
    return timing.milliseconds(timing.Timing(**seconds[name]) if name in seconds else None)


REPORTS = {  # file name -> title, what its results say
    "kernels": ("Convolutions and pooling", of_kernels),
    "sequence": ("Layers of sequences", of_sequence),
    "vocoder_step": ("A vocoder's training steps", of_vocoder_step),
    "training": ("Whole trainings", of_training),
    "optimizers": ("Optimizers", of_optimizers),
    "muon": ("Muon", of_muon),
    "memory": ("Files larger than memory", of_memory),
    "checkpoints": ("Checkpoints", of_checkpoints),
    "diagnosis": ("Diagnosis", of_diagnosis),
    "speedrun": ("Fashion-MNIST in seconds", of_speedrun),
}


def machine(saved: Results) -> str:
    """Where it was measured, in a line."""
    of, versions = saved["machine"], saved["machine"]["versions"]
    names = {"torch": "PyTorch", "flax": "Flax", "equinox": "Equinox", "dm-haiku": "Haiku", "optax": "optax"}
    others = ", ".join(f"{name} {versions[package]}" for package, name in names.items() if versions.get(package))
    device = timing.machine_name(of)
    cores = "" if of["devices"][0] == "cpu" else f", {of['cores']} cores of {of['cpu']}"
    return f"{device}{cores}; Python {of['python']}, jax {versions['jax']}, {others}"


def page(name: str) -> str:
    """A benchmark's page: a section a machine that it was run on."""
    title, report = REPORTS[name]
    command = f"python -m benchmarks {name.replace('_', '-')}"
    lines = [f"# {title}\n", f"What `{command}` printed. [All benchmarks](index.md).\n"]
    for path in files(name):
        saved = json.loads(path.read_text())
        part = " --quick" if saved["results"].get("quick") else ""
        where, versions = timing.machine_name(saved["machine"]), saved["machine"]["versions"]
        heading = f"## {where}, jax {versions['jax']}\n"
        heading = f"{heading[:-1]}, {path.stem}\n" if heading in lines else heading  # another run on it
        lines += [heading, f"{machine(saved)}.\n"]
        lines += ["With `--reuse-memory`.\n"] if "memory-reused" in path.stem else []
        lines += [f"This is a part, of `{command}{part}`.\n"] if part else []
        if "note" in saved:  # written into the file by hand, and gone with its next run
            lines.append(saved["note"] + "\n")
        if path.with_suffix(".png").exists():
            lines.append(f"![The same as a picture](../../benchmarks/results/{path.stem}.png)\n")
        lines += [spaced("\n".join(report(saved["results"]))), ""]
    return "\n".join(lines).rstrip() + "\n"


def spaced(text: str) -> str:
    """Tables with an empty line around them, and what was printed right under one as a list."""
    lines, after = [], False
    for line in text.splitlines():
        table, before = line.startswith("|"), lines[-1] if lines else ""
        if before and table != before.startswith("|") and (table or not after):
            lines.append("")
            after = not table
        after = after and bool(line) and not table
        lines.append(f"- {line}" if after else line)
    return "\n".join(lines)


def files(name: str) -> list[Path]:
    """The results of a benchmark, the CPU's first; not those of a partial run, which are nobody's figures."""
    others = {other for other in REPORTS if other.startswith(name) and other != name}
    found = [
        *timing.RESULTS.glob(f"{name}.json"),
        *sorted(timing.RESULTS.glob(f"{name}-*.json"), key=lambda path: path.stem),
    ]
    return [path for path in found if "partial" not in path.stem and not any(map(path.stem.startswith, others))]


def index() -> str:
    """The table of contents, by benchmark, machine and version of JAX."""
    rows = []
    for name, (title, _) in REPORTS.items():
        for path in files(name):
            of = json.loads(path.read_text())["machine"]
            command = f"`python -m benchmarks {name.replace('_', '-')}`"
            rows.append((f"[{title}]({name}.md)", command, timing.machine_name(of), of["versions"]["jax"]))
    return INDEX.format(table=timing.table(["what", "command", "machine", "jax"], [*map(list, dict.fromkeys(rows))]))


INDEX = """# Benchmarks

Every figure here is what a command printed, with the machine and the versions; the tables are made from
`benchmarks/results/*.json` when this site is built. Contestants run in one process in turns, and their results are
compared before they are timed; what is said to be alone was timed in a process of its own, after that. A figure is a
median of one run unless it says otherwise.

{table}

To measure on your machine, from a clone of the repository:

```sh
pip install -e '.[benchmarks]'
python -m benchmarks                  # lists them
python -m benchmarks kernels --quick
```

On a GPU, `sh benchmarks/gpu.sh` runs what matters there. Results of another machine lie beside these, under the name of
its device.

What the figures mean, and what limits them: [convolution kernels](../kernels.md), [optimizers](../optimizers.md),
[training](../training.md), [diagnosis](../diagnostics.md). Speech is judged in [the vocoder](../vocoder.md).
"""


def headlines() -> str:
    """What the front page says: three figures, each with its command and its machine."""

    def saved(name, variant="", options=""):
        of = json.loads((timing.RESULTS / f"{name}{variant}.json").read_text())
        where = f"{timing.machine_name(of['machine'])}, jax {of['machine']['versions']['jax']}"
        return of[
            "results"
        ], f"`python -m benchmarks {options}{name.replace('_', '-')}`: [{where}](benchmarks/{name}.md)"

    steps, where_steps = saved("vocoder_step")
    both = {
        name: 1e3 * sum(record["seconds"][name]["median"] for record in steps["records"])
        for name in ("ours", "flax", "torch", "torch.compile")
    }
    trainings, where_trainings = saved("training")
    seconds = {name: times["median"] for name, times in trainings["loops"][0]["seconds_a_step"].items()}
    rates = {
        name: 1 / min(t for n, t in seconds.items() if n.split(",")[0] == name) for name in ("ours", "flax", "torch")
    }
    runs, where_runs = saved("speedrun", "-memory-reused", "--reuse-memory ")
    to_90 = {
        record["library"]: statistics.median(filter(None, (measure.reached(curve, 90) for curve in record["curves"])))
        for record in runs["records"]
    }
    return f"""
- Two training steps of a MelGAN-size vocoder: {both["ours"]:.0f} ms. Flax {both["flax"]:.0f},
  PyTorch {both["torch"]:.0f}, compiled {both["torch.compile"]:.0f} ({where_steps}).
- `fit` on the digits: {rates["ours"]:,.0f} steps a second, with every step checked for NaN. Bare loops: Flax with optax
  {rates["flax"]:,.0f}, PyTorch {rates["torch"]:,.0f} ({where_trainings}).
- 90 % of Fashion-MNIST's test images told rightly after {to_90["ours"]:.1f} s of training, the same training in PyTorch
  {to_90["torch"]:.1f} s (median of {runs["seeds"]} seeds; {where_runs}).

"""


def programs() -> str:
    """What the guide to diagnosis says of the programs with published faults."""
    of = json.loads((timing.RESULTS / "diagnosis_programs.json").read_text())
    where = f"{timing.machine_name(of['machine'])}, jax {of['machine']['versions']['jax']}"
    return f"{outside.said(of['results'])}\n({where}.)\n"


def filled(page: Path, figures: str) -> str:
    """A page with its figures between the marks."""
    before, rest = page.read_text().split(BEGIN)
    return before + BEGIN + figures + END + rest.split(END, 1)[1]


def pages() -> dict[Path, str]:
    """All pages, by where they lie; of the front page and the guide to diagnosis, the figures are from here."""
    front, guide = ROOT / "docs" / "index.md", ROOT / "docs" / "diagnostics.md"
    return {
        front: filled(front, headlines()),
        guide: filled(guide, programs()),
        PAGES / "index.md": index(),
        **{PAGES / f"{name}.md": page(name) for name in REPORTS},
    }


def write() -> None:
    """Writes the pages that are not as they should be."""
    PAGES.mkdir(exist_ok=True)
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app):
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: write())
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    write()
