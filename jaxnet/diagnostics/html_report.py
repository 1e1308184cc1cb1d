"""A diagnosis as one HTML page that needs nothing else."""

import base64
import html
import tempfile
from pathlib import Path
from typing import Any

from jaxnet import _checks as checks
from jaxnet.diagnostics import pictures
from jaxnet.errors import named

_STYLE = (
    "body{font:1em/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111}"
    "pre{font-size:12px;overflow-x:auto;background:#f4f4f4;padding:1rem}img{max-width:100%;height:auto}"
    "section{border-left:4px solid #888;padding-left:1rem;margin:1rem 0}section:first-of-type{border-color:#111}"
    "dt{font-weight:600}"
)


@named("html")
def html_report(diagnosis: Any, path: Any, title: str) -> Path:
    """Writes a `Diagnosis` as one page: the verdicts, the pictures and the reports of the layers; needs matplotlib.

    Returns:
      The page's path.
    """
    path = checks.path("path", path)
    if not diagnosis.reports:
        return _written(path, title, [f"<h1>{html.escape(title)}</h1>", *map(_section, diagnosis.verdicts)])
    steps = [0, *diagnosis.history["step"].astype(int)]
    first, middle, last = diagnosis.reports[0], diagnosis.reports[len(steps) // 2], diagnosis.reports[-1]
    names = ["before the first step", f"after step {steps[len(steps) // 2]}", f"after step {steps[-1]}"]
    body = [f"<h1>{html.escape(title)}</h1>", *map(_section, diagnosis.verdicts)]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "picture.png")

        def show(name):
            data = base64.b64encode(picture.read_bytes()).decode()
            body.append(f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{data}">')

        verdict, baseline = diagnosis.verdicts[0], diagnosis.baseline
        pictures.learning_curves(picture, diagnosis.history, baseline=baseline, verdict=verdict)
        show("Learning curves")
        if len(first.kernels):
            pictures.gradient_flow(picture, [first, middle, last], names)
            show("Gradient over depth")
            pictures.weights_over_time(picture, diagnosis.reports, steps)
            show("Weights and updates")
    texts = {f"Layers {names[0]}": first, f"Layers {names[2]}": last, "Dead units at the end": diagnosis.dead}
    body += [f"<h2>{name}</h2><pre>{html.escape(str(text))}</pre>" for name, text in texts.items()]
    return _written(path, title, body)


def _written(path: Path, title: str, body: list[str]) -> Path:
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<!doctype html><html lang=en>{head}{''.join(body)}</html>\n", encoding="utf-8")
    return path


def _section(verdict: Any) -> str:
    remedies = "".join(f"<li>{html.escape(str(remedy))}</li>" for remedy in verdict.remedies)
    name = html.escape(verdict.name.replace("_", " "))
    return (
        f"<section><h2>{name} <small>certainty {verdict.certainty:.2f}</small></h2><dl>"
        f"<dt>Evidence</dt><dd>{html.escape(verdict.evidence)}</dd><dt>Cause</dt><dd>{html.escape(verdict.cause)}</dd>"
        f"</dl>{f'<p>What to do, the likeliest to help first:</p><ol>{remedies}</ol>' if remedies else ''}</section>"
    )
