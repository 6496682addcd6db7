"""The configuration of a search: its sections, and loading it from TOML, presets and options.

Used by the commands, the search driver and the training jobs.
"""

from tinynet_search.config.loading import (
    PRESETS,
    Config,
    Override,
    PlanInputs,
    Values,
    check_sync_bn,
    load_config,
    merged,
    read_values,
    validate,
    values_from_options,
    with_settings,
)

__all__ = [
    "PRESETS",
    "Config",
    "Override",
    "PlanInputs",
    "Values",
    "check_sync_bn",
    "load_config",
    "merged",
    "read_values",
    "validate",
    "values_from_options",
    "with_settings",
]
