"""The strict mapper: what it maps, and that nothing slips through."""

import numpy as np
import pytest

from difflid_jax.weights.rules import CONV, LINEAR, POINTWISE, Rule, map_tensors

RULES = (
    Rule("blocks.{}.conv.weight", "blocks.{}.conv.kernel", CONV),
    Rule("{*}.norm.weight", "{*}.norm.scale"),
    Rule("head.weight", "head.kernel", LINEAR),
    Rule("{*}.qkv.weight", "{*}.qkv.kernel", POINTWISE),
)
TARGETS = {
    "blocks.3.conv.kernel": (5, 4, 2, 3),
    "a.b.norm.scale": (3,),
    "head.kernel": (2, 3),
    "x.qkv.kernel": (4, 6),
}


def source():
    generator = np.random.default_rng(0)
    shapes = {
        "blocks.3.conv.weight": (3, 2, 5, 4),
        "a.b.norm.weight": (3,),
        "head.weight": (3, 2),
        "x.qkv.weight": (6, 4, 1),
        "optimizer.step": (),
    }
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def mapping_error(tensors, rules=RULES, ignored=("optimizer.{*}",), targets=TARGETS):
    with pytest.raises(ValueError) as error:
        map_tensors(tensors, rules, ignored, targets, where="file.pt")
    assert str(error.value).startswith("file.pt: the tensors do not fit: ")
    return str(error.value)


def test_names_and_layouts_are_mapped_without_copies():
    tensors = source()
    mapped = map_tensors(tensors, RULES, ["optimizer.{*}"], TARGETS, where="file.pt")
    assert {name: tensor.shape for name, tensor in mapped.items()} == TARGETS
    kernel, weight = mapped["blocks.3.conv.kernel"], tensors["blocks.3.conv.weight"]
    assert kernel[4, 3, 1, 2] == weight[2, 1, 4, 3]
    assert mapped["x.qkv.kernel"][3, 5] == tensors["x.qkv.weight"][5, 3, 0]
    for tensor in mapped.values():
        assert any(np.shares_memory(tensor, original) for original in tensors.values())


def test_the_way_back_is_exact():
    tensors = source()
    mapped = map_tensors(tensors, RULES, ["optimizer.{*}"], TARGETS, where="file.pt")
    del tensors["optimizer.step"]
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    back = map_tensors(mapped, [rule.reversed() for rule in RULES], (), shapes, where="back")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].tobytes() == tensor.tobytes()


def test_dots_are_literal_and_numbers_are_numbers():
    tensors = source()
    for odd in (
        "blocksx3xconv.weight",
        "blocks.a.conv.weight",
        "prefix.blocks.3.conv.weight",
        "head.weight2",
    ):
        assert f"{odd} has no rule" in mapping_error(tensors | {odd: np.zeros((3, 2, 5, 4))})


def test_all_failures_stand_in_one_message():
    tensors = source()
    del tensors["x.qkv.weight"]
    tensors["surplus"] = np.zeros(1)
    tensors["c.norm.weight"] = np.zeros(3)
    tensors["head.weight"] = np.zeros(7)
    tensors["a.b.norm.weight"] = np.zeros(9)
    message = mapping_error(tensors)
    assert "surplus has no rule" in message
    assert "head.weight has shape (7,), which does not fit its rule" in message
    assert "2 missing: head.kernel, x.qkv.kernel" in message
    assert "1 unexpected: c.norm.scale" in message
    assert "a.b.norm.scale (expected (3,), found (9,))" in message


def test_a_name_is_used_once():
    tensors = source()
    double = (*RULES, Rule("head.{*}", "other.{*}"))
    assert "head.weight has 2 rules" in mapping_error(tensors, rules=double)
    assert "head.weight is both ignored and mapped" in mapping_error(
        tensors, ignored=("optimizer.{*}", "head.weight")
    )
    clash = (*RULES, Rule("tail.weight", "head.kernel", LINEAR))
    message = mapping_error(tensors | {"tail.weight": np.zeros((3, 2))}, rules=clash)
    assert "tail.weight and head.weight both fill head.kernel" in message
    assert "the name of a tensor is of type int, expected str" in mapping_error(tensors | {3: np.zeros(2)})
    assert "no rule" in mapping_error(tensors, ignored=())
    assert "optimizer.step is not a tensor but a str" in mapping_error(
        tensors | {"optimizer.step": "text"}, (*RULES, Rule("optimizer.step", "step")), ()
    )
