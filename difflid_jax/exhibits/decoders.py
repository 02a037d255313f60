"""Fig. 2c: how the decoders D_t (Eq. 5), trained on clean h only, reconstruct hazy and clean h, over t.

In the paper, r_t^haz shows the content at small t and the haze at larger t. Two curves measure that:
‖r_t^haz − r_t^cle‖₁, small if the h-spaces of partners are alike, and ‖r_t^haz − x‖₁, small if r_t^haz
looks like the hazy image x. ‖r_t^cle − y‖₁ shows how well a decoder reconstructs at all.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from difflid_jax.evaluation.probes import Pairs
from difflid_jax.exhibits.files import markdown_table, new_figure, save_figure, write_csv, write_page
from difflid_jax.images.files import write_png
from difflid_jax.images.sheets import contact_sheet

_SHOWN = 3


class Errors(NamedTuple):
    """Mean absolute differences over the test pairs between the two images named, both in [0,1]."""

    haz_cle: float
    haz_hazy: float
    haz_clean: float
    cle_clean: float


_HEADINGS = Errors("‖r_haz − r_cle‖", "‖r_haz − hazy‖", "‖r_haz − clean‖", "‖r_cle − clean‖")


def measure(decoded: Float32[np.ndarray, "2 n h w 3"], pairs: Pairs) -> Errors:
    """The errors of (r_t^haz, r_t^cle) in [0,1] for pairs in [-1,1]."""
    (r_haz, r_cle), hazy, clean = decoded, (pairs.hazy + 1) / 2, (pairs.clean + 1) / 2

    def l1(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).mean())

    return Errors(l1(r_haz, r_cle), l1(r_haz, hazy), l1(r_haz, clean), l1(r_cle, clean))


def write(folder: Path, decoded: Mapping[int, np.ndarray], pairs: Pairs, caption: str) -> str:
    """Write decoders.md, .csv, and the images decoders_grid.png and decoders_curves.png; returns the page.

    decoded: {t: (r_t^haz, r_t^cle)}, see `measure`. caption: a sentence on prior, data and training.
    """
    errors = {t: measure(images, pairs) for t, images in decoded.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "decoders.csv", ["t", *Errors._fields], [(t, *e) for t, e in errors.items()])
    write_png(folder / "decoders_grid.png", _grid(decoded, pairs))
    _draw(errors, folder / "decoders_curves.png")
    return write_page(
        folder / "decoders.md",
        "# Decoders of h-space (Eq. 5, Fig. 2)",
        caption,
        "Mean absolute differences, images in [0,1]; hazy − clean itself: "
        f"{float(np.abs(pairs.hazy - pairs.clean).mean()) / 2:.3f}.",
        markdown_table(["t", *_HEADINGS], [(t, *e) for t, e in errors.items()]),
        "![Reconstructions from hazy and clean h over t](decoders_grid.png)",
        "![Differences over t](decoders_curves.png)",
    )


def _grid(decoded: Mapping[int, np.ndarray], pairs: Pairs) -> np.ndarray:
    """Two rows, hazy and clean, for each of the first scenes: the image, then r_t for every t."""
    rows = []
    for i in range(min(_SHOWN, len(pairs.clean))):
        for part, images in enumerate((pairs.hazy, pairs.clean)):
            rows.append([(images[i] + 1) / 2, *(images_t[part, i] for images_t in decoded.values())])
    return contact_sheet(rows, ["image", *(f"t = {t}" for t in decoded)], gap=6)


def _draw(errors: Mapping[int, Errors], path: Path) -> None:
    figure = new_figure(5, 3)
    axes = figure.subplots()
    for name, values in zip(_HEADINGS, zip(*errors.values(), strict=True), strict=True):
        axes.plot(list(errors), values, ".-", label=name)
    axes.set(xlabel="t", ylabel="mean absolute difference", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
