"""Callbacks: what changes masks during `fit`."""

from tfprune.callbacks.keep_ratio_schedule import (
    KeepRatioSchedule as KeepRatioSchedule,
)
from tfprune.callbacks.mask_summaries import MaskSummaries as MaskSummaries
from tfprune.callbacks.mask_training import MaskTraining as MaskTraining
from tfprune.callbacks.network_surgery import NetworkSurgery as NetworkSurgery
from tfprune.callbacks.policy_training import PolicyTraining as PolicyTraining
from tfprune.callbacks.preflight import Preflight as Preflight
from tfprune.callbacks.prune_to_budget import PruneToBudget as PruneToBudget
from tfprune.callbacks.release_scales import ReleaseScales as ReleaseScales
from tfprune.callbacks.snapshots import Snapshots as Snapshots
from tfprune.callbacks.tick_tock import TickTock as TickTock
