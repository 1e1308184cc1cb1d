"""The tables of the kernel sweep."""

from statistics import fmean, geometric_mean
from typing import Any

from benchmarks import timing


def best(record: dict[str, Any], library: str) -> tuple[dict[str, Any], str] | None:
    """A library's fastest form, in turns with the others or in a process of its own, and which; None without any."""
    found = [
        (times, ", ".join(filter(None, (name.removeprefix(library).lstrip(" ,"), "alone" * (where == "alone")))))
        for where in ("seconds", "alone")
        for name, times in record.get(where, {}).items()
        if name.startswith(library)
    ]
    return min(found, key=lambda one: one[0]["median"], default=None)


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """``lax`` and ``torch``, their time over ours: of lax, which is not timed alone, in turns; of PyTorch the bests."""
    in_turns, ours, torch = record["seconds"], best(record, "ours"), best(record, "torch")
    found = {"lax": in_turns["lax"]["median"] / in_turns["ours"]["median"]}
    return found | ({"torch": torch[0]["median"] / ours[0]["median"]} if ours and torch else {})


def family_table(records: list[dict[str, Any]]) -> str:
    """A Markdown table, one row a case and mode."""
    rows = []
    for r in records:
        ratio = ratios(r)
        mode = r["mode"].replace("vmap", f"vmap {r['copies']}")
        rows.append(
            [
                r["case"],
                mode if r["dtype"] == "float32" else f"{mode}, {r['dtype']}",
                *(_cell(best(r, library)) for library in ("ours", "lax", "torch")),
                f"{ratio['lax']:.2f}",
                f"{ratio['torch']:.2f}" if "torch" in ratio else "-",
                f"{r['share_of_matrix_product']:.0%}" if r["flops"] else "-",
            ]
        )
    return timing.table(["case", "mode", "ours", "lax", "torch", "lax/ours", "torch/ours", "of matrix product"], rows)


def _cell(found: tuple[dict[str, Any], str] | None) -> str:
    return f"{timing.milliseconds(timing.Timing(**found[0]))} {found[1]}".strip() if found else "-"


def summary_table(records: list[dict[str, Any]]) -> str:
    """A Markdown table, one row a family and mode: geometric means, and the worst case."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["family"], record["mode"], record["dtype"]), []).append(record)
    rows = []
    for key, members in groups.items():
        cells = []
        for peer in ("lax", "torch"):
            found = [(ratios(r)[peer], r["case"]) for r in members if peer in ratios(r)]
            if found:
                worst, case = min(found)
                cells += [f"{geometric_mean(ratio for ratio, _ in found):.2f}", f"{worst:.2f} ({case})"]
            else:
                cells += ["-", "-"]
        rows.append([*key, str(len(members)), *cells])
    return timing.table(["family", "mode", "dtype", "cases", "lax/ours", "worst", "torch/ours", "worst"], rows)


def compile_table(records: list[dict[str, Any]]) -> str:
    """A Markdown table, one row a family, of what it takes to compile the gradients.

    Of the case that takes longest in excess of lax it says by how much, and what a minute of lax's steps takes less
    in ours.
    """
    rows = []
    for family in dict.fromkeys(r["family"] for r in records):
        members = [r for r in records if r["family"] == family and r["mode"] == "gradient"]
        ours, lax = ([r["compile_seconds"][name] for r in members] for name in ("ours", "lax"))
        excess, i = max((o - p, i) for i, (o, p) in enumerate(zip(ours, lax, strict=True)))
        saved = 60 * (1 - 1 / ratios(members[i])["lax"])
        excess = f"{excess:.2f} ({members[i]['case']})"
        rows.append([family, f"{fmean(ours):.2f}", f"{fmean(lax):.2f}", excess, f"{saved:.0f}"])
    return timing.table(["family", "ours", "lax", "most above lax", "it saves, of 60 s"], rows)
