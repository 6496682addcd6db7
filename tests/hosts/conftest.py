"""The suite with hosts of its own runs where it is asked for by its marker, and nowhere else."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "hosts" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("hosts")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]
