"""Which configs are the same experiment."""

import json

import pytest

from difflid_jax.config import identity, schema


def test_a_config_comes_back_from_json():
    config, reference = schema.default(), schema.default().to_dict()
    config.data.haze.jpeg = (75, 98)
    assert identity.from_json(identity.to_json(config.to_dict()), reference) == config
    with pytest.raises(ValueError, match="JSON object"):
        identity.from_json("[1]", reference)


def test_the_fingerprint_covers_what_decides_the_weights_and_nothing_else():
    config, reference = schema.default(), schema.default().to_dict()
    before = identity.fingerprint(config.to_dict())
    config.data.train, config.training.minutes, config.training.fsdp = "/elsewhere", 5.0, True
    config.prior, config.training.max_bad_steps = "/moved", 99
    assert identity.fingerprint(config.to_dict()) == before
    assert identity.differences(config.to_dict(), reference, reference) == []
    config.optimizer.learning_rate, config.features.times = 1e-4, (0, 400)
    assert identity.fingerprint(config.to_dict()) != before
    assert identity.differences(config.to_dict(), reference, reference) == [
        "config.features.times is [0, 400], was [0, 500]",
        "config.optimizer.learning_rate is 0.0001, was 0.0002",
    ]


def test_a_field_that_an_older_version_lacks_has_its_default():
    reference = schema.default().to_dict()
    older = json.loads(identity.to_json(reference))
    del older["optimizer"]["ema"], older["data"]["haze"]["clean"]
    older["data"]["gone"] = 1
    assert identity.differences(reference, identity.read_json(json.dumps(older)), reference) == [
        "config.data.gone is 'not given', was 1"
    ]
    del older["data"]["gone"]
    assert identity.from_json(json.dumps(older), reference).to_dict() == reference
