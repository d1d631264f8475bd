"""The trials of a search on Ray Tune, in parallel processes or on a cluster."""

import dataclasses
import tempfile
from pathlib import Path

import keras
import ray
from ray import tune
from ray.tune.search import Searcher

from tfprune.search.training import Job, run_trial
from tfprune.search.trials import Trial


def run_on_ray(job: Job, progress, directory, workers: int) -> None:
    """Runs what is left of a search as trials of Ray Tune.

    Args:
        job: what all trials have in common.
        progress: the search's progress: what to try next, and where results go.
        directory: where Ray keeps its trials; None takes Ray's own place.
        workers: trials at once.
    """
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        storage = None if directory is None else str(directory.absolute() / "ray")
        tuner = tune.Tuner(
            tune.with_parameters(_train, job=job),
            tune_config=tune.TuneConfig(
                search_alg=_Proposals(progress, workers),
                num_samples=-1,
                max_concurrent_trials=workers,
            ),
            run_config=tune.RunConfig(
                storage_path=storage,
                verbose=0,
                name="trials",
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )
        results = tuner.fit()
        if results.errors:
            raise results.errors[0]
    finally:
        if started:
            ray.shutdown()


def _train(config, job):
    trial = run_trial(job, config["strength"], config["t"], [_Checkpoints()])
    tune.report({**dataclasses.asdict(trial), "epoch": job.epochs})


class _Checkpoints(keras.callbacks.Callback):
    """Gives Ray the state of training after every epoch, and takes it back."""

    # Weights alone: what the model is compiled with need not be known to Keras.
    name = "state.weights.h5"

    def on_train_begin(self, logs=None):
        checkpoint = tune.get_checkpoint()
        if checkpoint is None:
            return
        optimizer = self.model.optimizer
        if not optimizer.built:
            # Only then is its state among what is loaded.
            optimizer.build(self.model.trainable_variables)
        with checkpoint.as_directory() as directory:
            self.model.load_weights(Path(directory) / self.name)
            epochs = int((Path(directory) / "epochs").read_text())
        self.model._initial_epoch = epochs

    def on_epoch_end(self, epoch, logs=None):
        with tempfile.TemporaryDirectory() as directory:
            self.model.save_weights(Path(directory) / self.name)
            (Path(directory) / "epochs").write_text(str(epoch + 1))
            state = tune.Checkpoint.from_directory(directory)
            tune.report({"epoch": epoch + 1}, checkpoint=state)


class _Proposals(Searcher):
    """Lets Ray ask the search what to try next."""

    def __init__(self, progress, workers: int):
        super().__init__(metric="epoch", mode="max")
        self._progress, self._workers = progress, workers
        self._waiting: list = []
        self._running: dict = {}
        self._has_failed = False

    def suggest(self, trial_id):
        if self._has_failed:
            return Searcher.FINISHED
        if not self._waiting and not self._running:
            self._waiting = self._progress.propose(self._workers)
            if not self._waiting:
                return Searcher.FINISHED
        if not self._waiting:
            return None
        strength, t = self._waiting.pop(0)
        self._running[trial_id] = strength, t
        return {"strength": strength, "t": t}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self._running.pop(trial_id, None)
        self._has_failed |= error
        names = [field.name for field in dataclasses.fields(Trial)]
        if result is not None and not error and "flops_reduction" in result:
            self._progress.add(Trial(**{name: result[name] for name in names}))

    def save(self, checkpoint_path):
        """Nothing to save: everything follows from the trials."""

    def restore(self, checkpoint_path):
        """Nothing to restore."""
