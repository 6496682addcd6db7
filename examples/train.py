"""Train one network for a budget on a folder of images, or on the built-in ones.

    python examples/train.py [STORAGE [DATA]]

DATA is a folder with ``train/<class>/`` and ``val/<class>/``. If the script is run again, it
continues from the last checkpoint; a finished job is not trained again.
"""

import sys

from tinynet_search.train.request import TrainRequest, make_job
from tinynet_search.train.run import run_job


def main(storage: str = "searches", data: str = "petals") -> None:
    config, job = make_job(
        TrainRequest(
            c=0.25,  # the published formula's network for a quarter of the baseline
            space="efficientnet_mini",
            data=data,
            recipe="short",
            epochs=2,
            storage=storage,
        )
    )
    outcome = run_job(config, job, tracking=None, log=print)
    if outcome.result is None or not outcome.result.finished:
        raise SystemExit(f"{job.name} has no result: run the script again to continue")
    last = outcome.result.epochs[-1]
    print(f"{job.network}: top-1 {last.top1:.1f} % after {len(outcome.result.epochs)} epochs")
    print(f"weights: {outcome.store.url_of(job.spec.folder)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
