"""Deselects the cluster test unless its marker is requested: ``pytest -m hosts tests/hosts``."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "hosts" in config.option.markexpr:
        return
    deselected = [item for item in items if item.get_closest_marker("hosts")]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]
