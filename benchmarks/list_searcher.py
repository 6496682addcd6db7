"""A minimal Tune searcher that yields given configurations one by one.

``benchmarks.scale_run`` uses it for the bare Tuner.
"""

from collections.abc import Iterable
from typing import Any

from ray.tune.search import Searcher


class ListSearcher(Searcher):
    """Suggests the configurations in their order."""

    def __init__(self, configurations: Iterable[dict[str, Any]]) -> None:
        super().__init__()
        self._remaining = iter(configurations)

    def suggest(self, trial_id: str) -> Any:
        return next(self._remaining, Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        return None

    def save(self, checkpoint_path: str) -> None:
        return None

    def restore(self, checkpoint_path: str) -> None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {}
