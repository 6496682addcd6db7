"""Sets the results of failed trials aside so that the trials are trained again (``--retry``).

Called by the search driver.
"""

from collections import Counter
from collections.abc import Collection, Mapping

from search_spaces import RequestError
from tinynet_search.store.directory import SearchStore
from trainables.result import ResultSummary
from trainables.run_name import RunName
from trainables.storage.documents import LARGE
from trainables.trial_folder import result_name

# Folder in the search directory for the previous results of retried trials.
RETRIED = "retried"
ANY = "failed"


def set_aside(
    store: SearchStore, reasons: Collection[str], results: Mapping[RunName, ResultSummary]
) -> list[RunName]:
    """Move the results of failed trials to the ``retried`` folder.

    Their checkpoints stay in place, so the trials resume from where they failed.

    Args:
        reasons: Failure reasons to retry; ``failed`` matches every reason.
        results: Results of the trials that this search trains; other trials keep their results.

    Returns:
        The runs whose results were moved.

    Raises:
        RequestError: No trial has failed for one of the reasons, or a result is damaged.
    """
    if not reasons:
        return []
    failed = {run: str(result.reason) for run, result in results.items() if not result.finished}
    unknown = sorted(set(reasons) - {ANY} - set(failed.values()))
    if unknown:
        unknown = sorted(set(unknown) - _retried_reasons(store))
    if unknown:
        known = ", ".join(sorted(set(failed.values())))
        expected = f"the reasons are {known}" if failed else "no trial has failed"
        raise RequestError(f"no trial of {store.url} failed with {unknown[0]!r}: {expected}")
    runs = [run for run, reason in failed.items() if ANY in reasons or reason in reasons]
    tries: Counter[str] = Counter()
    if runs:
        tries.update(name.rpartition("-")[0] for name in store.folder.names(RETRIED))
    for run in runs:
        data = store.folder.read(result_name(run), LARGE)
        # A driver that is killed between the two calls leaves both files; the next one moves the
        # result again.
        store.folder.write(f"{RETRIED}/{run}-{tries[run] + 1}.json", data)
        store.remove_result(run)
    return runs


def _retried_reasons(store: SearchStore) -> set[str]:
    """Failure reasons of the results already set aside.

    A command that was killed and is run again finds its reasons here.
    """
    rows = (store.read_json(f"{RETRIED}/{name}") for name in store.folder.names(RETRIED))
    return {str(row.get("reason")) for row in rows if isinstance(row, Mapping)}
