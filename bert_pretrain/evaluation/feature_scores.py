"""The table of what was measured on frozen features, a line for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bert_pretrain.evaluation.knn import KnnResult
from bert_pretrain.evaluation.linear_probe import ProbeResult


@dataclass(frozen=True)
class FeatureScores:
    """One row of the table: a kind of features, its dimension, and what was measured on it."""

    name: str
    dimension: int
    knn: KnnResult | None = None
    linear_probe: ProbeResult | None = None


def format_table(scores: Sequence[FeatureScores]) -> str:
    """Lay scores out as text: a line per kind of features, accuracies with their 95 % intervals."""
    width = max(len("features"), *(len(row.name) for row in scores))
    has_knn = any(row.knn for row in scores)
    has_probe = any(row.linear_probe for row in scores)
    header = f"{'features':<{width}}  {'dim':>6}"
    header += f"  {'k-NN':<22}" * has_knn + f"  {'linear probe':<22}  {'C':>6}" * has_probe
    lines = [header.rstrip()]
    for row in scores:
        line = f"{row.name:<{width}}  {row.dimension:>6}"
        line += f"  {_with_interval(row.knn):<22}" * has_knn
        if has_probe:
            probe = row.linear_probe
            line += f"  {_with_interval(probe):<22}  {f'{probe.C:g}' if probe else '':>6}"
            line += "" if probe is None or probe.has_converged else "  not converged"
        lines.append(line.rstrip())
    return "\n".join([*lines, *_footnotes(scores)])


def _with_interval(result: KnnResult | ProbeResult | None) -> str:
    if result is None:
        return ""
    low, high = result.interval
    return f"{result.accuracy:.3f} [{low:.3f}, {high:.3f}]"


def _footnotes(scores: Sequence[FeatureScores]) -> list[str]:
    settings = {(row.knn.k, row.knn.requested_k, row.knn.temperature) for row in scores if row.knn}
    return [
        "k-NN: cosine, k "
        f"{k}{f' (the whole bank; {requested} asked for)' if k < requested else ''}, T "
        f"{temperature:g}"
        for k, requested, temperature in sorted(settings)
    ]
