"""The dehazing methods that can be scored, by name: those that need no weights and those that do.

A weights folder states its `kind`, so weights are given as a list and matched to methods by kind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from difflid_jax.baselines.load import NETWORKS, WITHOUT_WEIGHTS, Baseline, load_baseline
from difflid_jax.cli import expand_home
from difflid_jax.restoration.loading import load_restorer
from difflid_jax.weights import schema, store

METHODS = (*WITHOUT_WEIGHTS, *NETWORKS, "difflid")
_KINDS = {name: name for name in NETWORKS} | {"restorer": "difflid"}
_SHIPPED = {"difflid": "haze"}

Restore = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Method:
    """One row of a results table.

    restore: hazy float32 (H,W,3) in [0,1] → restored, same shape.
    parameters: number of trained ones; frozen: number of those of its diffusion prior.
    facts: where its weights come from, for the report (weights, sha256, prior, seed, …).
    with_seed: another seed of the prior's noise → the function that restores with it; None if the method
        draws no noise.
    images: inputs of its own in place of the test set's (images restored elsewhere), or None.
    """

    name: str
    restore: Restore
    parameters: int = 0
    frozen: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    with_seed: Callable[[int], Restore] | None = None
    images: Any = None

    def flipped(self) -> "Method":
        """The method averaged over the image and its mirror image, as a row of its own."""
        seeded = self.with_seed
        return replace(
            self,
            name=f"{self.name} + flip",
            restore=_with_mirror_image(self.restore),
            with_seed=seeded and (lambda seed: _with_mirror_image(seeded(seed))),
            facts=self.facts | {"ensemble": "flip"},
        )


def load_methods(
    names: Sequence[str], weights: Sequence[str] = (), *, tile: str | int = "off"
) -> list[Method]:
    """Methods by name, each with those of `weights` that are of its kind.

    An element of `weights` is a shipped name, a folder or a run's workdir, or LABEL=FOLDER to name its row.
    Without `names`: the methods of the weights. A method with several weights gives several rows, named
    `method (weights)` unless labelled. `difflid` without weights takes the shipped ones. `tile` is the
    restorer's: 'off' restores whole images, as training's evaluation and the paper do.

    Raises: ValueError for an unknown name, weights without a method or a method without weights;
        FileNotFoundError for missing weights.
    """
    for name in names:
        schema.check_choice("method", name, METHODS)
    by_method: dict[str, list[tuple[str, str]]] = {}
    for given in weights:
        label, folder = _label_and_folder(given)
        kind = store.read_metadata(folder)["kind"]
        if kind not in _KINDS:
            raise ValueError(f"{folder}: weights of kind {kind!r}; a method takes one of {', '.join(_KINDS)}")
        if names and _KINDS[kind] not in names:
            raise ValueError(
                f"{folder}: weights for {_KINDS[kind]}, which is not among the methods {', '.join(names)}"
            )
        by_method.setdefault(_KINDS[kind], []).append((label, folder))
    methods = []
    for name in dict.fromkeys(names or by_method):
        if name in WITHOUT_WEIGHTS:
            methods.append(Method(name, _on_one(load_baseline(name))))
        else:
            several = by_method.get(name) or [("", _shipped(name))]
            for label, folder in several:
                unnamed = f"{name} ({folder})" if len(several) > 1 else name
                methods.append(_with_weights(name, folder, label or unnamed, tile))
    labels = [method.name for method in methods]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"--weights: two rows would be called {twice[0]!r}; name them with LABEL=FOLDER")
    return methods


def _with_mirror_image(restore: Restore) -> Restore:
    def restore_both(hazy: np.ndarray) -> np.ndarray:
        mirrored = np.asarray(restore(np.ascontiguousarray(hazy[:, ::-1])), np.float32)
        return (np.asarray(restore(hazy), np.float32) + mirrored[:, ::-1]) / 2

    return restore_both


def _label_and_folder(given: str) -> tuple[str, str]:
    label, equals, folder = given.partition("=")
    if not equals or Path(given).exists():
        label, folder = "", given
    folder = expand_home(folder)
    of_a_run = Path(folder) / "weights"
    if (of_a_run / store.FILE).is_file() and not (Path(folder) / store.FILE).is_file():
        folder = str(of_a_run)
    return label, folder


def _shipped(name: str) -> str:
    if name in _SHIPPED:
        return _SHIPPED[name]
    raise ValueError(
        f"{name} needs its authors' weights: convert them with "
        f"`python -m convert_weights.peers --network={name} --source=FILE --output=FOLDER` and give "
        "--weights=FOLDER"
    )


def _with_weights(name: str, folder: str, label: str, tile: str | int) -> Method:
    if name == "difflid":
        return _difflid(folder, label, tile)
    weights = store.read(folder, name)
    restore = _on_one(load_baseline(name, weights))
    parameters = sum(tensor.size for tensor in weights.tensors.values())
    facts = {"weights": str(folder), "sha256": weights.sha256, **weights.metadata}
    return Method(label, restore, parameters, 0, facts)


def _on_one(baseline: Baseline) -> Restore:
    """A baseline, which takes a batch, as a function of one image (H,W,3)."""
    return lambda image: baseline(image[None])[0]


def _difflid(folder: str, label: str, tile: str | int) -> Method:
    restorer = load_restorer(folder, tile=tile)
    facts = {name: value for name, value in restorer.facts.items() if name not in ("config", "noise_seed")}
    facts |= {"seed": restorer.noise_seed, "tile": tile}
    return Method(
        label,
        restorer.restore_array,
        restorer.parameters,
        restorer.frozen_parameters,
        facts,
        lambda seed: replace(restorer, noise_seed=seed).restore_array,
    )
