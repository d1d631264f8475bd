"""Trials of a search: what they are, their file, their table, their picture."""

import dataclasses
import json
import math
from pathlib import Path

from tfprune.writing import write_aside


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training with one pair of hyper-parameters, pruned.

    Attributes:
        strength: float, of the regularizer.
        t: float, of the regularizer.
        flops_reduction: float: what the threshold removes; 0 for a training that
            diverged.
        accuracy: float: the model's first metric after pruning, before fine-tuning,
            negated where less of it is better; the negated loss if it has none;
            minus infinity for a training that diverged.
        seconds: float: how long it took.
    """

    strength: float
    t: float
    flops_reduction: float
    accuracy: float
    seconds: float = 0.0

    @property
    def has_diverged(self) -> bool:
        """Whether its numbers say nothing: they, or its weights, were not finite."""
        return not math.isfinite(self.accuracy + self.flops_reduction)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        trials: tuple of `Trial`, in the order in which they ended.
        best: the most accurate trial within the tolerance; without one the closest.
        is_met: whether `best` is within the tolerance.
        reason: str: why the search ended.
        flops_reduction: float: the target.
        tolerance: float.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    is_met: bool
    reason: str
    flops_reduction: float
    tolerance: float

    def table(self):
        """Returns the trials as a `rich.table.Table`."""
        from rich import box
        from rich.table import Table

        title = (
            f"target: {self.flops_reduction:.1%} fewer FLOPs, +-{self.tolerance:.1%}"
        )
        table = Table(title=title, caption=self.reason, box=box.SIMPLE_HEAD)
        for name in ("trial", "strength", "t", "FLOPs", "accuracy", "s", ""):
            table.add_column(name, justify="right")
        for number, trial in enumerate(self.trials, 1):
            table.add_row(
                str(number),
                f"{trial.strength:.3g}",
                f"{trial.t:.3g}",
                f"-{trial.flops_reduction:.1%}",
                f"{trial.accuracy:.4f}",
                f"{trial.seconds:.0f}",
                "best" if trial == self.best else "",
            )
        return table

    def plot(self, path) -> None:
        """Saves a picture of the path of the search: FLOPs reduction by trial.

        Args:
            path: file to write, `.png`, `.svg` or `.pdf`. Needs matplotlib, the extra
                `tfprune[report]`.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        target, width = self.flops_reduction, self.tolerance
        axes.axhspan(target - width, target + width, alpha=0.2, label="accepted")
        places = range(1, len(self.trials) + 1)
        axes.plot(places, [x.flops_reduction for x in self.trials], "o-")
        for place, trial in zip(places, self.trials, strict=True):
            text = f"{trial.strength:.2g}\nt={trial.t:.3g}\n{trial.accuracy:.3f}"
            axes.annotate(
                text,
                (place, trial.flops_reduction),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=7,
            )
        axes.set(xlabel="trial", ylabel="FLOPs reduction", xticks=list(places))
        axes.set_ylim(-0.05, 1.05)
        axes.legend()
        with write_aside(path, Path(path).suffix, overwrite=True) as aside:
            figure.savefig(aside)


class TrialFile:
    """The finished trials of a search, in a file, so that a search can go on.

    Args:
        path: the file; None keeps trials in memory only.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self.trials: list[Trial] = []
        if path is not None and path.exists():
            entries = json.loads(path.read_text())
            self.trials = [Trial(**entry) for entry in entries]

    def add(self, trial: Trial) -> None:
        self.trials.append(trial)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        entries = [dataclasses.asdict(trial) for trial in self.trials]
        with write_aside(self._path, self._path.suffix, overwrite=True) as aside:
            aside.write_text(json.dumps(entries, indent=1))
