"""The files of configs/: each resolves, names its command, and differs in what it studies alone."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from difflid_jax.config import experiment, identity, schema
from difflid_jax.config.files import load_config, run_name

CONFIGS = Path(__file__).parents[2] / "configs"
# Pairs to train on, as the data sets have them, and the steps of the paper's 1,200 epochs.
PAPER = {
    "sots": (13_990, 420_000),
    "dense_haze": (50, 2_400),
    "nh_haze": (50, 2_400),
    "lol_v1": (485, 15_600),
    "lol_v2_real": (689, 21_600),
}


def module_of(name):
    return importlib.import_module(f"configs.{name}")


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_papers_configs_differ_in_their_data_only(name):
    config = module_of(name).get_config()
    elements, steps = PAPER[name]
    assert config.prior == ""  # must be given: the shipped one is not the paper's
    assert experiment.resolve(config).total_steps(elements) == steps
    default = schema.default()
    for section in ("features", "network", "optimizer", "evaluation"):
        assert config[section] == default[section]
    for field in ("crop", "batch_size", "flip", "scale", "source", "haze"):
        assert config.data[field] == default.data[field]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_names_a_command_that_runs_it(path):
    module = module_of(path.stem)
    if path.stem == "__init__":
        assert not hasattr(module, "get_config")
        return
    assert f"--config=configs/{path.stem}.py" in module.__doc__
    if "difflid_jax.train" in module.__doc__:
        experiment.resolve(module.get_config())
    else:
        experiment.resolve_prior(module.get_config())


def test_a_copy_of_a_config_works_in_another_folder(tmp_path, monkeypatch):
    shutil.copy(CONFIGS / "table2.py", tmp_path / "mine.py")
    monkeypatch.setattr("sys.path", [path for path in sys.path if Path(path) != CONFIGS.parent])
    monkeypatch.chdir(tmp_path)
    assert load_config(f"{tmp_path}/mine.py:sots,baseline") == load_config("table2:sots,baseline")
    assert run_name(f"{tmp_path}/mine.py:sots,baseline") == "mine-sots-baseline"
    with pytest.raises(ValueError, match=r"expected a file or one of .*table2.*, found 'tabel2'"):
        load_config("tabel2:sots,full")


def test_the_tables_change_what_they_study_and_nothing_else():
    for name, count in (("table2", 4), ("table3", 5)):
        module = module_of(name)
        fingerprints = set()
        for dataset in module.SETS:
            own = module_of(dataset).get_config().to_dict()
            for row in module.ROWS:
                config = module.get_config(f"{dataset},{row}")
                fingerprints.add(experiment.resolve(config).fingerprint)
                changed = {line.split(" is ")[0] for line in identity.differences(config.to_dict(), own, own)}
                assert changed <= {
                    "config.network.variant", "config.features.kind", "config.features.layer"
                }  # fmt: skip
        assert len(fingerprints) == 3 * count
        with pytest.raises(ValueError, match=f"{name}.py:sots,none: expected one of"):
            module.get_config("sots,none")
    figure = module_of("figure8")
    assert figure.get_config("0,300").features.times == (0, 300)
    with pytest.raises(ValueError, match=r"figure8\.py:300: expected two timesteps"):
        figure.get_config("300")


def test_the_arms_of_the_rebuilt_experiment_differ_in_the_features_alone():
    module = module_of("sots_rebuilt")
    full, random, baseline = (module.get_config(arm) for arm in module.ARMS)
    network = experiment.resolve(baseline).network
    assert network.content == network.haze == "self_attention"
    assert experiment.resolve(random).features.random and not experiment.resolve(full).features.random
    random.features.random = False
    baseline.network.variant = full.network.variant
    assert full == random == baseline
    with pytest.raises(ValueError, match=r"sots_rebuilt\.py: expected one of full, random, baseline"):
        module.get_config("none")
