"""How much of a model can be pruned at all, and what keeps the rest."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FreeChannels:
    """Output channels of the kernels that multiply-accumulate, free to go or kept.

    A channel counts once for every kernel that makes or carries it, so that the share
    says how much of the work can go.

    Attributes:
        free: number of channels that masks can remove.
        total: number of all channels.
        reasons: dict of what keeps channels to their number, largest first.
    """

    free: int
    total: int
    reasons: dict[str, int] = field(compare=False)

    @property
    def share(self) -> float:
        """The fraction of the channels that is free; 0 where there are none."""
        return self.free / self.total if self.total else 0.0

    def describe(self, shown: int = 4) -> list[str]:
        """Returns lines of text: the share, then the most frequent reasons."""
        free = f"{self.free:,} of {self.total:,} kernel channels are free to go"
        kept = list(self.reasons.items())
        lines = [f"{free} ({self.share:.1%})"]
        lines += [f"  {count:,} kept: {reason}" for reason, count in kept[:shown]]
        rest = sum(count for _, count in kept[shown:])
        if rest:
            lines.append(f"  {rest:,} kept for {len(kept) - shown} more reasons")
        return lines


def count_free(graph) -> FreeChannels:
    """Counts the free channels of a graph, see `FreeChannels`."""
    contracting = {term.path for term in graph.mac_terms}
    reasons = [
        reason
        for binding in graph.bindings
        if binding.path in contracting
        and not binding.read
        and len(binding.variable.shape) > 1
        for reason in graph.reasons(binding.labels)
    ]
    kept = Counter(reason for reason in reasons if reason is not None)
    free = len(reasons) - kept.total()
    return FreeChannels(free, len(reasons), dict(kept.most_common()))
