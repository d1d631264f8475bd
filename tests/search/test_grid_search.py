"""GridSearch on small trainings: here, resumed, interrupted, and on Ray."""

import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import search_jobs
from search_jobs import build, data, validation

import tfprune
from tfprune.search import GridSearch

# One epoch of 16 steps at a learning rate of 0.1 and momentum 0.9 pushes by 16 times
# the strength.
ARGUMENTS = {"flops_reduction": 0.4, "tolerance": 0.15, "strength": 0.02}


def search(**arguments):
    return GridSearch(build, **{**ARGUMENTS, **arguments})


def run(each, **arguments):
    arguments = {"validation_data": validation, "verbose": 0, **arguments}
    return each.run(data, epochs=2, **arguments)


@pytest.fixture(autouse=True)
def count_trials():
    search_jobs.built.clear()


@pytest.mark.filterwarnings("ignore:The scales of these")
def test_it_finds_what_meets_the_target(tmp_path):
    result = run(search())
    assert result.is_met and result.reason == "the target was met"
    assert abs(result.best.flops_reduction - 0.4) < 0.15
    assert len(search_jobs.built) == len(result.trials)
    # A trial can be had again by its numbers.
    keras.utils.set_random_seed(0)
    model = build(
        tfprune.regularizers.Polarization(result.best.t, result.best.strength)
    )
    model.fit(data(), epochs=2, verbose=0)
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "scale", threshold="valley")
    small = tfprune.compact(model, masks)
    reduction = 1 - tfprune.cost(small).macs / tfprune.cost(model).macs
    assert reduction == pytest.approx(result.best.flops_reduction, abs=0.05)
    result.plot(tmp_path / "path.png")
    assert [x.name for x in tmp_path.iterdir()] == ["path.png"]
    assert (tmp_path / "path.png").stat().st_size > 5_000


@pytest.mark.filterwarnings("ignore:The scales of these")
def test_trials_of_a_directory_are_not_run_again(tmp_path):
    first = run(search(directory=tmp_path, max_trials=1, strength=1e-4))
    assert not first.is_met and "1 trials were run" in first.reason
    again = run(search(directory=tmp_path, max_trials=1, strength=1e-4))
    assert again.trials == first.trials and len(search_jobs.built) == 1
    run(search(directory=tmp_path, max_trials=2, strength=1e-4))
    assert len(search_jobs.built) == 2
    # What was trained halfway is cleared away, trials are kept.
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in kept] == ["trials.json"]


@pytest.mark.filterwarnings("ignore:The scales of these")
def test_interrupted_it_returns_what_it_has(monkeypatch, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if len(search_jobs.built) == 2 and epoch == 1:
                raise KeyboardInterrupt

    arguments = {"strength": 1e-3, "directory": tmp_path}
    result = run(search(**arguments), callbacks=[Stop()])
    assert result.reason == "it was interrupted" and len(result.trials) == 1
    # The trial that was under way goes on after its last whole epoch.
    epochs = []
    seen = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: epochs.append(e))
    run(search(**arguments, max_trials=2), callbacks=[seen])
    assert epochs == [1]


@pytest.mark.filterwarnings("ignore:The scales of these")
@pytest.mark.parametrize("validation_data", [validation, None])
def test_callbacks_that_watch_validation_see_it(validation_data):
    stop = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=1e9)
    arguments = {"validation_data": validation_data, "callbacks": [stop]}
    search(max_trials=1).run(data, epochs=9, verbose=0, **arguments)
    assert stop.model.history.epoch == [0, 1]


@pytest.mark.filterwarnings("ignore:The scales of these")
def test_what_is_shown(capsys):
    result = run(search(max_trials=1, strength=1e-3), verbose=1)
    printed = capsys.readouterr().out
    assert "40.0% fewer FLOPs" in printed and "0.001" in printed
    assert f"{result.best.accuracy:.4f}" in printed


@pytest.fixture(scope="module")
def cluster():
    """A local Ray cluster of two workers, which can import the jobs."""
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


@pytest.mark.filterwarnings("ignore:The scales of these")
@pytest.mark.slow
def test_on_ray(cluster, tmp_path):
    here = run(search(max_trials=2))
    result = run(search(directory=tmp_path, max_trials=2), workers=2)
    # The same trials with the same numbers, whatever process they ran in.
    local = {(x.strength, x.t): x.flops_reduction for x in here.trials}
    remote = {(x.strength, x.t): x.flops_reduction for x in result.trials}
    common = local.keys() & remote.keys()
    assert common and all(
        local[k] == pytest.approx(remote[k], abs=0.05) for k in common
    )
    states = list(tmp_path.rglob("state.weights.h5"))
    assert len(states) >= len(result.trials) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The scales of these")
def test_a_trial_that_is_lost_on_ray_goes_on(cluster, tmp_path):
    fails = search_jobs.FailsOnce(tmp_path / "epochs")
    arguments = {"max_trials": 1, "directory": tmp_path / "search"}
    result = run(search(**arguments), workers=1, callbacks=[fails])
    # The second epoch began twice, the first was not trained again.
    assert (tmp_path / "epochs").read_text().split() == ["0", "1", "1"]
    here = run(search(max_trials=1))
    (trial,), (expected,) = result.trials, here.trials
    assert trial.flops_reduction == pytest.approx(expected.flops_reduction, abs=0.05)


def test_what_ray_is_given_needs_no_names_of_losses(monkeypatch, tmp_path):
    tune = pytest.importorskip("ray.tune")
    from tfprune.search.on_ray import _Checkpoints

    def compiled():
        keras.utils.set_random_seed(0)
        model = build(tfprune.regularizers.Polarization())
        loss = model.loss
        model.compile(keras.optimizers.Adam(), lambda y, y_pred: loss(y, y_pred))
        return model

    def keep(metrics, checkpoint):
        checkpoint.to_directory(tmp_path)
        monkeypatch.setattr(tune, "get_checkpoint", lambda: checkpoint)
        checkpoint.path = str(tmp_path)

    monkeypatch.setattr(tune, "report", keep)
    monkeypatch.setattr(tune, "get_checkpoint", lambda: None)
    whole, first, second = compiled(), compiled(), compiled()
    whole.fit(data(), epochs=2, verbose=0)
    first.fit(data(), epochs=1, verbose=0, callbacks=[_Checkpoints()])
    history = second.fit(data(), epochs=2, verbose=0, callbacks=[_Checkpoints()])
    assert history.epoch == [1]
    assert second.optimizer.iterations == whole.optimizer.iterations
    pairs = zip(whole.get_weights(), second.get_weights(), strict=True)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"build": None}, "`build` must be a function"),
        ({"flops_reduction": 50}, "`flops_reduction` must lie in"),
        ({"tolerance": 0}, "`tolerance` must lie in"),
        ({"max_trials": 0}, "`max_trials` must be an int of at least 1"),
        ({"strength": 0}, "`strength` must be above 0"),
        ({"threshold": "valey"}, "`threshold` must be a float, one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridSearch(**{"build": build, **ARGUMENTS, **arguments})


@pytest.mark.filterwarnings("ignore:The scales of these")
def test_a_trial_that_diverges_is_no_end():
    """Its weights are no numbers, so nothing can be told of its scales."""

    def diverging(regularizer):
        model = build(regularizer)
        if regularizer.strength > 1e-4:
            model.optimizer.learning_rate = float("nan")
        return model

    arguments = {**ARGUMENTS, "strength": 1e-4, "max_trials": 3}
    first, second, third = run(GridSearch(diverging, **arguments)).trials
    assert (second.flops_reduction, second.accuracy) == (0.0, float("-inf"))
    assert first.strength < third.strength < second.strength
    arguments["strength"], arguments["flops_reduction"] = 1e-3, 0.01
    result = run(GridSearch(diverging, **arguments))
    assert len(result.trials) == 1 and not result.is_met
    assert "lower the learning rate" in result.reason


def test_a_build_without_compile():
    def uncompiled(regularizer):
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])

    with pytest.raises(ValueError, match="`build` must return a compiled model"):
        run(GridSearch(uncompiled, **ARGUMENTS))


def test_a_build_that_ignores_the_regularizer():
    def same(regularizer):
        model = tfprune.strip(build(regularizer))
        model.compile("sgd", "mse")
        return model

    with pytest.raises(ValueError, match="with the regularizer in it"):
        run(GridSearch(same, **ARGUMENTS))


@pytest.mark.parametrize(
    "arguments", [{"epochs": 0}, {"workers": 0}, {"workers": "2"}, {"epochs": 2.0}]
)
def test_bad_arguments_of_a_run(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be an int of at least 1"):
        search().run(data, **{"epochs": 2, "verbose": 0, **arguments})
    assert not search_jobs.built


@pytest.mark.filterwarnings("error:Early stopping conditioned")
@pytest.mark.filterwarnings("ignore:The scales of these")
def test_callbacks_see_the_validation_data_they_ask_for():
    stops = keras.callbacks.EarlyStopping("val_loss")
    run(search(max_trials=1), callbacks=stops)
    assert "val_loss" in stops.model.history.history
    history = keras.callbacks.History()
    run(search(max_trials=1), callbacks=[history])
    assert not any(name.startswith("val_") for name in history.history)


def test_accuracy_is_the_first_metric_of_the_pruned_model():
    result = run(search(max_trials=1, strength=1e-9))
    keras.utils.set_random_seed(0)
    model = build(tfprune.regularizers.Polarization(1.2, 1e-9))
    model.fit(data(), epochs=2, verbose=0)
    expected = model.evaluate(validation(), verbose=0, return_dict=True)["accuracy"]
    assert result.best.accuracy == pytest.approx(expected, abs=0.02)
    assert np.isclose(result.best.flops_reduction, 0, atol=1e-6)
