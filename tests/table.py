"""A table of models: one row per layer or operation, every invariant for each."""

import checker
import keras
from invariants import check_all
from keras import layers


class Table:
    """Rows `name -> (builder of a model, what has to come out)`."""

    def __init__(self):
        self._rows = {}

    def row(self, *loses, keeps=(), skipped=(), locked=(), **options):
        """Returns a decorator that adds the builder of a model.

        Args:
            loses: layers whose output has to lose channels.
            keeps: layers whose output has to keep them all.
            skipped: paths that have to be listed in `graph.skipped`, and no others.
            locked: paths that have to be listed in `graph.locked`.
            options: `tolerance`, `size` and `wrap` of `check_all`.
        """

        def add(build):
            self.add(
                build.__name__.strip("_"),
                build,
                *loses,
                keeps=keeps,
                skipped=skipped,
                locked=locked,
                **options,
            )
            return build

        return add

    def add(self, name, build, *loses, keeps=(), skipped=(), locked=(), **options):
        assert name not in self._rows, name
        self._rows[name] = (build, loses, keeps, skipped, locked, options)

    @property
    def names(self) -> list[str]:
        return sorted(self._rows)

    def check(self, name):
        """Prunes half of the row's model and checks everything there is to check."""
        build, loses, keeps, skipped, locked, options = self._rows[name]
        model = checker.randomize(build())
        graph, masks, _ = check_all(model, **options)
        lost = graph.layer_masks(masks)
        for path in loses:
            assert path in lost, f"{path!r} lost nothing; locked: {graph.locked}"
            assert 0 < lost[path].sum() < lost[path].size
        assert not set(keeps) & set(lost)
        assert graph.skipped.keys() == set(skipped)
        assert set(locked) <= set(graph.locked)


def image(size=8, channels=3, **kwargs):
    return layers.Input((size, size, channels), name="image", **kwargs)


def conv(x, width=8, name="conv", **kwargs):
    kwargs = {"padding": "same", "activation": "relu", **kwargs}
    return layers.Conv2D(width, kwargs.pop("kernel", 3), name=name, **kwargs)(x)


def head(inputs, x, pool=True):
    x = layers.GlobalAveragePooling2D(name="gap")(x) if pool else x
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def between(*middle, channels=8):
    """conv - the layers in between - conv2 - pooling - logits."""
    inputs = image()
    x = conv(inputs, channels)
    for layer in middle:
        x = layer(x)
    return head(inputs, conv(x, 6, "conv2"))
