"""GridSearch: the regularizer's hyper-parameters for a FLOPs target."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras

from tfprune import thresholds
from tfprune.checks import check_integer, check_number
from tfprune.search.algorithm import Algorithm1
from tfprune.search.training import Job, run_trial, trial_directory
from tfprune.search.trials import SearchResult, TrialFile


@dataclasses.dataclass
class GridSearch:
    """Finds strength and t of `Polarization` that remove a fraction of the FLOPs.

    Each trial builds a model, trains it for some epochs, prunes a copy by `threshold`
    and counts its FLOPs. The strength is doubled or halved, and bisected, until a trial
    is within twice the tolerance; then t moves by 0.1 and is bisected until one is
    within it.

    Args:
        build: function `build(regularizer) -> compiled model`, with the regularizer in
            it: `tfprune.regularize(model, regularizer)`, then `compile`.
        flops_reduction: float in (0, 1): the target.
        tolerance: float: how far a trial may be off. Defaults to 0.05.
        strength: float: the first strength. `regularizers.strength_for_push` gives one
            that suits the length of the training. Defaults to the paper's 1e-4.
        t: float: the first t. Defaults to the paper's 1.2.
        max_trials: int. Defaults to 12.
        threshold: what prunes, as `tfprune.select` takes it. Defaults to `"valley"`.
        directory: where finished trials, and those under way, are kept, so that a
            search that was stopped goes on. Its trials count whatever `run` is given
            next: one directory for one search. None keeps nothing.
        seed: int: every trial starts from it. Defaults to 0.

    Raises:
        ValueError: for arguments out of range.

    Source: Zhuang et al., "Neuron-level structured pruning using polarization
    regularizer", 2020, author response, algorithm 1, made to end.

    Example:

    ```python
    def build(regularizer):
        model = tfprune.regularize(make_model(), regularizer)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        model.compile(optimizer, loss, metrics=["accuracy"])
        return model

    search = tfprune.search.GridSearch(build, flops_reduction=0.5, max_trials=12)
    result = search.run(train, epochs=30, validation_data=validation)
    print(result.best.strength, result.best.t)
    result.plot("search.png")
    ```
    """

    build: Callable
    flops_reduction: float
    tolerance: float = 0.05
    strength: float = 1e-4
    t: float = 1.2
    max_trials: int = 12
    threshold: object = "valley"
    directory: str | Path | None = None
    seed: int = 0

    def __post_init__(self):
        if not callable(self.build):
            raise ValueError(
                "`build` must be a function `build(regularizer) -> compiled model`. "
                f"Received: {self.build!r}"
            )
        what = "the fraction to remove"
        check_number("flops_reduction", self.flops_reduction, "(0, 1)", what)
        check_number("tolerance", self.tolerance, "(0, 1)")
        check_number("strength", self.strength, "(0, inf)")
        check_number("t", self.t, "[0, inf)")
        check_integer("max_trials", self.max_trials, 1)
        thresholds.check(self.threshold)

    def run(
        self,
        train,
        epochs: int,
        validation_data=None,
        workers: int | None = None,
        verbose: int = 1,
        **fit_arguments,
    ) -> SearchResult:
        """Runs trials until one meets the target, or `max_trials` have been run.

        Interrupted (Ctrl-C), it returns what it has found so far.

        Args:
            train: what `fit` takes: a dataset or `(x, y)`; or a function that returns
                it, which is what other processes need for a dataset.
            epochs: int: the length of every trial.
            validation_data: what accuracy is measured on, like `train`; by `fit` after
                every epoch, too, if one of its `callbacks` monitors a `"val_..."`.
                Defaults to the training data.
            workers: int: how many trials Ray Tune runs at once, in processes of their
                own, on this machine or on a cluster that `ray.init` has joined. Needs
                the extra `tfprune[ray]`. None runs them here, one by one.
            verbose: 0 or 1: whether to show a live table of trials.
            **fit_arguments: passed to every `fit`, such as `batch_size`.

        Returns:
            `SearchResult`.

        Raises:
            ValueError: for arguments out of range, or if `build` does not return a
                compiled model with the regularizer in it.
        """
        check_integer("epochs", epochs, 1)
        if workers is not None:
            check_integer("workers", workers, 1)
        directory = None if self.directory is None else Path(self.directory)
        job = Job(
            self.build,
            self.threshold,
            self.seed,
            train,
            validation_data,
            epochs,
            fit_arguments,
        )
        algorithm = Algorithm1(
            self.flops_reduction, self.tolerance, self.strength, self.t
        )
        file = TrialFile(directory and directory / "trials.json")
        progress = _Progress(algorithm, file, self.max_trials, verbose)
        with progress:
            try:
                if workers is None:
                    _run_here(job, progress, directory)
                else:
                    from tfprune.search.on_ray import run_on_ray

                    run_on_ray(job, progress, directory, workers)
            except KeyboardInterrupt:
                progress.reason = "it was interrupted"
        return progress.result()


def _run_here(job: Job, progress: "_Progress", directory: Path | None) -> None:
    while points := progress.propose(1):
        ((strength, t),) = points
        callbacks = []
        if directory is not None:
            backup = trial_directory(directory, strength, t)
            callbacks.append(keras.callbacks.BackupAndRestore(backup))
        progress.add(run_trial(job, strength, t, callbacks))


class _Progress:
    """The trials so far, what comes next, and the live table of them."""

    def __init__(self, algorithm, file: TrialFile, max_trials: int, verbose: int):
        self._algorithm, self._file = algorithm, file
        self._max_trials, self._verbose = max_trials, verbose
        self._live = None
        self.reason = ""

    @property
    def trials(self) -> list:
        return self._file.trials

    def propose(self, count: int) -> list:
        """Returns the next points to try; none when the search is over."""
        points, self.reason = self._algorithm.propose(self.trials, count)
        left = self._max_trials - len(self.trials)
        if points and left <= 0:
            self.reason = (
                f"{self._max_trials} trials were run, and the closest is "
                f"{abs(self._algorithm.error(self._algorithm.best(self.trials))):.1%} "
                "off: raise `max_trials` or `tolerance`, or train longer"
            )
            return []
        return points[:left]

    def add(self, trial) -> None:
        self._file.add(trial)
        self._show()

    def result(self) -> SearchResult:
        algorithm = self._algorithm
        return SearchResult(
            tuple(self.trials),
            algorithm.best(self.trials),
            algorithm.is_met(self.trials),
            self.reason,
            algorithm.flops_reduction,
            algorithm.tolerance,
        )

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self.result().table(), refresh=True)

    def __enter__(self):
        if self._verbose:
            from rich.live import Live

            self._live = Live(self.result().table(), auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(self, *error):
        self._show()
        if self._live is not None:
            self._live.__exit__(*error)
