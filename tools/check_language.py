"""Checks that the repository's text is plain technical English, and that its lines are short.

Run by ``make lint`` and the pre-commit hook. Prints one line per phrase, with the repair.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LINE_LENGTH = 100
# Third-party and generated files, and the files that list the phrases.
SKIPPED = (
    "LICENSE",
    "constraints.txt",
    "benchmarks/results/",
    "tools/check_language.py",
    "tests/test_language.py",
)
BINARY = {".svg", ".png", ".pth", ".npz", ".ico"}
# Long lines in these files are data, or ruff checks them.
ANY_LENGTH = {".json", ".ipynb", ".py", ".csv"}


class Rule(NamedTuple):
    """A phrase to avoid, and what to write instead."""

    pattern: re.Pattern[str]
    repair: str


def _phrase(pattern: str, repair: str) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE), repair)


def _name(pattern: str, repair: str) -> Rule:
    return Rule(re.compile(pattern), repair)


# Words that may follow "is no", "are no", ...
_COMPARED = "longer|more|less|fewer|better|worse|slower|faster|larger|smaller|later|earlier|other"
# Nouns that are used in rates.
_UNIT = "row|line|trial|task|process|thread|second|run|file|core|step|GPU|worker|checkpoint|node"

PHRASES = [
    Rule(
        re.compile(rf"(?<![Tt]here )\b(?:is|are|was|were|be|am) no (?!{_COMPARED})(?=\w)"),
        "is not a valid X; expected Y, got X",
    ),
    Rule(re.compile(r"(?<![Tt]here )\b(?:is|are|was|were|be) none\b"), "is not one; is not set"),
    _phrase(r"\banew\b", "again, rebuilt, from scratch"),
    _phrase(r"\bmend(?:s|ed|ing)?\b", "fix"),
    _phrase(r"\b(?:take|takes|took|taken) up\b", "resume, continue from the last checkpoint"),
    _phrase(r"\b(?:go|goes|going|went|gone) on\b", "resume, continue"),
    _phrase(r"\b(?:says|said|tells|told|heard)\b", "report, contain, log; last response"),
    _phrase(r"\b(?:lies|lay|lying)\b", "is"),
    _phrase(r"\b(?:stands|stood)\b(?! for)", "is"),
    _phrase(r"\bso (?:long|many)\b", "for this long, N"),
    _phrase(r"\bas many as\b", "N"),
    _phrase(
        r"\b(?:another's|somebody|anybody|nobody|everybody|whoever|whatever|whichever)\b",
        "belongs to a different X; any",
    ),
    _phrase(r"\bknows? no\b", "unknown option X; does not have X"),
    _phrase(r"\bloses? nothing\b", "no result is lost"),
    _phrase(r"\b(?:is|are|was|were) doubled\b", "duplicated"),
    _phrase(r"\bthe lid\b", "the job keeps running after you disconnect"),
    _phrase(
        r"\b(?:an?|the|each|every|one|random|this|that|same|these|those|\d+|hundred) twists?\b",
        "(r, d, w)",
    ),
    _phrase(rf"\b(?:an?|one|two|\d+) (?:{_UNIT})s? an? \w+", "one X per Y"),
    _phrase(r"\b(?:seams?|the house|the window)\b", "interface, architecture"),
    _phrase(r"\bwithout a word\b", "silently"),
    _phrase(r"\b(?:hand|hands|handed) on\b", "pass"),
    _phrase(r"\bat hand\b", "available"),
    _phrase(r"\bof other origin\b", "from elsewhere"),
]
NAMES = [
    _name(
        r"\b(?:Guarded|_guilt|guilty|died_alone|FAREWELL|DELIVERY|PATIENCE|SILENCE|MANNERS|_Heard"
        r"|TELLTALE|News|Sheet|SEAL|gently|insisted|refuse_small|refuse_blind|Chooser|Drive"
        r"|agreed_plan|take_place|Alone|thinnest|foreign_space)\b",
        "a name that states what it is",
    ),
    _name(
        r"^\s*(?:for )?(?:\w+, )*\b(?:found|there|ours|theirs|asked)\b"
        r"(?:, \w+)*(?:: [^=]+)? (?:=|in) ",
        "the thing's own name: result, plan, message",
    ),
]


def problems(path: str, text: str) -> Iterator[str]:
    """Yield one line ``path:line: ...`` for each phrase, name or line length to repair."""
    code = path.endswith(".py")
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, repair in PHRASES + (NAMES if code else []):
            if match := pattern.search(line):
                yield f"{path}:{number}: {match.group().strip()!r}; write: {repair}"
        fenced ^= line.lstrip().startswith("```")
        printed = path.endswith(".md") and (fenced or line.startswith("|") or "](" in line)
        if len(line) > LINE_LENGTH and not printed and Path(path).suffix not in ANY_LENGTH:
            yield f"{path}:{number}: {len(line)} columns; the limit is {LINE_LENGTH}"


def main(arguments: list[str]) -> int:
    """Check the given files, or all that git tracks.

    Returns:
        0; 1 if there is a problem, 2 if git cannot list the files.
    """
    listed = subprocess.run(["git", "ls-files", "--", *arguments], capture_output=True, text=True)
    if listed.returncode:
        print(listed.stderr.strip(), file=sys.stderr)
        return 2
    paths = [path for path in listed.stdout.splitlines() if not path.startswith(SKIPPED)]
    count = 0
    for path in paths:
        if Path(path).suffix in BINARY or not Path(path).is_file():
            continue
        for problem in problems(path, Path(path).read_text(encoding="utf-8")):
            print(problem)
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
