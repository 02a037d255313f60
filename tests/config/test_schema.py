"""The config: what it refuses, what it becomes, what it is called."""

import importlib
import json
from pathlib import Path

import pytest

from difflid_jax.config import schema

CONFIGS = Path(__file__).parents[2] / "configs"
NOT_OF_TRAIN = {"__init__"}
# Pairs to train on, as the data sets have them.
PAPER = {"sots": 13_990, "dense_haze": 50, "nh_haze": 50, "lol_v1": 485, "lol_v2_real": 689}
STEPS = {"sots": 420_000, "dense_haze": 2_400, "nh_haze": 2_400, "lol_v1": 15_600, "lol_v2_real": 21_600}


def test_the_default_is_the_papers():
    config = schema.default()
    schema.check(config)
    optimizer = schema.optimizer_spec(config, 13_990)
    assert (optimizer.steps, optimizer.halve_every) == (420_000, 105_000)
    assert (optimizer.learning_rate, optimizer.b1, optimizer.b2) == (2e-4, 0.9, 0.999)
    assert (optimizer.schedule, optimizer.ema, optimizer.clip, optimizer.weight_decay) == ("halve", 0, 0, 0)
    crop = schema.crop_spec(config)
    assert (crop.size, crop.flip, crop.scale) == (128, True, (1.0, 1.0))
    assert schema.h_space_spec(config).times == (0, 500) and config.data.batch_size == 40
    network = schema.network_spec(config, 1024)
    assert (network.content, network.haze, network.heads) == ("cim", "hae", 4)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_papers_configs_differ_in_their_data_only(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    schema.check(config)
    assert config.prior == ""  # must be given: the shipped one is not the paper's
    assert schema.total_steps(config, PAPER[name]) == STEPS[name]
    default = schema.default()
    for section in ("features", "network", "optimizer", "evaluation"):
        assert config[section] == default[section]
    for field in ("crop", "batch_size", "flip", "scale", "source", "haze"):
        assert config.data[field] == default.data[field]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_names_a_command_that_runs_it(path):
    module = importlib.import_module(f"configs.{path.stem}")
    if path.stem == "__init__":
        assert not hasattr(module, "get_config")
        return
    assert f"--config=configs/{path.stem}.py" in module.__doc__
    assert max(len(line) for line in module.__doc__.splitlines()) <= 110
    if "difflid_jax.train" in module.__doc__:
        schema.check(module.get_config())


def test_the_tables_change_what_they_study_and_nothing_else():
    for name, count in (("table2", 4), ("table3", 5)):
        module = importlib.import_module(f"configs.{name}")
        fingerprints = set()
        for dataset in module.SETS:
            own = importlib.import_module(f"configs.{dataset}").get_config()
            for row in module.ROWS:
                config = module.get_config(f"{dataset},{row}")
                schema.check(config)
                fingerprints.add(schema.fingerprint(config))
                changed = {line.split(" is ")[0] for line in schema.differences(config, schema.to_json(own))}
                allowed = {"config.network.variant", "config.features.kind", "config.features.layer"}
                assert changed <= allowed
        assert len(fingerprints) == 3 * count
        with pytest.raises(ValueError, match=f"{name}.py:sots,none: expected one of"):
            module.get_config("sots,none")
    figure = importlib.import_module("configs.figure8")
    assert figure.get_config("0,300").features.times == (0, 300)
    with pytest.raises(ValueError, match=r"figure8\.py:300: expected two timesteps"):
        figure.get_config("300")


def test_the_arms_of_the_rebuilt_experiment_differ_in_the_features_alone():
    module = importlib.import_module("configs.sots_rebuilt")
    full, random, baseline = (module.get_config(arm) for arm in module.ARMS)
    for config in (full, random, baseline):
        schema.check(config)
    assert schema.network_spec(baseline, 128).content == schema.network_spec(baseline, 128).haze
    assert random.features.random and not full.features.random
    random.features.random = False
    baseline.network.variant = full.network.variant
    assert full == random == baseline
    with pytest.raises(ValueError, match=r"sots_rebuilt\.py:none: expected one of full, random, baseline"):
        module.get_config("none")


def test_the_shipped_restorers_runs_show_the_same_part_of_a_picture():
    module = importlib.import_module("configs.haze")
    for run in module.RUNS:
        config = module.get_config(run)
        schema.check(config)
        spec = schema.crop_spec(config)
        assert [round(spec.size / scale) for scale in spec.scale] == [460, 224]
    with pytest.raises(ValueError, match=r"haze\.py:64: expected one of start, long"):
        module.get_config("64")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("data.dataset", "reside", "config.data.dataset must be one of 'its'"),
        ("data.source", "web", "config.data.source must be one of"),
        ("data.batch_size", 0, "config.data.batch_size must be at least 1, not 0"),
        ("data.crop", 0, "config.data.crop"),
        ("data.scale", (1.0, 0.5), r"config.data.scale must be two numbers"),
        ("data.haze.airlight", (0.7, 1.2), "config.data.haze.airlight"),
        ("data.haze.white", 1.5, "config.data.haze.white"),
        ("data.haze.clean", -0.1, "config.data.haze.clean"),
        ("data.sky", 0.5, "config.data.sky"),
        ("data.haze.beta", (1.0,), "config.data.haze.beta"),
        ("features.kind", "dino", "config.features.kind must be one of"),
        ("features.layer", "bottom", "config.features.layer must be 'middle', 'encoder:i' or 'decoder:i'"),
        ("features.times", (0, 1000), "config.features.times"),
        ("features.times", (0,), "config.features.times"),
        ("features.side", -1, "config.features.side"),
        ("network.preset", "wide", "config.network.preset must be one of"),
        ("network.content", "conv", "config.network.content"),
        ("network.heads", 3, "config.network.widths"),
        ("network.variant", "none", "config.network.variant must be one of '', 'full', 'without_cim'"),
        ("optimizer.learning_rate", 0.0, "config.optimizer.learning_rate must be positive"),
        ("optimizer.learning_rate", float("nan"), "config.optimizer.learning_rate must be a finite number"),
        ("optimizer.b2", 1.0, r"config.optimizer.b2 must be within \[0, 1\)"),
        ("optimizer.ema", 1.0, "config.optimizer.ema"),
        ("optimizer.schedule", "step", "config.optimizer.schedule must be one of 'halve', 'cosine'"),
        ("training.epochs", 0, "config.training.epochs must be at least 1"),
        ("training.keep", 0, "config.training.keep must be at least 1"),
        ("training.profile_steps", "5:2", "config.training.profile_steps must be '' or 'first:last'"),
        ("evaluation.protocol", "best", "config.evaluation.protocol must be one of 'paper'"),
        ("evaluation.best", "fid", "config.evaluation.best must be one of"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, said):
    config = schema.default()
    *sections, name = field.split(".")
    section = config
    for part in sections:
        section = section[part]
    section[name] = value
    with pytest.raises(ValueError, match=said) as caught:
        schema.check(config)
    assert "\n" not in str(caught.value)


def test_misspelt_missing_and_mistyped_fields_are_named():
    config = schema.default()
    config.data.batchsize = 8
    with pytest.raises(
        ValueError, match=r"config\.data\.batchsize is no field of a config; there are batch_size,"
    ):
        schema.check(config)
    config = schema.default()
    del config.optimizer.b1
    with pytest.raises(ValueError, match=r"config\.optimizer\.b1 is missing"):
        schema.check(config)
    config = schema.from_json(schema.to_json(schema.default()).replace('"crop": 128', '"crop": "128"'))
    with pytest.raises(ValueError, match=r"config\.data\.crop must be of type int, not str: '128'"):
        schema.check(config)


def test_variants_name_the_ablations_of_table_2():
    for variant, modules in (
        ("full", ("cim", "hae")),
        ("without_cim", ("self_attention", "hae")),
        ("without_hae", ("cim", "self_attention")),
        ("baseline", ("self_attention", "self_attention")),
    ):
        config = schema.default()
        config.network.variant = variant
        spec = schema.network_spec(config, 1024)
        assert (spec.content, spec.haze) == modules


def test_a_config_comes_back_from_json():
    config = schema.default()
    config.data.haze.jpeg = (75, 98)
    again = schema.from_json(schema.to_json(config, indent=2))
    schema.check(again)
    assert again == config
    with pytest.raises(ValueError, match="JSON object"):
        schema.from_json("[1]")


def test_the_fingerprint_covers_what_decides_the_weights_and_nothing_else():
    config = schema.default()
    before = schema.fingerprint(config), schema.to_json(config)
    config.data.train, config.training.minutes, config.training.fsdp = "/elsewhere", 5.0, True
    config.prior, config.training.max_bad_steps = "/moved", 99
    assert schema.fingerprint(config) == before[0] and schema.differences(config, before[1]) == []
    config.optimizer.learning_rate, config.features.times = 1e-4, (0, 400)
    assert schema.fingerprint(config) != before[0]
    assert schema.differences(config, before[1]) == [
        "config.features.times is [0, 400], was [0, 500]",
        "config.optimizer.learning_rate is 0.0001, was 0.0002",
    ]
    older = json.loads(before[1])
    del older["optimizer"]["ema"]
    assert "config.optimizer.ema is 0.0, was 'not given'" in schema.differences(config, json.dumps(older))
