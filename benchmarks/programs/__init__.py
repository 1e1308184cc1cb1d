"""Eight programs of the first days, in ours and as the peers' own manuals write them: lines and results.

``python -m benchmarks programs [--count] [NAME ...]``: all programs do the same work (the same network, data, rule,
epochs and batches), each in a process of its own, and print one number at the end. ``--count`` runs none.
"""

import ast
import importlib.metadata
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
from pathlib import Path

from benchmarks import timing

HERE = Path(__file__).parent
PROGRAMS = {
    "classifier": "train a classifier",
    "finetune": "fine-tune under a frozen backbone, with two rates and an average of the weights",
    "resume": "resume after SIGTERM, and predict in a new process",
    "loader": "train from a DataLoader with sample weights",
    "lora": "adapt a trained network by matrices of low rank",
    "schedule": "warm-up and cosine, clipping, accumulation over four parts",
    "gan": "two networks, two optimizers",
    "custom": "a layer and a loop of one's own",
}
"""By folder, what is done."""

LIBRARIES = {
    "ours": "jaxnet",
    "torch": "torch",
    "flax": "flax",
    "equinox": "equinox",
    "haiku": "dm-haiku",
    "keras": "keras",
}
"""By the beginning of a file's name, the package."""

NAMED = ("finetune", "resume", "loader")
"""Programs that ours may not take more lines for than the shortest peer."""


def files(program: str, library: str) -> list[Path]:
    """A program's files, in the order in which they run; more than one are as many processes."""
    found = [path for path in (HERE / program).glob("*.py") if path.stem.split("_")[0] == library]
    return sorted(found, key=lambda path: path.stem.endswith("_predict"))


def count(text: str) -> tuple[int, int]:
    """Lines of code and tokens: no blanks, no comments, no docstrings; imports count as all else.

    Lines depend on how they are broken, which is the same formatter's work for all; tokens do not.
    """
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    skipped = (
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
        tokenize.ENCODING,
    )  # fmt: skip
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in skipped and token.start[0] not in docstrings
    ]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(lines), len(tokens)


def counted(program: str) -> dict[str, tuple[int, int]]:
    """By library, the lines and tokens of all of its files."""
    counts = {name: [count(file.read_text()) for file in files(program, name)] for name in LIBRARIES}
    return {name: tuple(map(sum, zip(*parts, strict=True))) for name, parts in counts.items() if parts}  # type: ignore[misc]


def installed(library: str) -> bool:
    """Whether the library's programs can run here."""
    try:
        return bool(importlib.metadata.version(LIBRARIES[library]))
    except importlib.metadata.PackageNotFoundError:
        return False


def run(program: str, library: str) -> float:
    """Runs a program in a new directory, and returns the number that it prints last."""
    path = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {"KERAS_BACKEND": "jax", **os.environ, "PYTHONPATH": path}
    with tempfile.TemporaryDirectory() as folder:
        for file in files(program, library):
            command = [sys.executable, "-m", f"benchmarks.programs.{program}.{file.stem}"]
            if file.stem.endswith("_train"):
                _stop(command, folder, environment)
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{program} in {library} ended with {done.returncode}:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def _stop(command: list[str], folder: str, environment: dict[str, str]) -> None:
    """Runs the program until shortly after it has begun to save, and ends it as a scheduler does."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not os.listdir(folder):
        time.sleep(0.05)
    time.sleep(0.7)
    ended = process.poll() is not None
    process.send_signal(signal.SIGTERM)
    process.wait()
    if ended:
        raise RuntimeError(f"{command[-1]} had ended before it could be stopped; let it train longer")


def table(counts: dict[str, dict[str, tuple[int, int]]], results: dict[str, dict[str, float]]) -> str:
    """Lines of code, tokens, and results: a row a program, a column a library; the shortest is bold."""
    rows = []
    for program, of in counts.items():
        shortest = min(lines for lines, _ in of.values())
        cells = []
        for library in LIBRARIES:
            if library not in of:
                cells.append("-")
                continue
            lines, tokens = of[library]
            result = results.get(program, {}).get(library)
            text = f"**{lines}**" if lines == shortest else str(lines)
            cells.append(f"{text} ({tokens})" + (f" {result:.3f}" if result is not None else ""))
        rows.append([PROGRAMS[program], *cells])
    return timing.table(["lines (tokens), result", *LIBRARIES], rows)


def main(argv: list[str]) -> None:
    """Prints the table, and saves it if all programs ran."""
    chosen = [name for name in argv if not name.startswith("-")] or list(PROGRAMS)
    counts = {program: counted(program) for program in chosen}
    results: dict[str, dict[str, float]] = {}
    failed: list[str] = []
    if "--count" not in argv:
        for program in chosen:
            libraries = [library for library in counts[program] if installed(library)]
            results[program] = {}
            for library in libraries:
                try:
                    results[program][library] = run(program, library)
                except RuntimeError as error:  # the others are measured all the same
                    failed.append(str(error))
    print(table(counts, results))
    print("Results: accuracy on the test set; of gan how far the mean image made is from the mean image, a pixel.")
    for program in set(NAMED) & set(chosen):
        ours, peers = counts[program]["ours"][0], [n for name, (n, _) in counts[program].items() if name != "ours"]
        print(f"{program}: ours {ours} lines, the shortest peer {min(peers)}")
    if failed:
        sys.exit("\n".join(failed))
    if results:
        partial = set(chosen) != set(PROGRAMS) or not all(map(installed, LIBRARIES))
        print("saved:", timing.save("programs", {"counts": counts, "results": results}, partial=partial))
