"""`remove_passive`: what stays, what is said, and that it costs nothing."""

import keras
import numpy as np
import pytest
from keras import layers

from tfprune import Graph, cost, read_masks, remove_passive, strip
from tfprune.callbacks import Preflight
from tfprune.optimizers import GlobalSparseMomentum


def network(width=64):
    return keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(width, "relu", name="fc1"),
            layers.Dense(width // 2, "relu", name="fc2"),
            layers.Dense(4, name="logits"),
        ]
    )


@pytest.fixture(scope="module")
def data():
    """Four classes, apart along a few directions of twenty."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(4, 20)) * 1.5
    y = random.integers(0, 4, 640)
    return (centers[y] + random.normal(size=(640, 20))).astype("float32"), y


def trained(model, data, optimizer, epochs, *callbacks):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(*data, batch_size=32, epochs=epochs, verbose=0, callbacks=[*callbacks])
    return model


@pytest.fixture(scope="module")
def decayed(data):
    keras.utils.set_random_seed(0)
    model = trained(network(), data, keras.optimizers.SGD(0.1, momentum=0.9), 3)
    optimizer = GlobalSparseMomentum(
        0.05, compression=20, momentum=0.95, weight_decay=1e-2
    )
    assert optimizer.decay_budget(40 * 20) == pytest.approx(8)
    return trained(model, data, optimizer, 40)


def test_zeroing_costs_nothing(decayed, data, capsys):
    before = [w.copy() for w in decayed.get_weights()]
    sparse = remove_passive(decayed, data)
    printed = capsys.readouterr().out
    whole = sum(w.size for w in before if w.ndim == 2)
    plain = strip(sparse)
    masks = read_masks(Graph(plain, unit="weight"))
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == whole // 20
    # The largest of all kernels together.
    magnitudes = np.concatenate([abs(w).ravel() for w in before if w.ndim == 2])
    flat = np.concatenate(list(masks.values()))
    assert magnitudes[flat].min() >= magnitudes[~flat].max()

    assert f"{kept:,} of {whole:,} weights stay (20." in printed
    gap = float(printed.partition("gap: ")[2].split()[0])
    edge = np.sort(magnitudes)[-np.array([kept, 2 * kept])]
    assert gap == pytest.approx(edge[0] / edge[1], rel=0.01) and gap > 20
    share = np.linalg.norm(magnitudes[~flat]) / np.linalg.norm(magnitudes)
    assert f"; {share:.1%} of the norm goes" in printed and share < 0.1
    first, second = printed.partition("accuracy: ")[2].split(" before, ")
    assert abs(float(first) - float(second.split()[0])) <= 0.003
    assert float(first) > 0.9
    # The user's model is what it was.
    for now, then in zip(decayed.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_zeros_hold_in_further_training(decayed, data):
    sparse = remove_passive(decayed, verbose=0)
    masks = read_masks(Graph(sparse, unit="weight"))
    trained(sparse, data, keras.optimizers.Adam(1e-2), 1)
    after = read_masks(Graph(strip(sparse), unit="weight"))
    assert all((after[name] <= masks[name]).all() for name in masks)
    assert cost(strip(sparse)).params == cost(network()).params


def test_what_has_not_decayed_is_told(data):
    model = trained(network(), data, GlobalSparseMomentum(0.01, compression=5), 1)
    with pytest.warns(UserWarning, match="not all next to nothing.*decay_budget"):
        remove_passive(model, verbose=0)


def test_weights_that_took_turns_are_told(data):
    model = trained(network(), data, GlobalSparseMomentum(0.01, compression=20), 1)
    # One and a half times as many as are to stay are large.
    for kernel in (each.kernel for each in model.layers):
        size = kernel.numpy().size
        large = np.arange(size) < 1.5 * size / 20
        kernel.assign(np.where(large, 1.0, 1e-6).reshape(kernel.shape))
    with pytest.warns(UserWarning, match="more than Q were active in turns"):
        remove_passive(model, verbose=0)


def test_rankings_of_their_own_and_kernels_left_out(data):
    scope = {"fc1/kernel": 0.9, "logits/*": 0.5}
    model = trained(network(), data, GlobalSparseMomentum(0.01, scope=scope), 1)
    with pytest.warns(UserWarning, match="not all next to nothing"):
        sparse = remove_passive(model, verbose=0)
    masks = read_masks(Graph(strip(sparse), unit="weight"))
    assert [int(mask.sum()) for mask in masks.values()] == [128, 64 * 32, 64]


def test_every_kernel_keeps_a_weight(data):
    model = network()
    optimizer = GlobalSparseMomentum(1e-3, compression=1000)
    model.layers[0].kernel.assign(model.layers[0].kernel * 1e-6)
    trained(model, data, optimizer, 1)
    with pytest.warns(UserWarning, match="not all next to nothing"):
        sparse = remove_passive(model, verbose=0)
    masks = read_masks(Graph(strip(sparse), unit="weight"))
    assert min(mask.sum() for mask in masks.values()) == 1
    assert sum(mask.sum() for mask in masks.values()) == 3


def test_bad_models(data):
    model = trained(network(), data, "adam", 1)
    with pytest.raises(ValueError, match="GlobalSparseMomentum.*Adam"):
        remove_passive(model)
    model.compile(GlobalSparseMomentum(compression=5), "mse")
    with pytest.raises(ValueError, match="has not taken a step"):
        remove_passive(model)


def test_diverged_and_dead_models(data):
    model = trained(network(), data, GlobalSparseMomentum(0.05, compression=20), 1)
    values = model.get_weights()
    for factor, message in ((np.nan, "not finite"), (0.0, "All weights .* are zero")):
        model.set_weights([factor * value for value in values])
        with pytest.raises(ValueError, match=message):
            remove_passive(model, verbose=0)


@pytest.mark.filterwarnings("ignore:The weights that go", "ignore:Gradients do not")
def test_kernels_that_were_not_moved_stay_whole(data):
    model = network()
    aside = keras.layers.Dense(30, name="aside")
    model = keras.Model(model.inputs, [*model.outputs, aside(model.inputs[0])])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(GlobalSparseMomentum(0.05, compression=20), [loss, None])
    model.fit(*data, batch_size=32, verbose=0)
    model.get_layer("fc1").trainable = False
    sparse = strip(remove_passive(model, verbose=0))
    kept = {k.path: np.count_nonzero(k) for k in sparse.weights if k.ndim > 1}
    assert kept["aside/kernel"] == 20 * 30 and kept["fc1/kernel"] == 20 * 64
    left = kept["fc2/kernel"] + kept["logits/kernel"]
    assert left == (64 * 32 + 32 * 4) // 20
    # Frozen as a whole, for export, it ends as it trained.
    model.trainable = False
    sparse = strip(remove_passive(model, verbose=0))
    kept = {k.path: np.count_nonzero(k) for k in sparse.weights if k.ndim > 1}
    assert kept.pop("aside/kernel") == 20 * 30
    assert sum(kept.values()) == (20 * 64 + 64 * 32 + 32 * 4) // 20


# Before the first step ----------------------------------------------------------------


def test_preflight_tells_the_plan(data, capsys):
    optimizer = GlobalSparseMomentum(
        0.05, compression=20, momentum=0.95, weight_decay=1e-1
    )
    with pytest.warns(UserWarning, match="swing through zero"):
        trained(network(), data, optimizer, 4, Preflight())
    printed = capsys.readouterr().out
    assert "172 of 3,456 weights in 3 kernels are to stay (20.1x)" in printed
    assert "decay budget: 8 in 80 steps" in printed


def test_preflight_warns_of_a_short_run(data):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([40], [0.2, 0.1])
    settings = {"compression": 20, "momentum": 0.5}
    optimizer = GlobalSparseMomentum(schedule, **settings)
    with pytest.warns(UserWarning, match=r"keep 9\d\.\d%.*`weight_decay=0\.") as w:
        trained(network(), data, optimizer, 4, Preflight(verbose=0))
    advice = float(str(w[0].message).partition("weight_decay=")[2].split("`")[0])
    enough = GlobalSparseMomentum(schedule, weight_decay=advice, **settings)
    assert 7 <= enough.decay_budget(80) < 8


def test_preflight_advises_no_decay_at_which_weights_swing(data):
    optimizer = GlobalSparseMomentum(0.02, compression=20)
    with pytest.warns(UserWarning, match="Train for .* steps or more, with") as found:
        trained(network(), data, optimizer, 1, Preflight(verbose=0))
    (text,) = [str(w.message) for w in found if "Train for" in str(w.message)]
    steps = int(text.partition("Train for ")[2].split()[0].replace(",", ""))
    decay = float(text.partition("weight_decay=")[2].split("`")[0])
    better = GlobalSparseMomentum(0.02, compression=20, weight_decay=decay)
    assert 7 <= better.decay_budget(steps) < 9
    assert 0.02 * decay <= (1 - 0.98**0.5) ** 2


@pytest.mark.filterwarnings("ignore:`GlobalSparseMomentum`. passive weights")
def test_preflight_counts_from_where_a_run_begins(data, capsys):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([19], [0.05, 1e-9])
    optimizer = GlobalSparseMomentum(
        schedule, compression=20, momentum=0.9, weight_decay=0.05
    )
    model = trained(network(), data, optimizer, 1, Preflight())
    assert "decay budget: 0.5 in 20 steps" in capsys.readouterr().out
    model.fit(*data, batch_size=32, verbose=0, callbacks=[Preflight()])
    assert "decay budget: 1e-08 in 20 steps" in capsys.readouterr().out
    # A run that goes on is one with what it has behind it.
    half = {"epochs": 3, "initial_epoch": 2, "callbacks": [Preflight()]}
    model.fit(*data, batch_size=32, verbose=0, **half)
    assert "decay budget: 0.5 in 60 steps" in capsys.readouterr().out


def test_preflight_warns_of_kernels_that_are_zero(data):
    model = network()
    model.layers[1].kernel.assign(model.layers[1].kernel * 0)
    optimizer = GlobalSparseMomentum(
        0.05, compression=20, momentum=0.5, weight_decay=1.0
    )
    with pytest.warns(UserWarning, match="all zero, such as .*fc2/kernel"):
        trained(model, data, optimizer, 8, Preflight(verbose=0))
