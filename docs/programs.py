"""Pages that are programs: what their ```python blocks print stands under each, from a run while the site is built.

python docs/programs.py docs/learn/fit.md   # runs a page, and writes into it what it printed

Each page is a process of its own, so that it may choose its devices, and so that nothing of another page is in it. In
the files, what a block printed is the ```text block behind it: they read well where nothing is built, and the site has
what was printed when it was built. Pictures and sounds that a page makes and shows are written with the text. A page
whose program fails is no page: the build ends with its error. How long each took is said at the end, and a page that
takes more than 20 s is pointed out. (myst-nb would do this too; it starts a Jupyter kernel a page and installs forty
packages. sphinx-gallery runs all in one process, where there is one choice of devices.)
"""

import contextlib
import fnmatch
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n(\n```text\n.*?^```\n)?", re.MULTILINE | re.DOTALL)
LONGEST = 20.0
"""Seconds, with the start of Python and all that is compiled: what a reader waits for, on a quiet machine."""
SHOWN = re.compile(r"(?:pictures|sounds|_static)/[\w.-]+\.(?:png|svg|wav)")


class Run(NamedTuple):
    """What a page's blocks printed, and how long it took.

    Attributes:
      printed: by each block.
      seconds: from start to end.
      busy: seconds of processors' time in them, which other work on the machine hardly changes.
    """

    printed: list[str]
    seconds: float
    busy: float


def outputs(page: str) -> list[str]:
    """Runs the blocks of a page, here and now, and returns what each printed."""
    text, scope, found = Path(page).read_text(), {"__name__": "__main__"}, []
    for block in BLOCK.finditer(text):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            lines_before = "\n" * text.count("\n", 0, block.start(1))  # an error names the page's own line
            exec(compile(lines_before + block[1], page, "exec"), scope)
        found.append("".join(f"{line}\n" for whole in printed.getvalue().splitlines() for line in wrapped(whole)))
    return found


def wrapped(line: str, width: int = 100) -> list[str]:
    """A line of prose, such as an error, in lines that a page can hold; tables stay as they are."""
    if "  " in line.strip():
        return [line.rstrip()]
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]


def run(page: Path, write: bool = False) -> Run:
    """Runs a page in a process and a folder of its own; ``write`` keeps the pictures and sounds that it shows."""
    environment = {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg", "COLUMNS": "100"} | os.environ
    environment["PYTHONPATH"] = os.pathsep.join([str(DOCS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(DOCS / "programs.py"), "--print", str(page.absolute())]
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begun
        if done.returncode:
            raise RuntimeError(f"{page}: its program failed.\n{done.stderr}")
        for shown in SHOWN.findall(page.read_text()) if write else ():
            made = Path(folder) / Path(shown).name
            if made.exists():
                shutil.copy(made, DOCS / shown.replace("_static", "sounds"))
    found = json.loads(done.stdout.splitlines()[-1])
    return Run(found["printed"], seconds, found["busy"])


def times(runs: dict[str, Run]) -> str:
    """A line on how long all took, and one for each that takes longer than a page should.

    On a machine that has other work the processors' time counts: waiting for that work is not the page's.
    """
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    quiet = load <= 1.5 * cores
    said = ", ".join(f"{name} {run.seconds:.0f} ({run.busy:.0f})" for name, run in sorted(runs.items()))
    lines = [f"seconds of the pages' programs (of processors' time), load {load:.1f} on {cores} cores: {said}"]
    for name, run in sorted(runs.items()):
        took = run.seconds if quiet else run.busy
        if took > LONGEST:
            of = "" if quiet else " of processors' time"
            lines.append(f"SLOW: {name} took {took:.0f} s{of}; a page should take at most {LONGEST:.0f}")
    return "\n".join(lines)


def shown(text: str, printed: list[str]) -> str:
    """The page's text with what was printed under each block."""
    rest = iter(printed)

    def block(found: re.Match[str]) -> str:
        output = next(rest)
        return f"```python\n{found[1]}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return BLOCK.sub(block, text)


def setup(app):
    """Called by Sphinx: pages that `programs` of conf.py names are run, two at once, and read when they have run."""
    app.add_config_value("programs", [], "env", list)
    running: dict[str, Future[Run]] = {}
    done: dict[str, Run] = {}

    def start(app, env, docnames):
        pool = ThreadPoolExecutor(2)
        for name in docnames:
            if any(fnmatch.fnmatch(name, pattern) for pattern in app.config.programs):
                running[name] = pool.submit(run, Path(env.doc2path(name)))
        pool.shutdown(wait=False)

    def read(app, name, content):
        if name in running:
            done[name] = running.pop(name).result()
            content[0] = shown(content[0], done[name].printed)

    def finish(app, exception):
        if done:
            print(times(done), file=sys.stderr)  # Sphinx' own warnings would fail the build with -W

    app.connect("env-before-read-docs", start)
    app.connect("source-read", read)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": False, "parallel_write_safe": True}


if __name__ == "__main__":
    if sys.argv[1] == "--print":
        printed = outputs(sys.argv[2])
        print(json.dumps({"printed": printed, "busy": sum(os.times()[:4])}))
    else:
        for page in map(Path, sys.argv[1:]):
            ran = run(page, write=True)
            page.write_text(shown(page.read_text(), ran.printed))
            print(times({page.stem: ran}), file=sys.stderr)
