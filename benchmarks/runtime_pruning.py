"""Channels chosen per image, timed and trained: python benchmarks/runtime_pruning.py

    --only speed      M-CifarNet, a VGG-like network at 112x112 and a residual block, at
                      a quarter, a half and three quarters of their channels: every mode
                      beside dense, masked and statically compacted ones
    --only guard      three layers on maps of several sizes: up to which share of the
                      channels choosing their weights takes less time than all channels
                      do that are masked, and the `overhead` for `deploy` in that
    --only accuracy   CIFAR-10 with a small network: FBS and its random control, RNP,
                      FPGM, and static and runtime pruning by agents, beside the rows
                      that were published for M-CifarNet

Times are of single images, of SavedModels that were exported and loaded, in rounds of
several calls, interleaved; dense ones have their normalizations folded too. Processor
time is taken with one thread, and wall time with two, in a process each. Every method
of `accuracy` starts from the same trained network of its seed and trains as long.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import cifar
import keras
import numpy as np
import structure
import tensorflow as tf
from keras import layers
from results import Results
from timing import interleave

import tfprune
from tfprune.layers import RuntimeGate
from tfprune.runtime import deploy, work
from tfprune.runtime.gates import gates_of
from tfprune.runtime.work import seeing_masks

KEEPS = (0.25, 0.5, 0.75)
CALLS = 10
# Of M-CifarNet at half of the channels: accuracy, and how much of it was lost.
PUBLISHED = {
    "FBS": (89.88, -1.49),
    "RNP": (84.93, -7.14),
    "FPGM": (89.80, -2.27),
    "agents, R=1": (91.425, -0.645),
    "agents, R=0.5": (91.228, -0.842),
}


# Networks --------------------------------------------------------------------------


def block(x, width, stride=1, pool=False):
    x = layers.Conv2D(width, 3, stride, "same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return layers.MaxPooling2D()(x) if pool else x


def m_cifarnet():
    x = inputs = layers.Input((32, 32, 3))
    x = layers.Conv2D(64, 3, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for number, width in enumerate((64, 128, 128, 128, 192, 192, 192)):
        x = block(x, width, stride=2 if number in (1, 4) else 1)
    return _classified(inputs, x)


def vgg():
    x = inputs = layers.Input((112, 112, 3))
    for width in (64, 128, 256, 512):
        x = block(block(x, width), width, pool=True)
    return _classified(inputs, x)


def residual():
    x = inputs = layers.Input((28, 28, 128))
    for _ in range(2):
        y = layers.Conv2D(128, 3, padding="same", use_bias=False)(block(x, 128))
        x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(y)]))
    return _classified(inputs, x)


def small():
    x = inputs = layers.Input((32, 32, 3))
    x = layers.Rescaling(1 / 128, -1)(x)
    for number, width in enumerate((16, 16, 32, 32, 64, 64)):
        x = block(x, width, stride=2 if number in (2, 4) else 1)
    return _classified(inputs, x)


def _classified(inputs, x):
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


# Speed -----------------------------------------------------------------------------


def modes(model, keep):
    """Returns `{name: model}`: all that can be made of a model at a ratio."""
    graph = tfprune.Graph(model)
    inner = [place.name for place in graph.groups if len(place.layers) == 2]
    masks = {
        name: np.arange(graph.group(name).size) < round(keep * graph.group(name).size)
        for name in inner
    }

    def wrapped(**arguments):
        gated = tfprune.prune_wrap(model, RuntimeGate, block=16, **arguments)
        random = np.random.default_rng(0)
        for gate in gates_of(gated):
            if gate.predicts:
                # Untrained predictions are all alike.
                gate.rho.assign(random.uniform(0.5, 1.5, gate.rho.shape))
        return gated

    agent = wrapped(keep_ratio=keep)
    policy = gates_of(agent)[0].policy
    # An agent that says the ratio, whatever it sees, at the price of looking.
    policy.agent.mean.kernel.assign(tf.zeros_like(policy.agent.mean.kernel))
    widths = wrapped(selection="prefix", agent="groups", per_network=True)
    worth = gates_of(widths)[0].policy.agent.worth
    worth.kernel.assign(tf.zeros_like(worth.kernel))
    worth.bias.assign(tf.one_hot(round(keep * 4) - 1, 4))
    fbs = wrapped(agent=None, keep_ratio=keep)
    prefix = wrapped(agent=None, keep_ratio=keep, selection="prefix")
    return {
        "dense": tfprune.compact(model, {}, optimize=True),
        "static": tfprune.compact(graph, masks, optimize=True),
        "masked, FBS": deploy(fbs, "mask"),
        "masked, agent": deploy(agent, "mask"),
        "block, FBS": deploy(fbs, "block", overhead=0),
        "block, agent": deploy(agent, "block", overhead=0),
        "prefix": deploy(prefix, "prefix", overhead=0),
        "bucket": deploy(widths, "bucket"),
    }


NETWORKS = {"M-CifarNet": m_cifarnet, "VGG-like": vgg, "residual": residual}
LIMITS = {
    ("M-CifarNet", 0.5, "bucket"): 0.50,
    ("M-CifarNet", 0.5, "block, agent"): 0.85,
    ("VGG-like", 0.5, "block, agent"): 0.65,
}


def time_modes(network, keep, rounds, threads):
    """Returns `{mode: seconds of a call}`; to be run in a process of its own."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = NETWORKS[network]()
    shape = (1, *model.input_shape[1:])
    image = tf.constant(np.random.default_rng(0).random(shape, "float32"))
    functions, artefacts = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, each) in enumerate(modes(model, keep).items()):
            path = tfprune.export(each, Path(folder) / str(number))
            artefacts.append(tf.saved_model.load(str(path)))
            serve = artefacts[-1].serve.get_concrete_function(tf.TensorSpec(shape))
            functions[name] = _caller(serve, image)
        for call in functions.values():
            call()
        clock = time.process_time if threads == 1 else time.perf_counter
        seconds = interleave(list(functions.values()), rounds, clock) / CALLS
    dense = seconds[:, :1]
    ratios = np.median(seconds / dense, axis=0)
    times = np.median(seconds, axis=0)
    return {
        name: (float(times[i]), float(ratios[i])) for i, name in enumerate(functions)
    }


def _caller(serve, image):
    def call():
        for _ in range(CALLS):
            serve(image)

    return call


def speed(options):
    for network in NETWORKS:
        for keep in KEEPS:
            one, two = (_in_a_process(options, network, keep, n) for n in (1, 2))
            for mode, (seconds, ratio) in one.items():
                limit = LIMITS.get((network, keep, mode))
                wall, wall_ratio = two[mode]
                detail = (
                    f"{1e3 * seconds:.2f} ms; wall with two threads "
                    f"{1e3 * wall:.2f} ms, {wall_ratio:.2f}x"
                )
                claim = f"{network}, {keep:.2f} kept: {mode}"
                yield structure.Row(claim, ratio, limit, "x dense", detail)


def _in_a_process(options, *arguments):
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    command += ["--rounds", str(options.rounds)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


# When choosing weights pays ----------------------------------------------------------

# Side of the map, and channels.
MAPS = (
    (4, 512),
    (6, 256),
    (7, 256),
    (7, 512),
    (8, 192),
    (10, 256),
    (14, 256),
    (28, 128),
)
SHARES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9)
CHOOSING = {"block": {}, "prefix": {"selection": "prefix"}}


def three_layers(side, channels):
    x = inputs = layers.Input((side, side, channels))
    for _ in range(3):
        x = block(x, channels)
    return _classified(inputs, x)


def guard(options):
    for mode in CHOOSING:
        for side, channels in MAPS:
            found = _in_a_process(options, mode, side, channels)
            yield _guard_row(mode, side, channels, found)


def _guard_row(mode, side, channels, found):
    """A row with the share of channels up to which choosing their weights pays."""
    keeps, ratios = np.array(found).T
    pays = np.interp(1, np.maximum.accumulate(ratios), keeps)
    detail = f"overhead {side**2 * (1 / pays**2 - 1):.0f} places"
    detail = f"below {detail}" if ratios.max() < 1 else detail
    detail += "; time over that of masked ones: "
    detail += ", ".join(f"{100 * keep:.0f} % {x:.2f}" for keep, x in found)
    return structure.Row(
        f"{mode}: {side}x{side} maps of {channels}", pays, None, "kept", detail
    )


def time_guard(mode, side, channels, rounds):
    """Returns `[(share kept, time of chosen channels over that of masked ones)]`."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = three_layers(side, channels)
    image = tf.constant(np.random.default_rng(0).random((1, side, side, channels), "f"))
    functions = []
    for keep in SHARES:
        arguments = {"agent": None, "block": 16, "keep_ratio": keep, **CHOOSING[mode]}
        gated = tfprune.prune_wrap(model, RuntimeGate, **arguments)
        for overhead in (0, 1e9):
            fast = deploy(gated, mode, overhead=overhead)
            call = tf.function(lambda x, fast=[fast]: fast[0](x, training=False))
            functions.append(_caller(call.get_concrete_function(image), image))
    for call in functions:
        call()
    seconds = interleave(functions, rounds, time.process_time)
    ratios = np.median(seconds[:, ::2] / seconds[:, 1::2], axis=0)
    return list(zip(SHARES, ratios.tolist(), strict=True))


# Accuracy --------------------------------------------------------------------------


@keras.saving.register_keras_serializable("benchmarks")
class RandomGate(RuntimeGate):
    """Keeps as many channels, whichever: the control."""

    def mask(self, predicted, static, ratios, static_ratios):
        return super().mask(tf.random.normal(tf.shape(predicted)), None, ratios, ratios)


def fit(model, images, options, seed, epochs, rate, *callbacks):
    data = images.batches(128, seed, options.images)
    steps = epochs * (len(images.train[0][: options.images]) // 128 + 1)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    model.fit(data, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def _agents(base, images, options, seed, warm_up=0.25, penalty=-0.1, **arguments):
    model = tfprune.prune_wrap(base, RuntimeGate, **arguments)
    data = images.batches(128, seed, options.images)
    learning = tfprune.callbacks.PolicyTraining(
        data,
        batches=options.phase,
        learning_rate=options.agent_rate,
        warm_up=warm_up,
        penalty=penalty,
        seed=seed,
    )
    return fit(model, images, options, seed, options.epochs, 1e-3, learning)


def _dense(base, images, options, seed):
    model = keras.models.clone_model(base)
    model.set_weights(base.get_weights())
    return fit(model, images, options, seed, options.epochs, 1e-3)


def _fpgm(base, images, options, seed):
    graph = tfprune.Graph(base)
    budget = tfprune.Budget(sparsity=0.5)
    masks = tfprune.select(graph, "geometric_median", budget, scope="uniform")
    model = tfprune.compact(graph, masks)
    return fit(model, images, options, seed, options.epochs, 1e-3)


def _gated(kind=RuntimeGate):
    def train(base, images, options, seed):
        model = tfprune.prune_wrap(base, kind, agent=None, rectify=True)
        lower = tfprune.callbacks.KeepRatioSchedule(0.5)
        return fit(model, images, options, seed, options.epochs, 1e-3, lower)

    return train


def _by_agents(**arguments):
    return lambda *given: _agents(*given, **arguments)


METHODS = {
    "dense, trained on": _dense,
    "FBS": _gated(),
    "FBS, random channels": _gated(RandomGate),
    "RNP": _by_agents(agent="groups", selection="prefix", warm_up=2, penalty=-0.02),
    "FPGM": _fpgm,
    "agents, R=1": _by_agents(keep_ratio=0.5),
    "agents, R=0.5": _by_agents(keep_ratio=0.5, runtime_ratio=0.5),
}


def accuracy(options):
    images = cifar.load(options.data_dir)
    results = Results(options.results)
    for seed in options.seeds:
        base = _base(images, options, seed)
        for method in options.methods or METHODS:
            if results.find(seed=seed, method=method) is None:
                keras.utils.set_random_seed(seed)
                model = METHODS[method](base, images, options, seed)
                results.add(_measured(model, base, images, seed, method, options))
    for method in METHODS:
        rows = [row for row in results.rows if row["method"] == method]
        if rows:
            yield _row(method, rows)


def _base(images, options, seed):
    keras.utils.set_random_seed(seed)
    path = Path(options.results).with_suffix(f".{seed}.keras")
    if not path.exists():
        model = fit(small(), images, options, seed, options.base_epochs, 3e-3)
        model.save(path)
    return keras.saving.load_model(path)


def _measured(model, base, images, seed, method, options):
    x, _ = images.test
    row = {"seed": seed, "method": method, "epochs": options.epochs}
    row["base"] = cifar.accuracy(base, images.test)
    row["accuracy"] = cifar.accuracy(model, images.test)
    row["macs"] = tfprune.cost(model).macs / tfprune.cost(base).macs
    if gates_of(model):
        row["macs"] = float(work(model, x).mean())
        row["shuffled"] = _shuffled(model, images.test)
    # A model that draws channels computes something else each time.
    stored = model if method == "FBS, random channels" else tfprune.compact(model)
    agents = gates_of(stored)[0].policy if gates_of(stored) else None
    own = stored.count_params()
    row["params"] = own / base.count_params()
    row["agents"] = agents.count_params() / own if agents is not None else 0.0
    if stored is not model or not gates_of(model):
        row["ms"], row["ms_dense"] = _milliseconds(stored, base, x[:1])
    return row


def _milliseconds(model, base, image):
    """Returns the processor time of an image, and that of the dense network."""
    dense, image = (
        tfprune.compact(base, {}, optimize=True),
        tf.constant(image, tf.float32),
    )
    if gates_of(model):
        model = deploy(model, "block" if gates_of(model)[0].predicts else "prefix")
    else:
        model = tfprune.compact(model, {}, optimize=True)
    calls = []
    for each in (model, dense):
        function = tf.function(lambda x, each=[each]: each[0](x, training=False))
        calls.append(_caller(function.get_concrete_function(image), image))
        calls[-1]()
    return (
        1e3 * np.median(interleave(calls, 30, time.process_time), 0) / CALLS
    ).tolist()


def _shuffled(model, data):
    """Returns the accuracy when each image gets the masks of another one."""

    def shuffle(gate, mask):
        return tf.roll(mask, 1, axis=0)

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, metrics=["accuracy"])
    with seeing_masks(model, shuffle):
        return float(model.evaluate(*data, batch_size=500, verbose=0)[1])


def _row(method, rows):
    lost = np.array([row["accuracy"] - row["base"] for row in rows])
    found = np.array([row["accuracy"] for row in rows])
    detail = (
        f"{found.mean():.2f} % ({', '.join(f'{each:.2f}' for each in found)}); "
        f"MACs {np.mean([r['macs'] for r in rows]):.2f}x, "
        f"weights {np.mean([r['params'] for r in rows]):.2f}x"
    )
    timed = [row["ms"] / row["ms_dense"] for row in rows if "ms" in row]
    if timed:
        milliseconds = np.mean([row["ms"] for row in rows if "ms" in row])
        detail += f", {milliseconds:.2f} ms an image, {np.mean(timed):.2f}x"
    if rows[0]["agents"]:
        detail += f", {np.mean([row['agents'] for row in rows]):.0%} of them agents"
    if "shuffled" in rows[0]:
        shuffled = 100 * np.mean([row["shuffled"] for row in rows])
        detail += f"; with masks of other images {shuffled:.2f} %"
    if method in PUBLISHED:
        detail += "; published {} %, {} points".format(*PUBLISHED[method])
    return structure.Row(method, lost.mean(), None, " points", detail, True)


def main(arguments=None):
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = {"speed": speed, "guard": guard, "accuracy": accuracy}
    parser.add_argument("--only", choices=list(parts))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--data-dir", default="../shared/tfds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument("--images", type=int, help="training images to use, all if not")
    parser.add_argument("--base-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--phase", type=int, default=40, help="batches of a phase")
    parser.add_argument("--agent-rate", type=float, default=1e-4)
    parser.add_argument("--results", default="runtime_pruning.jsonl")
    options = parser.parse_args(arguments)
    if options.child:
        what, first, second = options.child
        if what in CHOOSING:
            found = time_guard(what, int(first), int(second), options.rounds)
        else:
            found = time_modes(what, float(first), options.rounds, int(second))
        print(json.dumps(found))
        return
    rows = [
        row
        for name, part in parts.items()
        if options.only in (None, name)
        for row in part(options)
    ]
    console = Console()
    if not console.is_terminal:
        console.width = 150
    caption = (
        "Processor time, with one thread in `speed` and `guard`, unless wall is said."
    )
    console.print(structure.table(rows, "tfprune, runtime pruning", caption))


if __name__ == "__main__":
    main()
