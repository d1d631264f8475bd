"""Searches: procedures over several trainings."""

from tfprune.search.amc import AMC, AMCResult
from tfprune.search.grid_search import GridSearch
from tfprune.search.trials import SearchResult, Trial

__all__ = ["AMC", "AMCResult", "GridSearch", "SearchResult", "Trial"]
