"""Maps other people's parameter names to ours, by a table that must account for every tensor.

A rule pairs two name patterns: `{}` matches a number, `{*}` any dotted path, all else, dots included, itself.
`map_tensors` uses every source tensor exactly once, unless it is listed as ignored, fills every target
exactly once with its shape, and reports all failures in one error.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from difflid_jax.weights.schema import listed
from difflid_jax.weights.store import mismatches, require_finite


@dataclass(frozen=True)
class Layout:
    """A change of memory layout and its inverse; both return views, so nothing is copied here."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


KEEP = Layout(lambda w: w, lambda w: w)
# (out, in) ↔ (in, out)
LINEAR = Layout(lambda w: w.transpose(1, 0), lambda w: w.transpose(1, 0))
# (out, in, height, width) ↔ (height, width, in, out)
CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
# A 1-D convolution of width 1 is a linear layer: (out, in, 1) ↔ (in, out)
POINTWISE = Layout(lambda w: w.transpose(2, 1, 0)[0], lambda w: w.transpose(1, 0)[:, :, None])


@dataclass(frozen=True)
class Rule:
    """Renames `source` to `target`, with numbers and paths carried over in order, and applies `layout`."""

    source: str
    target: str
    layout: Layout = KEEP

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return compile_pattern(self.source)

    def reversed(self) -> "Rule":
        """The inverse rule."""
        return replace(
            self,
            source=self.target,
            target=self.source,
            layout=Layout(self.layout.backward, self.layout.forward),
        )

    def rename(self, match: re.Match[str]) -> str:
        """The target name for a match of `pattern`."""
        groups = iter(match.groups())
        return re.sub(r"\{\*?\}", lambda _: next(groups), self.target)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a name pattern: `{}` a number, `{*}` a dotted path, the rest literal."""
    parts = re.split(r"(\{\*?\})", pattern)
    wild = {"{}": r"(\d+)", "{*}": r"(.+?)"}
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts))


def map_tensors(
    source: Mapping[str, Any],
    rules: Sequence[Rule],
    ignored: Iterable[str],
    targets: Mapping[str, tuple[int, ...]],
    *,
    where: str,
) -> dict[str, np.ndarray]:
    """The tensors of `source` under the names and in the layouts of `targets` (name → shape).

    ignored: patterns of source names that are left out on purpose. Returns views of the source arrays.
    Raises one ValueError, prefixed by the file `where`, on source names without a rule or with several,
    targets filled twice, missing or unexpected, other shapes, and tensors that are not finite.
    """
    skipped = [compile_pattern(pattern) for pattern in ignored]
    mapped: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    wrong: list[str] = []
    for name, tensor in source.items():
        if not isinstance(name, str):
            wrong.append(f"the name of a tensor is of type {type(name).__name__}, expected str")
            continue
        hits = [(rule, match) for rule in rules if (match := rule.pattern.fullmatch(name))]
        if any(pattern.fullmatch(name) for pattern in skipped):
            if hits:
                wrong.append(f"{name} is both ignored and mapped")
            continue
        if len(hits) != 1:
            wrong.append(f"{name} has {'no rule' if not hits else f'{len(hits)} rules'}")
            continue
        rule, match = hits[0]
        target = rule.rename(match)
        if target in origin:
            wrong.append(f"{name} and {origin[target]} both fill {target}")
            continue
        if not hasattr(tensor, "shape"):
            wrong.append(f"{name} is not a tensor but a {type(tensor).__name__}")
            continue
        require_finite(name, tensor, where=where)
        try:
            mapped[target] = rule.layout.forward(tensor)
        except (ValueError, IndexError):
            wrong.append(f"{name} has shape {tuple(tensor.shape)}, which does not fit its rule")
            continue
        origin[target] = name
    differ = mismatches({name: tensor.shape for name, tensor in mapped.items()}, targets)
    if wrong or differ:
        failures = [listed(wrong, separator="; ")] * bool(wrong) + [differ] * bool(differ)
        raise ValueError(f"{where}: the tensors do not fit: {'; '.join(failures)}")
    return mapped
