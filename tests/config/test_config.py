"""Tests configurations: presets, files, settings, and one-line errors."""

from pathlib import Path

import pytest

from search_spaces import RequestError
from tinynet_search.config import PRESETS, load_config

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load(preset: str) -> None:
    config = load_config(preset=preset)
    assert config.search.name == preset
    inputs = config.resolve()
    assert inputs.recipe.epochs >= 1
    assert inputs.space.band[1] == 1.05


def test_imagenet100_is_the_search_of_the_paper() -> None:
    config = load_config(preset="imagenet100")
    inputs = config.resolve()
    recipe, space = inputs.recipe, inputs.space
    assert (config.search.trials, config.search.sampler, config.search.fraction) == (
        100,
        "uniform",
        0.2,
    )
    assert (recipe.name, recipe.epochs, recipe.batch) == ("efficientnet", 100, 1024)
    assert space.ranges == {"r": (0.35, 2.8), "d": (0.35, 2.8), "w": (0.35, 2.8)}
    assert space.band == (0.03, 1.05)
    assert config.run.executor == "ray_train"


def test_settings_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[search]\ntrials = 7\nseed = 3\n[recipe]\nname = "short"\nepochs = 4\n')
    config = load_config(
        file, settings=["search.trials=9", "data.train=480", "storage.path=elsewhere"]
    )
    assert (config.search.name, config.search.trials, config.search.seed) == ("mine", 9, 3)
    assert config.resolve().recipe.epochs == 4
    assert config.data_settings() == {"name": "petals", "train": 480}
    assert config.url == "elsewhere/mine"


def test_a_different_recipe_replaces_all_its_settings() -> None:
    config = load_config(preset="demo", settings=["recipe.epochs=3", 'recipe.name="resnet"'])
    recipe = config.resolve().recipe
    assert (recipe.name, recipe.epochs) == ("resnet", 90)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.trails=3", "did you mean 'search.trials'"),
        ("serch.trials=3", "did you mean 'search'"),
        ("search.trials=0", "search.trials"),
        ("search.finals=[1.5]", "1.5 is not a valid budget"),
        ("search.sampler=uniforn", "did you mean 'uniform'"),
        ("search.name=../x", "search.name"),
        ("recipe.epoch=3", "did you mean 'epochs'"),
        ("recipe.epochs=many", "recipe: epochs"),
        ("recipe.name=shrt", "did you mean 'short'"),
        ("recipe.hflip=2", "hflip must be in [0, 1]"),
        ("recipe.decay_epochs=0", "decay_epochs must be above 0"),
        ("recipe.batch=50", "micro_batch must divide batch"),
        ("space.name=efficientnet_b1", "did you mean 'efficientnet_b0'"),
        ("space.band=[0.5, 0.1]", "lowest, highest"),
        ("search.c=0.5", "set both or neither"),
        ("search.sampler=near", "set both or neither"),
        ("scaling.workers=2", "requires run.executor"),
        ("scaling.cpus=0", "scaling.cpus"),
        ("run.executor=ray", "run.executor"),
        ("no-equals-sign", "section.key=value"),
        ("trials=3", "section.key=value"),
    ],
)
def test_an_invalid_setting_is_a_one_line_error(setting: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_config(preset="demo", settings=[setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(RequestError, match="--preset demo"):
        load_config("demo")
    (tmp_path / "bad.toml").write_text("[search\n")
    with pytest.raises(RequestError, match="cannot be read"):
        load_config(tmp_path / "bad.toml")
    with pytest.raises(RequestError, match="did you mean 'demo'"):
        load_config(preset="dem")


def test_storage_urls_keep_their_options() -> None:
    config = load_config(preset="demo", settings=["storage.path=s3://bucket/searches?region=x"])
    assert config.url == "s3://bucket/searches/demo?region=x"


def test_workers_must_divide_the_micro_batches() -> None:
    settings = [
        "run.executor=ray_train",
        "scaling.workers=3",
        "recipe.batch=32",
        "recipe.micro_batch=8",
    ]
    with pytest.raises(RequestError, match="does not divide the recipe's 4 micro-batches"):
        load_config(preset="demo", settings=settings)


def test_owner_is_the_setting_the_environment_or_the_login_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_config(preset="demo", settings=["search.owner=ada"]).owner == "ada"
    monkeypatch.setenv("TINYNET_OWNER", "grace@example.org")
    assert load_config(preset="demo").owner == "grace@example.org"
    monkeypatch.setenv("TINYNET_OWNER", "DOMAIN\\grace hopper")
    assert load_config(preset="demo").owner == "DOMAIN_grace_hopper"
    monkeypatch.delenv("TINYNET_OWNER")
    monkeypatch.setenv("LOGNAME", "login")
    assert load_config(preset="demo").owner == "login"
    with pytest.raises(RequestError, match=r"search\.owner.*expected at most 64 letters"):
        load_config(preset="demo", settings=["search.owner=a b"])


def test_experiment_is_the_setting_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["search.owner=ada", "space.name=efficientnet_mini"]
    assert load_config(preset="demo", settings=settings).resolve().experiment is None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of-{owner}")
    assert load_config(preset="demo", settings=settings).resolve().experiment == "of-ada"
    config = load_config(preset="demo", settings=[*settings, "tracking.experiment=Team 1 {space}"])
    assert config.resolve().experiment == "Team 1 efficientnet_mini"
    assert config.experiment("mine:Space") == "Team 1 mine-Space"
    for name in ("", " a", "{user}", "a{", "x" * 201):
        with pytest.raises(
            RequestError, match=r"tracking\.experiment.*expected 1 to 200 printable"
        ):
            load_config(preset="demo", settings=[f"tracking.experiment='{name}'"])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "{user}")
    with pytest.raises(RequestError, match=r"^MLFLOW_EXPERIMENT_NAME '\{user\}' is not a valid"):
        load_config(preset="demo", settings=settings).resolve()
