"""Tests that data between folders is typed and that only one module builds run names.

The tests check the syntax trees of all modules.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
PACKAGES = ("search_spaces", "trainables", "tinynet_search")
UNTYPED = re.compile(r"\b(dict|Mapping|MutableMapping|Dict)\[str, Any\]")
# Functions that convert a typed object to or from JSON, a configuration of Ray or a pickle.
CONVERTERS = {"to_json", "from_json", "to_config", "from_config", "__getstate__", "__setstate__"}
# Methods that Ray Tune calls with the untyped report of a trial.
HOOK = re.compile(r"on_(trial|step|experiment)_\w+|setup")
# Other functions with untyped data, by file and name, with the kind of data.
CONFIGURATION = "TOML or JSON before validation"
DOCUMENT = "JSON"
BOUNDARIES: dict[str, dict[str, str]] = {
    "trainables/executors.py": dict.fromkeys(
        ("inline_trial", "ray_train_trial", "_train_worker", "<module>"),
        "Ray's configuration of a trial",
    ),
    "trainables/optim/rmsprop.py": {"RMSpropTF._step": "torch's group of parameters"},
    "trainables/recipe.py": {"recipe_from": DOCUMENT},
    "trainables/storage/documents.py": {"fields_of": DOCUMENT},
    "tinynet_search/cli/job_entrypoint.py": {"request": "Ray's metadata of a job"},
    "tinynet_search/cli/summary.py": dict.fromkeys(("search_summary", "_flat"), DOCUMENT),
    "tinynet_search/cluster/preflight.py": {"_row": "Ray's row of a node"},
    "tinynet_search/config/loading.py": dict.fromkeys(
        (
            *("load_config", "read_values", "with_settings", "validate", "merged"),
            *("_preset", "_file", "_toml", "_json", "_setting"),
        ),
        CONFIGURATION,
    ),
    "tinynet_search/formula/document.py": dict.fromkeys(
        ("_bounded", "FormulaDocument", "UnusableDocument", "check_document"), DOCUMENT
    ),
    "tinynet_search/jobs/command.py": {
        "JobCommand": "Ray's metadata of a job",
        "_with_registration": "a configuration as it is sent",
    },
    "tinynet_search/tracking/registered_models.py": {"_portable_config": DOCUMENT},
    "tinynet_search/tracking/view.py": {"_state": DOCUMENT},
    "tinynet_search/train/request.py": dict.fromkeys(
        ("read_request", "complete_config"), CONFIGURATION
    ),
    "tinynet_search/train/run.py": {"job_summary": DOCUMENT},
}
RUN_NAME = "trainables/run_name.py"


def files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def scopes(tree: ast.AST, names: tuple[str, ...] = ()) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """All descendants of a node, with the names of their enclosing functions and classes."""
    for node in ast.iter_child_nodes(tree):
        own = names
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own = (*names, node.name)
        yield node, own
        yield from scopes(node, own)


def annotations(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.AnnAssign):
        yield node.annotation
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters += [item for item in (arguments.vararg, arguments.kwarg) if item]
        yield from (item.annotation for item in parameters if item.annotation)
        if node.returns:
            yield node.returns


def aliases(tree: ast.AST) -> Iterator[str]:
    """Names assigned to an untyped mapping type."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and UNTYPED.search(ast.unparse(node.value)):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def untyped(source: str, known: set[str]) -> Iterator[tuple[str, int]]:
    """(function, line) of each annotation with an untyped mapping, or an alias of one."""
    alias = re.compile(rf"\b({'|'.join(sorted(known))})\b") if known else None
    for node, names in scopes(ast.parse(source)):
        for annotation in annotations(node):
            text = ast.unparse(annotation)
            if UNTYPED.search(text) or (alias and alias.search(text)):
                yield ".".join(names) or "<module>", annotation.lineno


def allowed(file: str, function: str) -> bool:
    parts = function.split(".")
    return (
        bool(CONVERTERS & set(parts))
        or any(HOOK.fullmatch(part) for part in parts)
        or function in BOUNDARIES.get(file, {})
    )


def test_data_between_folders_is_typed() -> None:
    trees = {name_of(path): path.read_text(encoding="utf-8") for path in files()}
    known = {name for source in trees.values() for name in aliases(ast.parse(source))}
    lines = {
        (file, function): line
        for file, source in trees.items()
        for function, line in untyped(source, known)
    }
    outside = [
        f"{file}:{line} {function}"
        for (file, function), line in lines.items()
        if not allowed(file, function)
    ]
    assert outside == []
    listed = {(file, function) for file, functions in BOUNDARIES.items() for function in functions}
    assert listed - lines.keys() == set(), "no longer untyped: remove it from BOUNDARIES"


@pytest.mark.parametrize(
    "source",
    [
        "def f(a: dict[str, Any]) -> None: ...",
        "def f() -> list[Mapping[str, Any]]: ...",
        "class A:\n    b: 'dict[str, Any]'",
        "def f(*a: dict[str, Any]) -> None: ...",
        "Values = Mapping[str, Any]\ndef f(a: Values) -> None: ...",
    ],
)
def test_untyped_data_is_detected(source: str) -> None:
    assert list(untyped(source, set(aliases(ast.parse(source)))))


def run_names(tree: ast.AST) -> Iterator[int]:
    """Lines that write ``-e`` before a number of epochs, or search for it in a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pairs = zip(node.values, node.values[1:], strict=False)
            if any(
                isinstance(text, ast.Constant)
                and str(text.value).endswith("-e")
                and isinstance(value, ast.FormattedValue)
                for text, value in pairs
            ):
                yield node.lineno
        elif isinstance(node, ast.Constant) and _searches_for_epochs(node.value):
            yield node.lineno


def _searches_for_epochs(value: object) -> bool:
    return isinstance(value, str) and (value == "-e" or bool(re.search(r"-e[\[(\\]", value)))


def test_one_module_builds_run_names() -> None:
    lines = {
        f"{name_of(path)}:{line}"
        for path in files()
        if name_of(path) != RUN_NAME
        for line in run_names(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert lines == set()
    assert list(run_names(ast.parse((ROOT / RUN_NAME).read_text(encoding="utf-8"))))
