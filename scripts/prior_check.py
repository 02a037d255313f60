"""Check a diffusion prior before a restorer is built on it.

    python scripts/prior_check.py --weights=photos64 --scenes=nyu_v2_labelled_train.tar --ids=1300-1399 \\
        --output=results/prior

Everything is measured twice: on the prior, and on its architecture with random weights.

- the noise loss (Eq. 4) by timestep on the clean images;
- the paper's claims of Sec. 4.1 on hazy and clean images of scenes with depth: at small t the h-spaces of
  partners are close (within-pair over between-scene distance), at larger t hazy and clean are apart (accuracy
  of a linear probe on scenes it was not fitted to), and how well β can be read from h (R²). See
  difflid_jax/evaluation/probes.py for the measures.

Written to --output: prior.json, prior.md (tables), curves.png, tsne.png (Figs. 1 and 7, with the images
themselves for comparison) and samples.png.

A good prior has a ratio well below the random weights' at t = 0 that grows with t, and an accuracy above
theirs at t₂. Theirs is above chance, since their features still hold an image's mean colour. Random weights
have a loss of 1. At large t a small loss says little (x_t is nearly pure noise): compare priors at small t.
Choose scenes that the prior was not trained on and no restorer is scored on.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from tqdm import tqdm

from difflid_jax.atomic import write_text
from difflid_jax.cli import (
    UsageError,
    define_path,
    refuse_arguments,
    refuse_existing,
    run,
    use_compilation_cache,
)
from difflid_jax.data.rgbd import FRAMES, parse_ids
from difflid_jax.data.sources import DataSet, open_data
from difflid_jax.diffusion.sampling import Sampler, kept_timesteps
from difflid_jax.evaluation import probes, tables
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.features.prior import Prior, load_prior, random_prior
from difflid_jax.images.files import write_png
from difflid_jax.images.sheets import contact_sheet

# What the results depend on, besides the scenes.
_ASKED = ("weights", "times", "side", "limit", "samples", "steps", "seed")
_HEADINGS = {
    "ratio": "distance ratio",
    "accuracy": "probe accuracy",
    "beta_r2": "R² of β",
    "loss": "noise loss",
}


def main(argv: Sequence[str]) -> None:
    refuse_arguments(argv)
    use_compilation_cache()
    check_prior(flags.FLAGS)


def check_prior(options: flags.FlagValues) -> None:
    """Measure the prior that the flags name, write the files and print the tables."""
    if not (options.weights and options.scenes and options.output):
        raise UsageError("give --weights=PRIOR, --scenes=FOLDER or TAR and --output=FOLDER, see --help")
    output = Path(options.output)
    refuse_existing(output / "prior.json", options.overwrite)
    trained = load_prior(options.weights, part="all")
    spec = trained.unet.spec
    times = _times(options.times, spec.diffusion_steps)
    HSpaceSpec(side=options.side).multiple(spec)  # refuses a side that does not fit
    kept_timesteps(spec.diffusion_steps, options.steps, "ddim")
    data = _scenes(options)
    pairs = probes.make_pairs(data, options.side, options.seed)
    priors = {"prior": trained, "random weights": random_prior(spec, options.seed, part="all")}

    found, maps, samples = {}, [], []
    for name, prior in priors.items():
        tqdm.write(f"{name}:", file=sys.stderr)
        features = probes.h_spaces(prior, pairs, times, options.seed)
        loss = probes.noise_losses(prior, pairs)
        found[name] = {"sha256": prior.sha256, **_claims(features, pairs.beta), "loss": loss}
        maps.append([probes.t_sne(h) for h in tqdm(features.values(), "t-SNE")])
        samples.append(_samples(prior, options))
    images = (probes.image_space(pairs, trained.schedule, t, options.seed) for t in times)
    maps.append([probes.t_sne(x) for x in tqdm(images, "t-SNE of images", len(times))])

    output.mkdir(parents=True, exist_ok=True)
    write_png(output / "samples.png", _side_by_side(samples, list(found)))
    _draw_curves(found, output / "curves.png")
    _draw_maps(
        dict(zip(("h-space", "random weights", "images"), maps, strict=True)), times, output / "tsne.png"
    )
    asked = {name: options[name].value for name in _ASKED}
    about = {"options": asked, "scenes": list(data.names), "fingerprint": data.fingerprint}
    tables.write_json(output / "prior.json", {"priors": found, **about, **tables.circumstances()})
    text = _markdown(options, len(data), found)
    write_text(output / "prior.md", text)
    print(text)


def _times(given: Sequence[str], steps: int) -> tuple[int, ...]:
    try:
        times = tuple(dict.fromkeys(int(t) for t in given))
    except ValueError:
        raise UsageError(f"--times {','.join(given)}: expected whole numbers separated by commas") from None
    if not times or min(times) < 0 or max(times) >= steps:
        raise UsageError(f"--times {','.join(given)}: expected timesteps from 0 to {steps - 1}")
    return times


def _scenes(options: flags.FlagValues) -> DataSet:
    data = open_data("rgbd", options.scenes, ids=parse_ids(options.ids), frame=options.frame)
    if limit := options.limit:
        data = replace(data, elements=data.elements[:limit], names=data.names[:limit])
    if len(data) < probes.FOLDS:
        raise UsageError(f"{options.scenes}: {len(data)} scenes; the probe needs {probes.FOLDS} or more")
    return data


def _claims(features: Mapping[int, np.ndarray], beta: np.ndarray) -> dict[str, dict[int, float]]:
    """Each of the measures of h, by timestep."""
    found: dict[str, dict[int, float]] = {
        name: {} for name in ("within", "between", "ratio", "accuracy", "beta_r2")
    }
    for t, h in tqdm(features.items(), "probes"):
        within, between = probes.distances(h)
        found["within"][t], found["between"][t], found["ratio"][t] = within, between, within / between
        found["accuracy"][t] = probes.probe_accuracy(h)
        found["beta_r2"][t] = probes.haze_r2(h, beta)
    return found


def _samples(prior: Prior, options: flags.FlagValues) -> np.ndarray:
    """Float (N,S,S,3) in [0,1], drawn by DDIM."""
    keys = jax.random.split(jax.random.key(options.seed), options.samples)
    labels = None if prior.unet.spec.num_classes is None else jnp.zeros(options.samples, jnp.int32)
    sampler = Sampler(prior.unet, prior.schedule, steps=options.steps)
    side = prior.unet.spec.image_size
    drawn = sampler(keys, (side, side), labels, watch=lambda steps: tqdm(steps, "samples"))
    return np.asarray((drawn + 1) / 2)


def _markdown(options: flags.FlagValues, count: int, found: Mapping[str, Any]) -> str:
    lines = [f"# Prior check: {options.weights}"]
    lines.append(
        f"{count} scenes of {Path(options.scenes).name}, seen at {options.side}×{options.side}; "
        f"seed {options.seed}. Distance ratio: within a pair over between clean scenes. Probe: hazy or clean "
        "in scenes not seen; a guess has 0.5. R² of β, from the hazy features: 0 is that of the mean."
    )
    for measured in (("ratio", "accuracy", "beta_r2"), ("loss",)):
        heads = [f"{_HEADINGS[what]}, {name}" for what in measured for name in found]
        rows = [f"| t | {' | '.join(heads)} |", "|--:|" + "--:|" * len(heads)]
        for t in next(iter(found.values()))[measured[0]]:
            values = [f"{found[name][what][t]:.3f}" for what in measured for name in found]
            rows.append(f"| {t} | {' | '.join(values)} |")
        lines.append("\n".join(rows))
    return "\n\n".join(lines) + "\n"


def _side_by_side(samples: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Blocks of images, four per row, under their names."""
    blocks = [contact_sheet([list(part[i : i + 4]) for i in range(0, len(part), 4)]) for part in samples]
    return contact_sheet([blocks], list(names), max_width=2000)


def _draw_curves(found: Mapping[str, Any], path: Path) -> None:
    """Each measure over t, a line for the prior and one for random weights."""
    figure = Figure(figsize=(3.4 * len(_HEADINGS), 3), layout="constrained")
    for axes, (what, heading) in zip(figure.subplots(1, len(_HEADINGS)), _HEADINGS.items(), strict=True):
        for name, about in found.items():
            axes.plot(list(about[what]), list(about[what].values()), ".-", label=name)
        axes.set(title=heading, xlabel="t")
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def _draw_maps(maps: Mapping[str, list[np.ndarray]], times: Sequence[int], path: Path) -> None:
    """t-SNE points (2,N,2) of hazy (orange) and clean (blue) images, partners joined; one column per t."""
    figure = Figure(figsize=(2.2 * len(times), 2.3 * len(maps)), layout="constrained")
    grid = figure.subplots(len(maps), len(times), squeeze=False)
    for row, (name, points) in zip(grid, maps.items(), strict=True):
        for axes, t, (hazy, clean) in zip(row, times, points, strict=True):
            axes.plot(*np.stack([hazy, clean]).transpose(2, 0, 1), color="0.85", linewidth=0.6, zorder=0)
            axes.scatter(*hazy.T, s=8, color="C1")
            axes.scatter(*clean.T, s=8, color="C0")
            axes.set(title=f"{name}, t = {t}", xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the program's flags on `values`."""

    def define(kind, name, *rest, **options):
        getattr(flags, f"DEFINE_{kind}")(name, *rest, flag_values=values, **options)

    define_path("weights", "", "Shipped name or folder of a diffusion prior with its decoder.", values)
    define_path("scenes", "", "Held-out images with depth: folders or tars.", values)
    define("string", "ids", "", "First and last id of the scenes, as in 1300-1399; empty: all.")
    define("enum", "frame", "nyu_mirrored", list(FRAMES), "How stored scenes are mirrored and cut.")
    define_path("output", "", "Folder for the tables and figures; created if missing.", values)
    define("list", "times", [str(t) for t in range(0, 1000, 100)], "Timesteps at which h is read.")
    define("integer", "side", 64, "The prior sees every scene at side×side.", lower_bound=1)
    define("integer", "limit", 0, "Only the first so many scenes (0: all).", lower_bound=0)
    define("integer", "samples", 8, "Images sampled from each.", lower_bound=1)
    define("integer", "steps", 50, "Steps of DDIM for a sample.", lower_bound=1)
    define("integer", "seed", 0, "Of haze, noise, crops and random weights.", lower_bound=0)
    define("bool", "overwrite", False, "Replace existing results.")


if __name__ == "__main__":
    run(main, define_flags)
