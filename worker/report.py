"""An evaluation as one HTML file that needs nothing else, as JSON, and as lines for a terminal.

Labels and ids come from strangers' folders: Jinja2 and Markup escape all that goes into the HTML,
and its content security policy forbids every request and script.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

import numpy as np
from markupsafe import Markup

from image_search.errors import SettingsError
from worker.figures import EmbeddingMap, Estimate, Evaluation, Figures, Pairs, Reliability, ScoreBin
from worker.pages import environment, made

REPORT_FILE: Final = "report.html"
FIGURES_FILE: Final = "figures.json"

# In the units of the view box: as wide as a phone's screen leaves it, so that text keeps its size.
_WIDTH: Final = 360
_HEIGHT: Final = 220
_LEFT: Final = 38
_RIGHT: Final = 8
_TOP: Final = 8
_BOTTOM: Final = 36

# More labels than these make a picture that nobody reads.
_MATRIX_LABELS: Final = 30
_MAP_COLOURS: Final = 10
_MAP_MARGIN: Final = 6
_MISTAKES: Final = 12


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write report.html and figures.json into the folder; returns the path of the report.

    Raises SettingsError when they cannot be written.
    """
    report = folder / REPORT_FILE
    try:
        (folder / FIGURES_FILE).write_text(evaluation.figures.model_dump_json(indent=2) + "\n")
        report.write_text(_html(evaluation), encoding="utf-8")
    except OSError as exc:
        raise _cannot_write(folder, exc) from exc
    return report


def make_folder(folder: Path) -> None:
    """Make it, with its parents; raises SettingsError when it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise _cannot_write(folder, exc) from exc


def _cannot_write(folder: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"the report cannot be written to {folder}: {error.strerror or error}; "
        "choose another folder with --output"
    )


def summary(figures: Figures) -> str:
    """A short table for a terminal."""
    protocol = figures.protocol
    lines = [
        f"{protocol.queries:,} queries from {protocol.source} against {protocol.images:,} images, "
        f"{protocol.metric}, {protocol.model}"
    ]
    if protocol.input_size_reason:
        lines.append(f"input size {protocol.model.input_size}: {protocol.input_size_reason}")
    if protocol.left_out:
        lines.append(f"{protocol.left_out:,} of them are in the index; no query finds itself")
    if figures.retrieval is None:
        lines.append(f"no precision figures: {figures.without_labels}")
    rows = list(_estimates(figures))
    width = max(len(name) for name, _ in rows)
    lines.append(f"{'':{width}}     mean   95 % interval")
    lines += [
        f"{name:{width}}  {_percent(estimate.mean):>7}   "
        f"{_percent(estimate.low)} to {_percent(estimate.high)}"
        for name, estimate in rows
    ]
    if figures.retrieval is not None:
        lines.append(f"{'precision of chance':{width}}  {_percent(figures.retrieval.chance):>7}")
        if figures.retrieval.pairs.roc_auc is not None:
            lines.append(f"{'ROC AUC of pairs':{width}}  {figures.retrieval.pairs.roc_auc:7.3f}")
        if figures.retrieval.reliability is not None:
            error = figures.retrieval.reliability.expected_calibration_error
            lines.append(f"{'expected calibration error':{width}}  {error:7.3f}")
    return "\n".join(lines)


def _estimates(figures: Figures) -> Iterable[tuple[str, Estimate]]:
    if figures.retrieval is not None:
        yield from figures.retrieval.overall.estimates.items()
    yield "store recall@10", figures.store_recall
    for name, stability in figures.stability.items():
        yield f"overlap@10 {name}", stability.overlap


def _html(evaluation: Evaluation) -> str:
    templates = environment()
    templates.filters |= {"percent": _percent, "share": _share}
    retrieval = evaluation.figures.retrieval
    plotted = evaluation.embedding_map
    return templates.get_template("report.html").render(
        figures=evaluation.figures,
        protocol=evaluation.figures.protocol,
        retrieval=retrieval,
        strips=evaluation.strips,
        unreadable=evaluation.unreadable,
        matrix_labels=_matrix_labels(evaluation.figures),
        mistakes=_mistakes(evaluation.figures),
        pairs_plot=_pairs_plot(retrieval.pairs) if retrieval else "",
        score_plot=_score_plot(retrieval.precision_by_score, retrieval.chance) if retrieval else "",
        reliability_plot=_reliability_plot(retrieval.reliability)
        if retrieval and retrieval.reliability
        else "",
        map_plot=_map_plot(plotted) if plotted else "",
        map_labels=_map_labels(plotted) if plotted else [],
        score_name=_score_name(evaluation.figures),
        made=made(),
    )


# --- text -----------------------------------------------------------------------------------------


def _percent(value: float) -> str:
    """A share in per cent, with a digit more where it is small."""
    return f"{100 * value:.2f} %" if 0 < value < 0.01 else f"{100 * value:.1f} %"


def _share(value: float) -> str:
    return f"{100 * value:.0f}"


def _score_name(figures: Figures) -> str:
    return {
        "cosine": "cosine similarity",
        "dotproduct": "dot product",
        "euclidean": "squared euclidean distance",
    }[figures.protocol.metric]


def _matrix_labels(figures: Figures) -> list[str]:
    """Rows and columns of the confusion matrix; none where there are too many."""
    if figures.retrieval is None:
        return []
    confusion = figures.retrieval.confusion
    labels = sorted({*confusion, *(label for found in confusion.values() for label in found)})
    return labels if len(labels) <= _MATRIX_LABELS else []


def _mistakes(figures: Figures) -> list[tuple[str, str, float]]:
    """The most frequent wrong labels: of the query, of the match, and its share of the matches."""
    if figures.retrieval is None:
        return []
    shares = [
        (asked, found, count / sum(counts.values()))
        for asked, counts in figures.retrieval.confusion.items()
        for found, count in counts.items()
        if asked != found
    ]
    return sorted(shares, key=lambda row: -row[2])[:_MISTAKES]


# --- plots, in SVG --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axes:
    """Maps values to the view box; `right` may be less than `left`."""

    left: float
    right: float
    top: float

    def x(self, value: float) -> float:
        share = (value - self.left) / ((self.right - self.left) or 1)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(self, value: float) -> float:
        return round(_HEIGHT - _BOTTOM - value / self.top * (_HEIGHT - _TOP - _BOTTOM), 2)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        return "M" + " L".join(f"{self.x(x)} {self.y(y)}" for x, y in points)

    def draw(self, label: str, x_name: str, y_name: str, content: Markup, digits: int) -> Markup:
        """The plot: grid, ticks, names, and the content over them; `label` is for the blind."""
        parts = []
        for tick in _ticks(0, self.top):
            y = self.y(tick)
            parts.append(
                Markup('<path class="grid" d="M{} {}H{}"/><text x="{}" y="{}">{}</text>').format(
                    _LEFT, y, _WIDTH - _RIGHT, _LEFT - 5, y + 4, f"{100 * tick:g}"
                )
            )
        low, high = sorted((self.left, self.right))
        parts += [
            Markup('<text class="below" x="{}" y="{}">{:.{}f}</text>').format(
                self.x(tick), _HEIGHT - _BOTTOM + 15, tick, digits
            )
            for tick in _ticks(low, high)
        ]
        parts.append(
            Markup(
                '<text class="below name" x="{}" y="{}">{}</text>'
                '<text class="below name" transform="translate(10 {}) rotate(-90)">{}</text>'
            ).format(
                (_LEFT + _WIDTH - _RIGHT) / 2,
                _HEIGHT - 5,
                x_name,
                (_TOP + _HEIGHT - _BOTTOM) / 2,
                y_name,
            )
        )
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
            _WIDTH, _HEIGHT, label, Markup("").join(parts), content
        )


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high."""
    if high <= low:
        return [low]
    step = 10.0 ** np.floor(np.log10((high - low) / 3))
    step = next(step * factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 2.5)
    first = np.ceil(low / step - 1e-9)
    # Without the sign of a negative zero.
    return [float(n * step) + 0.0 for n in np.arange(first, np.floor(high / step + 1e-9) + 1)]


def _digits(low: float, high: float) -> int:
    ticks = _ticks(*sorted((low, high)))
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return max(0, int(np.ceil(-np.log10(step) - 1e-9)))


def _pairs_plot(pairs: Pairs) -> Markup:
    shown = np.flatnonzero(np.add(pairs.same_shares, pairs.different_shares) > 1e-4)
    first, last = int(shown[0]), int(shown[-1]) + 1
    edges = pairs.edges[first : last + 1]
    axes = _Axes(edges[0], edges[-1], 1.05 * max(*pairs.same_shares, *pairs.different_shares))

    def area(shares: Sequence[float], name: str) -> Markup:
        points = [(edges[0], 0.0)]
        for number, share in enumerate(shares[first:last]):
            points += [(edges[number], share), (edges[number + 1], share)]
        points.append((edges[-1], 0.0))
        return Markup('<path class="area {}" d="{}"/>').format(name, axes.path(points))

    content = area(pairs.different_shares, "different") + area(pairs.same_shares, "same")
    return axes.draw(
        "Distributions of the score of pairs with the same label and with different ones",
        "score",
        "% of pairs",
        content,
        _digits(edges[0], edges[-1]),
    )


def _score_plot(bins: list[ScoreBin], chance: float) -> Markup:
    scores = [one.score for one in bins]
    axes = _Axes(min(scores), max(scores), 1.0)
    points = [(one.score, one.precision) for one in bins]
    content = Markup('<path class="chance" d="M{} {}H{}"/><path class="line" d="{}"/>').format(
        _LEFT, axes.y(chance), _WIDTH - _RIGHT, axes.path(points)
    )
    for x, y in points:
        content += Markup('<circle class="dot" cx="{}" cy="{}" r="3"/>').format(
            axes.x(x), axes.y(y)
        )
    return axes.draw(
        "Share of right matches by their score",
        "score of the match",
        "% with the same label",
        content,
        _digits(min(scores), max(scores)),
    )


def _reliability_plot(reliability: Reliability) -> Markup:
    axes = _Axes(0.0, 1.0, 1.0)
    points = [(one.confidence, one.precision) for one in reliability.bins]
    dot = Markup('<circle class="dot" cx="{}" cy="{}" r="3"/>')
    content = Markup('<path class="chance" d="{}"/><path class="line" d="{}"/>').format(
        axes.path([(0, 0), (1, 1)]), axes.path(points)
    ) + Markup("").join(dot.format(axes.x(x), axes.y(y)) for x, y in points)
    return axes.draw(
        "Share of right matches by their confidence",
        "confidence of the match",
        "% with the same label",
        content,
        _digits(0.0, 1.0),
    )


def _map_labels(plotted: EmbeddingMap) -> list[str]:
    """The most frequent labels, which have colours of their own."""
    names = [label for label in plotted.labels if label is not None]
    frequent = sorted(set(names), key=lambda name: (-names.count(name), name))[:_MAP_COLOURS]
    return sorted(frequent)


def _map_plot(plotted: EmbeddingMap) -> Markup:
    colour_of = {label: number for number, label in enumerate(_map_labels(plotted))}
    low, extent = plotted.points.min(axis=0), np.ptp(plotted.points, axis=0)
    # One scale for both axes, or distances would lie.
    scale = (_WIDTH - 2 * _MAP_MARGIN) / (float(extent.max()) or 1.0)
    width, height = np.ceil(scale * extent + 2 * _MAP_MARGIN)
    dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.2"><title>{}</title></circle>')
    dots = Markup("").join(
        dot.format(
            f"c{colour_of[label]}" if label in colour_of else "other", x, y, label or "no label"
        )
        for (x, y), label in zip(
            _MAP_MARGIN + scale * (plotted.points - low), plotted.labels, strict=True
        )
    )
    return Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        width, height, "Map of the embeddings, coloured by label", dots
    )
