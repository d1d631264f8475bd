"""GSM: a network for scikit-learn's digits loses all but a twentieth of its weights.

Then which of its initial weights would have been enough, how sensitive each layer is,
and how small the file becomes.
"""

from pathlib import Path

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfprune


def build(width):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(width, activation="relu", name="fc1"),
            layers.Dense(width // 2, activation="relu", name="fc2"),
            layers.Dense(10, name="fc3"),
        ]
    )


def main(width=256, epochs=60, path="digits.tfsparse"):
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images.astype("float32") / 16,
        labels,
        test_size=450,
        stratify=labels,
        random_state=0,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def fit(model, optimizer, epochs, *callbacks):
        model.compile(optimizer, loss, metrics=["accuracy"])
        settings = {"batch_size": 32, "verbose": 0, "callbacks": [*callbacks]}
        model.fit(train_x, train_y, epochs=epochs, **settings)
        return model

    def train(model, callbacks=()):
        sgd = keras.optimizers.SGD(0.1, momentum=0.9)
        return fit(model, sgd, epochs // 4, *callbacks)

    def sparsify(model):
        steps = epochs * len(train_x) // 32
        optimizer = tfprune.optimizers.GlobalSparseMomentum(
            0.05, compression=20, momentum=0.95, weight_decay=8 / steps
        )
        fit(model, optimizer, epochs, tfprune.callbacks.Preflight())
        return tfprune.remove_passive(model, (test_x, test_y))

    # All weights but a twentieth decay to nothing while the network trains.
    keras.utils.set_random_seed(0)
    start = build(width)
    dense = train(tfprune.strip(start))
    sparse = tfprune.strip(sparsify(tfprune.strip(dense)))

    # The layers that lose most when pruned alone are those it keeps more of.
    found = tfprune.sensitivity(dense, (test_x, test_y), sparsities=(0.5, 0.9, 0.95))
    masks = tfprune.read_masks(tfprune.Graph(sparse, unit="weight"))
    print(found.summary(masks))

    # The same weights, from the beginning; and as many that magnitude would choose.
    tickets = {
        "GSM": tfprune.winning_ticket(start, train, find=sparsify),
        "magnitude": tfprune.winning_ticket(start, train, sparsity=0.95),
    }
    for name, ticket in tickets.items():
        model = train(ticket.model)
        accuracy = model.evaluate(test_x, test_y, verbose=0)[1]
        print(f"ticket by {name}: accuracy {accuracy:.2%}")

    tfprune.save_sparse(sparse, path, overwrite=True)
    sizes = tfprune.sparse_files.file_sizes(sparse)
    print(f"{path}: {Path(path).stat().st_size:,} bytes")
    print(", ".join(f"{kind} {size:,}" for kind, size in sizes.items()))
    return dense, sparse, tickets


if __name__ == "__main__":
    main()
