"""`PruneToBudget` inside `fit`: the budget, the time of updates, resuming, saving."""

import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfprune.budget import Budget
from tfprune.callbacks import MaskSummaries, PruneToBudget, Snapshots
from tfprune.costs import cost
from tfprune.graph import Graph
from tfprune.importances import LOBS
from tfprune.schedules import Constant, OneShot, Periodic, Polynomial
from tfprune.surgery import prune_wrap, read_masks

HALF = Budget(flops_reduction=0.5)
LOSS = "sparse_categorical_crossentropy"


def wrapped(model, optimizer=None, **arguments):
    model = prune_wrap(model)
    optimizer = optimizer or keras.optimizers.SGD(0.01, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **arguments)
    return model


def train(model, data, *callbacks, epochs=2, batch_size=4, **arguments):
    return model.fit(
        *data,
        epochs=epochs,
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **arguments,
    )


def training_steps(model):
    return int(model.optimizer.iterations)


def flops_reduction(model):
    graph = Graph(model)
    return 1 - cost(graph, read_masks(model)).macs / cost(graph).macs


def state(model):
    return [
        keras.ops.convert_to_numpy(v)
        for v in model.variables + model.optimizer.variables
    ]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


class Recorder(keras.callbacks.Callback):
    """Records the optimizer step and the units kept after every batch."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def on_train_batch_begin(self, batch, logs=None):
        self._record()

    def on_train_batch_end(self, batch, logs=None):
        self._record()

    def _record(self):
        masks = read_masks(self.model)
        kept = sum(int(mask.sum()) for mask in masks.values())
        self.kept[int(self.model.optimizer.iterations)] = kept

    def changes(self):
        steps = sorted(self.kept)
        pairs = itertools.pairwise(steps)
        return [b for a, b in pairs if self.kept[a] != self.kept[b]]


class StopAfter(keras.callbacks.Callback):
    """Ends training after an epoch, as an interruption would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == self.epoch


# The budget.


def test_budget_is_met_and_logged(make_residual, images):
    model = wrapped(make_residual())
    history = train(model, images, PruneToBudget("magnitude", HALF), epochs=3).history
    assert 0.5 <= flops_reduction(model) < 0.7
    assert history["flops_reduction"][-1] == pytest.approx(flops_reduction(model))
    assert history["sparsity"][-1] == pytest.approx(1 - read_masks(model).density())
    assert history["flops_reduction"] == sorted(history["flops_reduction"])


@pytest.mark.parametrize("name", ["params_reduction", "sparsity"])
def test_other_budgets_are_met(make_vgg, images, name):
    model = wrapped(make_vgg())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(model, images, PruneToBudget("magnitude", Budget(**{name: 0.4})))
    graph, masks = Graph(model), read_masks(model)
    removed = {
        "params_reduction": 1 - cost(graph, masks).params / cost(graph).params,
        "sparsity": 1 - masks.density(),
    }
    assert removed[name] >= 0.4


@pytest.mark.parametrize(
    ("schedule", "batch_size", "steps_per_execution"),
    [
        # Batches of 5 make 7 steps, batches of 4 make 8.
        (Polynomial(0, 7, frequency=100), 5, 1),
        (Polynomial(0, 7, frequency=100), 5, 3),
        (Polynomial(0, 1.0, frequency=3), 4, 3),
        (Periodic(3, 8, frequency=5), 4, 1),
        (Periodic(3, 8, frequency=5), 4, 3),
        (OneShot(1.0), 4, 3),
        (OneShot(0), 4, 1),
        (Constant(frequency=3), 4, 3),
    ],
)
def test_budget_is_met_whatever_the_step_counts(
    make_vgg, images, schedule, batch_size, steps_per_execution
):
    model = wrapped(make_vgg((4,)), steps_per_execution=steps_per_execution)
    prune = PruneToBudget("magnitude", HALF, schedule)
    train(model, images, prune, batch_size=batch_size, epochs=1)
    assert flops_reduction(model) >= 0.5


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_jit_and_mixed_precision(make_residual, images, policy):
    keras.config.set_dtype_policy(policy)
    model = wrapped(make_residual(4), jit_compile=True)
    train(model, images, PruneToBudget("magnitude", HALF), batch_size=8)
    assert flops_reduction(model) >= 0.5


def test_gradient_accumulation_counts_optimizer_steps(make_vgg, images):
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    model, recorder = wrapped(make_vgg(), optimizer), Recorder()
    # 16 batches are 8 optimizer steps.
    prune = PruneToBudget("magnitude", HALF, Periodic(0, 8, frequency=4))
    train(model, images, prune, recorder)
    assert recorder.changes() == [4, 8]
    assert flops_reduction(model) >= 0.5


def test_steps_skipped_by_loss_scaling_do_not_cost_the_budget(make_vgg, images):
    keras.config.set_dtype_policy("mixed_float16")
    inner = keras.optimizers.SGD(0.01)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**30)
    model = wrapped(make_vgg(), optimizer)
    train(model, images, PruneToBudget("magnitude", HALF, OneShot(1.0)))
    assert int(inner.iterations) < 16
    assert flops_reduction(model) >= 0.5


def test_data_of_unknown_length_needs_times_in_steps(make_vgg, images):
    x, y = images

    def batches():
        for i in range(8):
            yield x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4]

    model = wrapped(make_vgg())
    with pytest.raises(ValueError, match="steps_per_epoch"):
        model.fit(batches(), verbose=0, callbacks=[PruneToBudget("magnitude", HALF)])
    prune = PruneToBudget("magnitude", HALF, Polynomial(0, 6, frequency=2))
    model.fit(batches(), verbose=0, callbacks=[prune])
    assert flops_reduction(model) >= 0.5


def test_scope_is_passed_on(make_vgg, images):
    model = wrapped(make_vgg((8, 8)))
    prune = PruneToBudget("magnitude", Budget(sparsity=0.5), scope="uniform")
    train(model, images, prune)
    assert [mask.sum() for mask in read_masks(model).values()] == [4, 4]


def test_scope_of_fractions_is_scaled_to_the_budget(make_vgg, images):
    model = wrapped(make_vgg((8, 8)))
    prune = PruneToBudget("magnitude", Budget(sparsity=0.25), scope={"conv2": 0.9})
    train(model, images, prune)
    assert [mask.sum() for mask in read_masks(model).values()] == [8, 4]


def test_partly_gated_model_is_pruned_where_it_has_gates(make_vgg, images):
    model = prune_wrap(make_vgg((8, 8)), layers=["conv2"])
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="without gates: conv1"):
        train(model, images, PruneToBudget("magnitude", Budget(sparsity=0.25)))
    prune = PruneToBudget("magnitude", Budget(sparsity=0.25), scope={"conv2": 0.9})
    train(model, images, prune)
    assert [mask.sum() for mask in read_masks(model).values()] == [8, 4]


# The time of updates.


@pytest.mark.parametrize(
    ("steps_per_execution", "changes"), [(1, [2, 4, 6]), (3, [3, 6])]
)
def test_masks_change_when_the_schedule_says(
    make_vgg, images, steps_per_execution, changes
):
    model = wrapped(make_vgg(), steps_per_execution=steps_per_execution)
    recorder = Recorder()
    prune = PruneToBudget("magnitude", HALF, Periodic(0, 6, frequency=2))
    train(model, images, prune, recorder, epochs=2)
    assert recorder.changes() == changes


def test_steps_of_earlier_training_do_not_count(make_vgg, images):
    model, recorder = wrapped(make_vgg()), Recorder()
    train(model, images, epochs=1)
    prune = PruneToBudget("magnitude", HALF, Periodic(0, 6, frequency=3))
    train(model, images, prune, recorder, epochs=1)
    assert recorder.changes() == [8 + 3, 8 + 6]


def test_no_update_traces_the_model_again(make_vgg, images):
    traces = []

    def counting_loss(y_true, y_pred):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y_true, y_pred, from_logits=True
        )

    model = prune_wrap(make_vgg())
    model.compile("sgd", counting_loss)
    train(model, images, epochs=1)
    traced = len(traces)
    train(model, images, PruneToBudget("magnitude", HALF), epochs=3)
    # `fit` may trace once for itself; 20 updates of masks trace nothing.
    assert len(traces) == traced
    assert flops_reduction(model) >= 0.5


# Resuming.


@pytest.mark.parametrize(
    ("schedule", "is_first"),
    [
        (Polynomial(0, 20, frequency=3), True),
        (Periodic(0, 1.0, frequency=8), False),
        (Constant(begin=3, frequency=5), True),
    ],
)
def test_resumed_training_equals_uninterrupted_training(
    make_residual, images, tmp_path, schedule, is_first
):
    path = str(tmp_path / "epoch{epoch}.keras")
    prune = PruneToBudget("magnitude", HALF, schedule)
    callbacks = [prune, keras.callbacks.ModelCheckpoint(path)]
    model = wrapped(make_residual(4))
    train(model, images, *(callbacks if is_first else callbacks[::-1]), epochs=4)

    resumed = keras.models.load_model(path.format(epoch=2))
    prune = PruneToBudget("magnitude", HALF, schedule)
    train(resumed, images, prune, epochs=4, initial_epoch=2)
    assert_same(state(resumed), state(model))
    assert flops_reduction(resumed) >= 0.5


def test_resuming_in_the_same_process_equals_uninterrupted_training(make_vgg, images):
    models = [wrapped(model) for model in _twins(make_vgg)]
    train(models[0], images, PruneToBudget("magnitude", HALF), epochs=3)
    with pytest.warns(UserWarning, match="before the budget was met"):
        train(
            models[1], images, PruneToBudget("magnitude", HALF), StopAfter(0), epochs=3
        )
    train(
        models[1], images, PruneToBudget("magnitude", HALF), epochs=3, initial_epoch=1
    )
    assert_same(state(models[0]), state(models[1]))


@pytest.mark.parametrize("is_first", [True, False])
def test_backup_and_restore_equals_uninterrupted_training(
    make_vgg, images, tmp_path, is_first
):
    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole, crashed, restored = map(wrapped, _twins(make_vgg, 3))
    schedule = Polynomial(0, 20, frequency=3)
    train(whole, images, PruneToBudget("magnitude", HALF, schedule), epochs=3)
    for model, crash in ((crashed, [Crash()]), (restored, [])):
        prune = PruneToBudget("magnitude", HALF, schedule)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        both = [prune, backup] if is_first else [backup, prune]
        try:
            train(model, images, *both, *crash, epochs=3)
        except KeyboardInterrupt:
            assert crash
    assert int(crashed.optimizer.iterations) == 16
    assert_same(state(whole), state(restored))


def test_an_update_that_was_missed_is_made_good(make_vgg, images):
    model = wrapped(make_vgg())
    train(model, images, epochs=2)
    prune = PruneToBudget("magnitude", HALF, OneShot(0.25))
    train(model, images, prune, epochs=4, initial_epoch=2)
    assert flops_reduction(model) >= 0.5


def test_a_callback_may_be_used_again(make_vgg, images):
    prune = PruneToBudget("magnitude", HALF)
    for _ in range(2):
        model = wrapped(make_vgg())
        train(model, images, prune)
        assert flops_reduction(model) >= 0.5


# Saving.


@pytest.mark.parametrize("is_first", [True, False])
def test_every_saved_epoch_holds_the_masks_in_force(
    make_vgg, images, tmp_path, is_first
):
    path = str(tmp_path / "epoch{epoch}.keras")
    prune = PruneToBudget("magnitude", HALF, Periodic(0, 16, frequency=4))
    callbacks = [prune, keras.callbacks.ModelCheckpoint(path)]
    model = wrapped(make_vgg((8, 16)))
    logs = train(model, images, *(callbacks if is_first else callbacks[::-1])).history
    for epoch, reduction in enumerate(logs["flops_reduction"], 1):
        saved = keras.models.load_model(path.format(epoch=epoch))
        assert flops_reduction(saved) == pytest.approx(reduction, abs=1e-12)
        assert reduction >= (0.25, 0.5)[epoch - 1]


# What is refused, and what is warned of.


def test_model_without_gates_is_refused_naming_the_remedy(make_vgg, images):
    model = make_vgg()
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="prune_wrap"):
        train(model, images, PruneToBudget("magnitude", HALF))


@pytest.mark.parametrize(
    ("budget", "schedule", "message"),
    [
        (Budget(flops_reduction=0.999), None, "cannot be met"),
        (HALF, OneShot(17), "does not finish within the run"),
        (HALF, Polynomial(0, 100), "does not finish within the run"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(
    make_vgg, images, budget, schedule, message
):
    model = wrapped(make_vgg())
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        train(model, images, PruneToBudget("magnitude", budget, schedule))
    assert_same(state(model), before)


def test_failing_importance_leaves_the_masks_as_they_are(make_vgg, images):
    calls = []

    def importance(graph):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no scores")
        return {group.name: np.arange(group.size) for group in graph.groups}

    model = wrapped(make_vgg())
    prune = PruneToBudget(importance, HALF, Periodic(0, 8, frequency=4))
    with pytest.raises(RuntimeError, match="no scores"):
        train(model, images, prune)
    # Calls: one to see that the budget can be met, then those after steps 4 and 8.
    assert int(model.optimizer.iterations) == 8
    assert 0.25 <= flops_reduction(model) < 0.5


def test_early_end_warns(make_vgg, images):
    model = wrapped(make_vgg())
    prune = PruneToBudget("magnitude", HALF, Periodic(0, 1.0, 4))
    with pytest.warns(
        UserWarning, match="stopped after step 8; .* of which 2 were due"
    ):
        train(model, images, prune, StopAfter(0), epochs=2)


def test_finished_run_does_not_warn(make_vgg, images):
    model = wrapped(make_vgg())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(model, images, PruneToBudget("magnitude", HALF))


def test_denser_masks_brought_back_by_early_stopping_are_warned_of(make_vgg, images):
    model = wrapped(make_vgg())
    # No epoch is better than the first by this much.
    first = keras.callbacks.EarlyStopping(
        "loss", patience=9, min_delta=1e9, restore_best_weights=True
    )
    prune = PruneToBudget("magnitude", HALF, Periodic(0, 16, 4))
    with pytest.warns(UserWarning, match="EarlyStopping"):
        train(model, images, first, prune, epochs=2)


@pytest.mark.parametrize(
    "read_once",
    [iter, lambda data: (x for x in data), itertools.chain, zip]
    + [lambda data: iter(tf.data.Dataset.from_tensor_slices(data[0]).batch(8))],
)
def test_data_that_can_be_read_once_are_refused(images, read_once):
    batches = read_once([images])
    with pytest.raises(ValueError, match="`data` is read at each update"):
        PruneToBudget("taylor", HALF, data=batches)
    assert list(batches)


def test_loaders_that_begin_anew_are_taken(make_vgg, images):
    class Loader:
        def __iter__(self):
            self.left = [images, images]
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            return self.left.pop()

    prune = PruneToBudget("taylor", HALF, Periodic(0, 8, 4), data=Loader())
    model = wrapped(make_vgg())
    train(model, images, prune, epochs=1)
    assert flops_reduction(model) >= 0.5


def test_importance_that_needs_data_is_refused():
    class Taylor:
        def __call__(self, graph):
            return {}

        def update_state(self, model, x, y):
            pass

    class Batches:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise IndexError

    with pytest.raises(ValueError, match="needs data"):
        PruneToBudget(Taylor(), HALF)
    with pytest.raises(ValueError, match="takes no data"):
        PruneToBudget("magnitude", HALF, data=[])
    with pytest.raises(ValueError, match="`data` must be .*, not arrays"):
        PruneToBudget("taylor", HALF, data=(np.zeros((4, 8, 8, 3)), np.zeros(4)))
    # Batches without labels, and what has them by number, are data.
    PruneToBudget(LOBS(), HALF, data=[np.zeros((4, 3))])
    PruneToBudget("taylor", HALF, data=Batches())
    PruneToBudget(lambda graph: Taylor()(graph), HALF)


@pytest.mark.parametrize("importance", ["taylor", "molchanov", "fisher"])
def test_importances_that_are_shown_data(make_residual, images, importance):
    model = wrapped(make_residual(8))
    x, y = images
    batches = [(x[:8], y[:8]), (x[8:16], y[8:16])]
    prune = PruneToBudget(importance, HALF, Periodic(0, 6, 3), data=batches)
    seen = []
    update = prune.importance.update_state

    def update_state(*arguments):
        seen.append(training_steps(model))
        update(*arguments)

    prune.importance.update_state = update_state
    train(model, images, prune)
    assert flops_reduction(model) >= 0.5
    # Once for the forecast, then at every update, each time both batches.
    assert seen == [0, 0, 3, 3, 6, 6]


def test_budget_must_be_a_budget():
    with pytest.raises(ValueError, match="`budget` must be"):
        PruneToBudget("magnitude", 0.5)
    with pytest.raises(ValueError, match="with a target"):
        PruneToBudget("magnitude", Budget(max_sparsity=0.9))


def _twins(make, count=2):
    first = make()
    others = [make() for _ in range(count - 1)]
    for other in others:
        other.set_weights(first.get_weights())
    return [first, *others]


# Parts of what is trained ---------------------------------------------------------


class Adversarial(keras.Model):
    """A GAN's first half: a training step and an optimizer of its own, no `call`."""

    def __init__(self, generator, critic):
        super().__init__()
        self.generator, self.critic = generator, critic
        self.own = keras.optimizers.SGD(0.01)

    def train_step(self, x):
        noise = keras.random.normal((4, 8))
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self.critic(self.generator(noise, training=True)))
        variables = self.generator.trainable_variables
        self.own.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return {"loss": loss}


def dense_network(*widths):
    hidden = [keras.layers.Dense(width, "relu") for width in widths[1:-1]]
    last = keras.layers.Dense(widths[-1])
    return keras.Sequential([keras.Input((widths[0],)), *hidden, last])


def test_generator_of_a_gan():
    generator = prune_wrap(dense_network(8, 16, 16, 4))
    model = Adversarial(generator, dense_network(4, 8, 1))
    model.compile()
    data = tf.data.Dataset.from_tensors(tf.zeros((4, 4))).repeat(8)
    with pytest.raises(ValueError, match="part=generator"):
        model.fit(data, verbose=0, callbacks=[PruneToBudget("magnitude", HALF)])
    seen = []
    prune = PruneToBudget(
        "magnitude", HALF, Polynomial(begin=0, end=12, frequency=4), part=generator
    )
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(flops_reduction(generator))
    )
    history = model.fit(data, epochs=2, verbose=0, callbacks=[prune, watch])
    steps = [i + 1 for i in range(1, 16) if seen[i] != seen[i - 1]]
    assert steps == [4, 8, 12]
    assert flops_reduction(generator) >= 0.5
    assert history.history["flops_reduction"][-1] >= 0.5


@pytest.mark.parametrize(
    "make", [lambda: "generator", lambda: prune_wrap(dense_network(8, 16, 4))]
)
def test_part_is_a_part(make, make_vgg, images):
    model = wrapped(make_vgg())
    with pytest.raises(ValueError, match="`part` must be a built model inside"):
        train(model, images, PruneToBudget("magnitude", HALF, part=make()))


def test_student_that_is_distilled(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorflow.python.summary.summary_iterator import summary_iterator

    student = prune_wrap(dense_network(8, 16, 16, 4))
    distiller = keras.distillation.Distiller(
        dense_network(8, 32, 4), student, keras.distillation.LogitsDistillation()
    )
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    x, y = np.ones((16, 8), "float32"), np.zeros(16)
    prune = PruneToBudget("magnitude", HALF, part=student)
    beside = [
        Snapshots(tmp_path / "{flops_reduction:.1f}.keras", 0.5),
        MaskSummaries(tmp_path / "logs"),
    ]
    distiller.fit(x, y, batch_size=4, epochs=3, verbose=0, callbacks=[prune, *beside])
    assert flops_reduction(student) >= 0.5
    small = keras.saving.load_model(tmp_path / "0.5.keras")
    assert cost(small).macs <= 0.5 * cost(student).macs
    np.testing.assert_allclose(small(x).shape, student(x).shape)
    (path,) = (tmp_path / "logs").glob("*")
    events = [
        (e.step, v.tag) for e in summary_iterator(str(path)) for v in e.summary.value
    ]
    assert [step for step, tag in events if tag == "sparsity"] == [4, 8, 12]
