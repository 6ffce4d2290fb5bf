"""Files for a paper: figures as PDF or SVG, tables for LaTeX, and the records for other programs.

    quality-<metric>-<cost>.pdf, .svg   one for each metric, and problem if there are several, against network
                                        evaluations and against seconds; all in the style ``figures.STYLE``
    samples.pdf, .svg                   samples of each sampler; samples-<problem> where there are several
    table.tex                           booktabs; values with errors, the best of each metric bold
    records.csv, .parquet, .json        see ``lab.export_records``

The table needs ``\\usepackage{booktabs}``.  Equal records are equal files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sde_toolkit.lab.drawing import figures
from sde_toolkit.lab.export import export_records
from sde_toolkit.lab.page import refers_to
from sde_toolkit.lab.records import Record, Reference, comparison_group
from sde_toolkit.lab.table import best_records, distinguishing, pivot, plus_minus, reference_rows, short_name
from sde_toolkit.utils import atomic_write, checked

FORMATS = ("pdf", "svg", "csv", "latex", "parquet", "json")
_COSTS = ("nfe", "seconds")
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip


@checked
def write_papers(
    directory: Path | str,
    records: Sequence[Record],
    references: Sequence[Reference] = (),
    formats: Sequence[str] = ("pdf", "latex", "csv"),
    samples: Mapping[str, Mapping[tuple[str, str], np.ndarray]] | None = None,
) -> list[Path]:
    """Write records for a paper; return the paths.

    Args:
        directory: is made if need be.
        records: one for each candidate and metric, as ``pooled_records`` gives them.
        references: what real data score.
        formats: of "pdf", "svg", "csv", "latex", "parquet" and "json".
        samples: problem -> (sampler, caption) -> samples, for a figure of each problem; see
            ``figures.samples_figure``.

    Raises:
        ValueError: no records, or another format.
        ImportError: parquet without pyarrow.
        OSError: the directory cannot be written to.
    """
    if not records:
        raise ValueError("records must hold at least one record, got none")
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"formats must be of {', '.join(FORMATS)}, got {name!r}")
    directory, paths = Path(directory), []
    directory.mkdir(parents=True, exist_ok=True)
    for name in formats:
        if name in ("pdf", "svg"):
            paths += _write_figures(directory, records, references, name, samples)
        elif name == "latex":
            paths.append(directory / "table.tex")
            atomic_write(paths[-1], latex_table(records, references).encode(errors="replace"))
        else:
            paths.append(directory / f"records.{name}")
            export_records(paths[-1], records, references)
    return paths


def _write_figures(
    directory: Path,
    records: Sequence[Record],
    references: Sequence[Reference],
    suffix: str,
    samples: Mapping[str, Mapping[tuple[str, str], np.ndarray]] | None,
) -> list[Path]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(comparison_group(record), []).append(record)
    paths: list[Path] = []
    for name, rows in zip(_names(list(groups.values())), groups.values(), strict=True):
        known = [reference for reference in references if refers_to(reference, rows[0])]
        for cost in _COSTS:
            figure = figures.quality_figure(
                rows, rows[0].metric, rows[0].problem, next(iter(known), None), cost
            )
            paths.append(directory / f"quality-{name}-{cost}.{suffix}")
            atomic_write(paths[-1], figures.render(figure, suffix))
    for problem, cells in (samples or {}).items():
        title = problem if len(samples or {}) > 1 else ""
        name = _plain_name(f"samples-{title}" if title else "samples", [path.stem for path in paths])
        paths.append(directory / f"{name}.{suffix}")
        atomic_write(paths[-1], figures.render(figures.samples_figure(cells, None, title), suffix))
    return paths


def _names(groups: Sequence[Sequence[Record]]) -> list[str]:
    """A word for a file's name for each group, no two alike: the metric, and what else it takes."""
    several = len({rows[0].problem for rows in groups}) > 1
    names: list[str] = []
    for rows in groups:
        first = rows[0]
        words = [first.problem] if several else []
        condition = first.settings.get("condition")
        words.append(first.metric)
        if condition is not None:
            words.append(f"class{condition}" if isinstance(condition, int) else str(condition))
        names.append(_plain_name("-".join(words), names))
    return names


def _plain_name(text: str, taken: Sequence[str]) -> str:
    """A word for a file's name, none of those that are taken."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "metric"
    alike = sum(other == name or other.startswith(f"{name}-n") for other in taken)
    return name if not alike else f"{name}-n{alike + 1}"


def latex_table(records: Sequence[Record], references: Sequence[Reference] = ()) -> str:
    """The comparison as a LaTeX table with the rules of booktabs; the best of each metric is bold.

    Args:
        records: one for each candidate and metric.
        references: what real data score.
    """
    metrics, rows = pivot(records)
    best, more = best_records(records), distinguishing(records)
    head = ["sampler", "steps", *more, "NFE", *metrics, "seconds"]
    body = []
    for row in rows:
        cells = ["" if cell is None else _amount(cell, id(cell) in best) for cell in row.cells]
        texts = [latex_text(text) for text in (short_name(row.sampler), row.setting, *row.more)]
        body.append([*texts, f"{row.nfe:.4g}", *cells, f"{row.seconds:.2f}"])
    below = []
    for label, told, found in reference_rows(references, metrics, more):
        cells = ["" if reference is None else _amount(reference, False) for reference in found]
        below.append([latex_text(label), "", *map(latex_text, told), "", *cells, ""])
    columns = "l" + "r" * (len(head) - 1)
    lines = [
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _line([latex_text(text) for text in head]),
        r"\midrule", *map(_line, body), *([r"\midrule", *map(_line, below)] if below else []),
        r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """Text with the characters escaped that LaTeX would obey."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _amount(cell: Record | Reference, best: bool) -> str:
    amount = plus_minus(cell.value, cell.standard_error).replace(" ± ", r" \pm ")
    return rf"$\mathbf{{{amount}}}$" if best else f"${amount}$"
