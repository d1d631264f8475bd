"""Small models on the way to the budget."""

from collections.abc import Iterable
from pathlib import Path

from tfprune import training, writing
from tfprune.checks import check_number
from tfprune.surgery import compact
from tfprune.surgery.gates import has_kernel_gates


class Snapshots(training.PruningCallback):
    """Saves a compacted model whenever pruning passes one of the given points.

    It works beside `PruneToBudget` and `TickTock`, at any place in the list. One run
    so gives models of several sizes, each to be fine-tuned by itself.

    Args:
        path: path of the `.keras` files, with a place for the point, such as
            `"resnet-{flops_reduction:.2f}.keras"`.
        flops_reduction: fractions of the multiply-accumulates removed at which to save,
            such as `(0.4, 0.5, 0.6)`, or one.

    Raises:
        ValueError: if the path does not end in `.keras` or has no place for the point,
            or a point is not in (0, 1); when training begins, if masks on single
            weights are pruned, which make nothing smaller.
        FileNotFoundError: when training begins, if there is no such directory.
        FileExistsError: when training begins, if there are such files already.

    Example:

    ```python
    model = tfprune.prune_wrap(model, tfprune.layers.ChannelGate)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss)
    tick_tock = tfprune.callbacks.TickTock(train, budget)
    snapshots = tfprune.callbacks.Snapshots("{flops_reduction:.1f}.keras", (0.1, 0.2))
    model.fit(train, epochs=60, callbacks=[tick_tock, snapshots])
    ```
    """

    prunes = False

    def __init__(self, path, flops_reduction: float | Iterable[float]):
        super().__init__()
        self.path = str(path)
        is_list = isinstance(flops_reduction, Iterable)
        points = list(flops_reduction) if is_list else [flops_reduction]
        if not points:
            raise ValueError(
                "`flops_reduction` must be fractions in (0, 1), such as (0.4, 0.6). "
                f"Received: flops_reduction={flops_reduction!r}"
            )
        for point in points:
            check_number("flops_reduction", point, "(0, 1)", "the fraction removed")
        self.points = tuple(sorted(set(points)))
        if not self._has_places() or not self.path.endswith(".keras"):
            raise ValueError(
                "`path` must end in .keras and have a place for the point, such as "
                f"'small-{{flops_reduction:.2f}}.keras'. Received: path={path!r}"
            )

    def set_model(self, model):
        super().set_model(model)
        # Another callback may prune, and so write, before this one's training begins.
        self._written = set()

    def on_train_begin(self, logs=None):
        if has_kernel_gates(self.model):
            raise ValueError(
                "`Snapshots` saves models that have become smaller, and masks on "
                f"weights make none smaller. Received: model={self.model.name!r}. Use "
                "`keras.callbacks.ModelCheckpoint`."
            )
        for point in self.points:
            writing.check_path(self._path_at(point), ".keras", overwrite=True)

    def on_epoch_begin(self, epoch, logs=None):
        paths = set(map(self._path_at, self.points)) - self._written
        old = sorted(path for path in paths if path.exists())
        # A resumed run goes on beside the files that it has written before.
        if epoch == 0 and old:
            raise FileExistsError(
                f"`path` must not name files that exist. Received: path={self.path!r}, "
                f"and there is {old[0]}. Choose another one or remove them."
            )

    def on_train_end(self, logs=None):
        # A `keras.callbacks.CallbackList` of a user's own sets the model only once.
        self._written = set()

    def on_masks_change(self, model, removed):
        """Called by the callback that prunes, when it has closed gates.

        Args:
            model: the model whose gates they are.
            removed: what all masks remove, under the names of `Budget`.
        """
        for point in self.points:
            path = self._path_at(point)
            if removed["flops_reduction"] >= point - 1e-9 and not path.exists():
                with writing.write_aside(path, ".keras") as aside:
                    compact(model).save(aside)
                self._written.add(path)

    def summary(self):
        """Returns what is saved in the current `fit`, as text."""
        points = ", ".join(f"{point:.2f}" for point in self.points)
        return f"Snapshots: {self.path} at flops_reduction={points}"

    def _has_places(self) -> bool:
        try:
            names = {self._path_at(point) for point in self.points}
            return len(names) == len(self.points) and self._path_at(0) != self._path_at(
                1
            )
        except (KeyError, IndexError, ValueError):
            return False

    def _path_at(self, point):
        return Path(self.path.format(flops_reduction=point))
