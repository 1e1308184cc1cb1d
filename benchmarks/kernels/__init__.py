"""A sweep over convolutions and poolings: ours, the plain lax form that other JAX libraries run, and PyTorch.

Modes: "forward"; "gradient", the value and the derivatives of a weighted sum of the output with respect to input and
kernel; "scan", gradient steps in a loop, per step; "vmap", the gradients for several kernels on one input (for
pooling: several inputs), and "vmap both", for as many inputs. All are compared before they are timed.
"""

import argparse
import json
from typing import Any

from benchmarks import timing
from benchmarks.kernels.cases import CASES, FAMILIES, Case
from benchmarks.kernels.picture import draw
from benchmarks.kernels.programs import STEPS, compare, contestants
from benchmarks.kernels.report import compile_table, family_table, summary_table

NAME = "kernels"


def measure(case: Case, mode: str, dtype: str, seconds: float, matrix_product: float) -> dict[str, Any]:
    """Compares and times one case in one mode."""
    programs = contestants(case, mode, dtype)
    compare(programs, f"{case.label}, {mode}", dtype)
    runs = {name: program.run for name, program in programs.items()}
    # A plain lax gradient can take seconds, and then three calls of it say enough.
    times = timing.interleaved(runs, seconds=seconds, warmup=1, minimum=3, own_pace=True)
    if mode == "scan":
        times = {
            n: t._replace(median=t.median / STEPS, low=t.low / STEPS, high=t.high / STEPS) for n, t in times.items()
        }
    flops = 2 * case.multiply_adds * (1 if mode == "forward" else 3) * (case.copies if "vmap" in mode else 1)
    return {
        "family": case.family,
        "case": case.label,
        "mode": mode,
        "dtype": dtype,
        "copies": case.copies if "vmap" in mode else 1,
        "flops": flops,
        "share_of_matrix_product": flops / times["ours"].median / matrix_product,
        "seconds": {name: t._asdict() for name, t in times.items()},
        "compile_seconds": {name: programs[name].compile_seconds for name in ("ours", "lax")},
    }


def main(argv: list[str]) -> None:
    """Prints the tables, saves the times and draws them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the representative cases alone, in all modes")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES, help="these families alone")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help="default: float32, on a GPU both")
    parser.add_argument("--picture", action="store_true", help="only draw the saved times again")
    options = parser.parse_args(argv)
    dtypes = options.dtype or timing.dtypes()
    partial = options.quick or set(options.family) != set(FAMILIES) or set(dtypes) != set(timing.dtypes())
    path = timing.path(NAME, partial=partial)
    if not options.picture:
        records: list[dict[str, Any]] = []
        rates = {dtype: timing.matrix_product_flops(dtype) for dtype in dtypes}
        for dtype, rate in rates.items():
            print(f"{dtype} matrix product: {rate / 1e9:.0f} GFLOP/s")
        for family in options.family:
            chosen = [case for case in CASES if case.family == family and (case.copies or not options.quick)]
            of_family = [
                measure(case, mode, dtype, 0.15 if options.quick else 0.3, rates[dtype])
                for dtype in dtypes
                for case in chosen
                for mode in case.modes
            ]
            print(f"\n{family}: ms (10th-90th percentile), a step of a scan\n{family_table(of_family)}", flush=True)
            records += of_family
            results = {"quick": options.quick, "matrix_product_flops": rates, "scan_steps": STEPS, "records": records}
            # After each family: a run that is killed keeps what it has, and takes the place of no whole one.
            timing.save(NAME, results, partial=partial or family != options.family[-1])
        print(f"\nhow many times as long as ours, geometric means\n{summary_table(records)}")
        print(f"\nvalue and derivatives, s to compile, means\n{compile_table(records)}")
    draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(f"\nwritten to {path.name} and {path.with_suffix('.png').name}")
