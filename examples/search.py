"""Run a search from Python and use its formula.

    python examples/search.py [STORAGE]

Trains ten small networks on the built-in images in less than a minute on two CPU cores. If it is
run again, it continues an interrupted search and repeats no finished training. If ``RAY_ADDRESS``
is set, the trials run on that cluster.
"""

import sys

from tinynet_search import load_config, run_search


def main(storage: str = "searches") -> None:
    config = load_config(
        overrides={
            "space": {"name": "efficientnet_mini"},
            "search": {"name": "example", "trials": 8, "sampler": "stratified", "finals": [0.25]},
            "recipe": {"name": "short", "epochs": 4},
            "data": {"name": "petals", "train": 1440, "val": 240},
            "storage": {"path": storage},
        }
    )
    outcome = run_search(config)

    print("frontier:")
    for row in outcome.frontier:
        print(f"  {row.run}  c = {row.c:.3f}  top-1 = {row.top1:.1f} %")
    # Outside the frontier's range of c, suggest() raises an error unless it may extrapolate.
    suggestion = outcome.formula.suggest(0.25, extrapolate=True)
    print(f"the formula's network for c = 0.25: {suggestion.network.key}")
    print(f"directory: {outcome.store.url}")


if __name__ == "__main__":
    main(*sys.argv[1:])
