"""What happens to a search that has results: failed trials set aside to be trained again, frontier models trained on."""

from collections import Counter
from collections.abc import Collection, Mapping

from search_spaces import RequestError
from tinynet_search.store.directory import SearchStore
from trainables.result import ResultSummary
from trainables.run_name import RunName
from trainables.storage.documents import LARGE
from trainables.trial_folder import result_name

# Results of failed trials that were trained again, below the search directory.
RETRIED = "retried"
ANY = "failed"


def set_aside(
    store: SearchStore, reasons: Collection[str], results: Mapping[RunName, ResultSummary]
) -> list[RunName]:
    """Move the results of trials that failed for one of these reasons (``failed``: any) out of the way; which.

    Their checkpoints stay, so that they go on from where they failed.

    Args:
        results: of those that will be trained again; others keep their results.

    Raises:
        RequestError: no trial ever failed for a reason that is named, or a result is damaged.
    """
    if not reasons:
        return []
    failed = {run: str(result.reason) for run, result in results.items() if not result.finished}
    unknown = sorted(set(reasons) - {ANY} - set(failed.values()))
    if unknown and (unknown := sorted(set(unknown) - _aside(store))):
        there = f"there are {', '.join(sorted(set(failed.values())))}" if failed else "none failed"
        raise RequestError(f"no trial of {store.url} failed for {unknown[0]!r}: {there}")
    again = [run for run, reason in failed.items() if ANY in reasons or reason in reasons]
    tried = (
        Counter(name.rpartition("-")[0] for name in store.folder.names(RETRIED))
        if again
        else Counter[str]()
    )
    for run in again:
        data, tries = store.folder.read(result_name(run), LARGE), tried[run]
        # A driver that dies in between leaves both, and the next one moves it once more.
        store.folder.write(f"{RETRIED}/{run}-{tries + 1}.json", data)
        store.remove_result(run)
    return again


def _aside(store: SearchStore) -> set[str]:
    """Reasons of the results that were set aside: a command that was killed and comes again finds them there."""
    rows = (store.read_json(f"{RETRIED}/{name}") for name in store.folder.names(RETRIED))
    return {str(row.get("reason")) for row in rows if isinstance(row, Mapping)}
