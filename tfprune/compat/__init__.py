"""The interfaces of other pruning packages, on Keras 3."""
