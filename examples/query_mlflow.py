"""Query MLflow for the frontier of a search.

    python examples/query_mlflow.py [STORAGE [SEARCH]]

Reads from MLFLOW_TRACKING_URI if it is set, otherwise from the database in STORAGE. Without SEARCH,
the newest search is read.
"""

import sys

from tinynet_search import frontier_models


def main(storage: str = "searches", search: str | None = None) -> None:
    frontier = frontier_models(search, storage=storage)
    columns = ["id", "r", "d", "w", "resolution", "c", "macs", "params", "top1"]
    print(frontier[columns].to_string(index=False))

    # The most accurate network of at most a quarter of the baseline's multiply-adds.
    small = frontier.loc[frontier["c"] <= 0.25].sort_values(by="top1", ascending=False)
    if small.empty:
        print("no network with c <= 0.25")
    else:
        print(f"best with c <= 0.25: {small.iloc[0].id}, MLflow run {small.iloc[0].run_id}")


if __name__ == "__main__":
    main(*sys.argv[1:])
