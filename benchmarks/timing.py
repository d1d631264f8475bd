"""Interleaved timings, and what is made of them; needs no Keras."""

import time

import numpy as np

FREQUENCY = 100


def interleave(functions, rounds, clock=time.perf_counter):
    """Runs each function once a round; returns seconds, `(rounds, functions)`."""
    order = np.random.default_rng(0)
    seconds = np.empty((rounds, len(functions)))
    for row in seconds:
        for i in order.permutation(len(functions)):
            start = clock()
            functions[i]()
            row[i] = clock() - start
    return seconds


def paired_ratio(seconds):
    """The second column over the first: median of the rounds' ratios."""
    return float(np.median(seconds[:, 1] / seconds[:, 0]))


def amortized(seconds, frequency):
    """Steps with an update of the masks in every `frequency`, over steps without masks.

    Args:
        seconds: columns with steps without masks, with masks that stand still, and with
            an update in every step.
        frequency: int.
    """
    plain, held, updated = seconds.T
    mixed = ((frequency - 1) * held + updated) / frequency
    return float(np.median(mixed / plain))
