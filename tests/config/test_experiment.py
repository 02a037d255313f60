"""What a config becomes, and what of it is refused."""

import pytest

from difflid_jax.config import experiment, identity, inputs, schema


def changed(config, fields):
    for field, value in fields.items():
        *sections, name = field.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[name] = value
    return config


def test_the_default_is_the_papers():
    run = experiment.resolve(schema.default())
    optimizer = run.optimizer(13_990)
    assert (optimizer.steps, optimizer.halve_every) == (420_000, 105_000)
    assert (optimizer.learning_rate, optimizer.b1, optimizer.b2) == (2e-4, 0.9, 0.999)
    assert (optimizer.schedule, optimizer.ema, optimizer.clip, optimizer.weight_decay) == ("halve", 0, 0, 0)
    assert run.loop(13_990).steps == 420_000 and run.batch_size == 40
    assert (run.crop.size, run.crop.flip, run.crop.scale) == (128, True, (1.0, 1.0))
    assert run.features.h_space.times == (0, 500)
    network = run.network_on(1024)
    assert (network.content, network.haze, network.heads) == ("cim", "hae", 4)
    assert network.widths == (64, 128, 256, 512) and network.feature_channels == 1024


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "seed: expected 0 to 2³²−1, found -1"),
        ("frequency_weight", -0.1, "frequency_weight: expected 0 to 1e+06, found -0.1"),
        ("data.dataset", "reside", "data.dataset: expected one of its"),
        ("data.source", "web", "data.source: expected one of folders"),
        ("data.source", "images", "data.source: expected one of folders"),
        ("data.test_dataset", "reside", "data.test_dataset: expected one of '', its"),
        ("data.batch_size", 0, "data.batch_size: expected at least 1, found 0"),
        ("data.workers", -1, "data.workers: expected at least 0, found -1"),
        ("data.crop", 0, "data.crop: expected at least 1 pixel, found 0"),
        ("data.train_ids", (9, 1), "data.train_ids: expected () or (first, last)"),
        ("data.frame", "oval", "data.frame: expected one of"),
        ("data.scale", (1.0, 0.5), "data.scale: expected two numbers"),
        ("data.sky", 0.5, "data.sky: expected 0, or 1 to 1000, found 0.5"),
        ("data.haze.airlight", (0.7, 1.2), "data.haze.airlight: expected at most 1"),
        ("data.haze.white", 1.5, "data.haze.white: expected 0 to 1, found 1.5"),
        ("data.haze.dim", 1.5, "data.haze.dim: expected 0 to 1, found 1.5"),
        ("data.haze.clean", -0.1, "data.haze.clean"),
        ("data.haze.beta", (1.0,), "data.haze.beta: expected two numbers"),
        ("features.kind", "dino", "features.kind: expected one of"),
        ("features.layer", "bottom", "features.layer: expected middle, encoder:I, decoder:I"),
        ("features.times", (0, 1000), "features.times[1]: expected 0 to 999, found 1000"),
        ("features.times", (0,), "features.times: expected a list of 2 numbers"),
        ("features.noise_seed", -1, "features.noise_seed: expected 0 to 2³²−1, found -1"),
        ("features.side", -1, "features.side: expected 0 to"),
        ("features.dtype", "float16", "features.dtype: expected one of auto"),
        ("network.preset", "wide", "network.preset: expected one of"),
        ("network.content", "conv", "network.content: expected one of"),
        ("network.heads", 3, "network.widths: "),
        ("network.heads", 0, "network.heads: expected 1 to"),
        ("network.variant", "none", "network.variant: expected one of '', full, without_cim"),
        ("optimizer.learning_rate", 0.0, "optimizer.learning_rate: expected more than 0"),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate: expected a finite number"),
        ("optimizer.ema", 1.0, "optimizer.ema: expected 0 ≤ ema < 1"),
        ("optimizer.schedule", "step", "optimizer.schedule: expected one of halve"),
        ("optimizer.halve_every_epochs", 0, "optimizer.halve_every_epochs: expected at least 1"),
        ("training.epochs", 0, "training.epochs: expected at least 1, found 0"),
        ("training.keep", 0, "training.keep: expected at least 1, found 0"),
        ("training.log_every", 0, "training.log_every: expected at least 1, found 0"),
        ("training.profile_steps", "5:2", "training.profile_steps: expected 'first:last'"),
        ("evaluation.protocol", "best", "evaluation.protocol: expected one of paper"),
        ("evaluation.best", "fid", "evaluation.best: expected one of"),
        ("evaluation.batch_size", 0, "evaluation.batch_size: expected at least 1"),
        # What would have no effect.
        ("network.widths", (8, 16), "network.widths has no effect: the preset 'paper' sets the widths; also"),
        ("features.noise_at_zero", True, None),
        ("optimizer.halve_every_epochs", 10, None),
        ("data.haze.beta", (0.5, 1.0), "data.haze.beta has no effect: no source makes haze on the fly"),
        ("data.haze.noise", 0.1, "data.haze.noise has no effect: the training source 'folders' makes no"),
        ("data.sky", 2.0, "data.sky has no effect: the training source 'folders' makes up no depth"),
    ],
)
def test_a_value_out_of_range_or_without_effect_is_named(field, value, message):
    config = changed(schema.default(), {field: value})
    if message is None:
        experiment.resolve(config)
        return
    with pytest.raises(ValueError) as caught:
        experiment.resolve(config)
    assert str(caught.value).startswith(f"config.{message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "idle"),
    [
        ({"features.kind": "vgg16", "features.layer": "encoder:3"}, "features.layer"),
        ({"features.kind": "resnet50", "features.times": (0, 400)}, "features.times"),
        ({"features.kind": "vgg16", "features.side": 64}, "features.side"),
        ({"features.kind": "vgg16", "features.noise_seed": 1}, "features.noise_seed"),
        ({"features.kind": "release", "features.noise_at_zero": True}, "features.noise_at_zero"),
        ({"features.kind": "release", "features.times": (0, 400)}, None),
        ({"features.times": (100, 500), "features.noise_at_zero": True}, "features.noise_at_zero"),
        ({"network.variant": "full", "network.content": "self_attention"}, "network.content"),
        ({"network.variant": "baseline", "network.haze": "self_attention"}, "network.haze"),
        ({"network.preset": "", "network.widths": (8, 16)}, None),
        (
            {"optimizer.schedule": "cosine", "optimizer.halve_every_epochs": 10},
            "optimizer.halve_every_epochs",
        ),
        ({"optimizer.cycles": 2}, "optimizer.cycles"),
        ({"training.steps": 10, "training.epochs": 3}, "training.epochs"),
        ({"data.source": "rgbd", "data.dataset": "sots_indoor"}, "data.dataset"),
        (
            {"data.source": "rgbd", "data.dataset": "sots_indoor", "data.test_source": "folders"},
            None,
        ),
        ({"data.test_source": "rgbd", "data.haze.beta": (0.5, 1.0)}, None),
        ({"data.test_source": "rgbd", "data.haze.jpeg": (75, 98)}, "data.haze.jpeg"),
        ({"data.source": "rgbd", "data.haze.jpeg": (75, 98)}, None),
        ({"data.source": "rgbd", "data.haze.dim": 0.5}, "data.haze.dim"),
        ({"data.source": "rgbd", "data.sky": 2.0}, "data.sky"),
    ],
)
def test_a_field_that_depends_on_another_is_refused_where_that_one_makes_it_idle(fields, idle):
    config = changed(schema.default(), fields)
    if idle is None:
        experiment.resolve(config)
        return
    with pytest.raises(ValueError, match=rf"^config\.{idle} has no effect: .*(set|leave)") as caught:
        experiment.resolve(config)
    assert str(caught.value).count("has no effect") == 1


def test_misspelt_missing_and_mistyped_fields_are_named():
    config = schema.default()
    config.data.batchsize = 8
    with pytest.raises(ValueError, match=r"config\.data\.batchsize is not a field .* one of batch_size,"):
        experiment.resolve(config)
    config = schema.default()
    del config.optimizer.b1
    with pytest.raises(ValueError, match=r"config\.optimizer\.b1 is missing"):
        experiment.resolve(config)
    config = schema.default()
    with config.ignore_type():
        config.data.crop = "128"
    with pytest.raises(ValueError, match=r"config\.data\.crop: expected type int, found str '128'"):
        experiment.resolve(config)


def test_variants_name_the_ablations_of_table_2():
    for variant, modules in (
        ("full", ("cim", "hae")),
        ("without_cim", ("self_attention", "hae")),
        ("without_hae", ("cim", "self_attention")),
        ("baseline", ("self_attention", "self_attention")),
    ):
        network = experiment.resolve(changed(schema.default(), {"network.variant": variant})).network
        assert (network.content, network.haze) == modules


def test_the_roles_inherit_what_they_do_not_say():
    fields = {"data.source": "rgbd", "data.sky": 0.0, "data.test_source": "folders", "data.test": "T"}
    run = experiment.resolve(changed(schema.default(), fields))
    assert (run.train.source, run.validation.source, run.test.source) == ("rgbd", "rgbd", "folders")
    assert run.test.dataset == "its" and run.test.is_given and not run.validation.is_given
    carried = experiment.resolve(changed(schema.default(), {"data.source": "photographs"}))
    # The photographs of installed packages need no path; none of them are for validation.
    assert [s.is_given for s in (carried.train, carried.validation, carried.test)] == [True, False, True]


def test_changes_take_effect_one_after_the_other():
    config = schema.default()
    config.data.source = "rgbd"
    config.data.haze.light = (0.5, 1.0)
    config.changes = ((20, "frequency_weight", 0.1), (10, "data.haze.dim", 0.3), (20, "data.haze.flat", 0.1))
    run = experiment.resolve(config)
    assert (run.haze.dim, run.haze.flat, run.frequency_weight) == (1.0, 0.0, 0.0)
    (first, early), (second, late) = run.later
    assert (first, early.haze.dim, early.haze.flat, early.frequency_weight) == (10, 0.3, 0.0, 0.0)
    assert (second, late.haze.dim, late.haze.flat, late.frequency_weight) == (20, 0.3, 0.1, 0.1)
    # As the config.json of a run gives them back.
    again = experiment.read_experiment(identity.to_json(run.fields))
    assert again.later[1][1].haze == late.haze and again.fingerprint == run.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((0, "data.haze.flat", 0.1), "changes: expected .step, field, value. with a step of at least 1"),
        ((5, "data.haze.flat"), "changes: expected .step, field, value."),
        ((5, "data.crop", 64), "changes: 'data.crop' cannot change during a run; expected one of freq"),
        ((5, "data.haze.flat", 2.0), "data.haze.flat: expected 0 to 1, found 2.0"),
        ((5, "data.haze.flat", "much"), "data.haze.flat: expected type float, found str 'much'"),
        ((5, "data.haze.dim", 0.5), "data.haze.dim has no effect"),
    ],
)
def test_a_change_that_cannot_be_is_refused(change, message):
    config = schema.default()
    config.data.source = "rgbd"
    config.changes = (change,)
    with pytest.raises(ValueError, match=rf"^config\.{message}"):
        experiment.resolve(config)


def test_a_holdout_is_validated_on_in_place_of_a_validation_set():
    run = experiment.resolve(changed(schema.default(), {"data.train": "ITS", "data.holdout": 35, "seed": 7}))
    assert (run.validation.root, run.validation.holdout, run.validation.seed) == ("ITS", 35, 7)
    carried = experiment.resolve(changed(schema.default(), {"data.source": "photographs", "data.holdout": 2}))
    assert carried.validation.is_given
    fields = {"data.holdout": 35, "data.validation": "V"}
    with pytest.raises(ValueError, match=r"config.data.validation has no effect: .*holdout"):
        experiment.resolve(changed(schema.default(), fields))


def test_images_that_are_not_there_are_named_with_the_flag_that_gives_them(tmp_path):
    run = experiment.resolve(changed(schema.default(), {"data.train": str(tmp_path / "RESIDE")}))
    with pytest.raises(ValueError, match=r"RESIDE: no such folder.*; give --config\.data\.train=PATH"):
        inputs.open_images(run.train)


def test_all_missing_inputs_are_named_at_once():
    run = experiment.resolve(changed(schema.default(), {"prior": ""}))
    with pytest.raises(ValueError, match=r"--config\.data\.train=.* and --config\.prior=FOLDER"):
        inputs.check_given(run)
    inputs.check_given(
        experiment.resolve(
            changed(schema.default(), {"prior": "", "features.kind": "vgg16", "data.train": "D"})
        )
    )
    with pytest.raises(ValueError, match=r"--config\.data\.train=PATH"):
        inputs.check_given(experiment.resolve_prior(schema.default_prior()))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("unet.model_channels", 30, "unet.channel_mult: expected widths that are multiples of 32"),
        ("unet.num_head_channels", 48, "unet.num_head_channels: expected a divisor"),
        ("unet.noise_schedule", "square", "unet.noise_schedule: expected one of linear, cosine"),
        ("unet.dropout", 1.5, "unet.dropout: expected 0 to 1"),
        ("unet.channel_mult", (), "unet.channel_mult: expected widths"),
        ("dtype", "float16", "dtype: expected one of float32, bfloat16"),
        ("variance_weight", -1.0, "variance_weight: expected 0 to"),
        ("evaluation.sample_steps", 1001, "evaluation.sample_steps: expected 1 to 1000"),
        ("optimizer.ema", 1.0, "optimizer.ema: expected 0 ≤ ema < 1"),
        ("optimizer.halve_every_epochs", 3, "optimizer.halve_every_epochs has no effect"),
    ],
)
def test_a_bad_field_of_a_prior_is_named(field, value, message):
    with pytest.raises(ValueError) as caught:
        experiment.resolve_prior(changed(schema.default_prior(), {field: value}))
    assert str(caught.value).startswith(f"config.{message}")
