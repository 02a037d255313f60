"""Is a diffusion prior a real one? What to know before a restorer is built on it, by one command.

    python scripts/prior_check.py --weights=photos64 --scenes='nyu_v2_labelled_train.tar#1300-1399' \\
        --output=results/prior

Everything is measured twice, on the prior and on its architecture with random weights, as training starts:

- the noise loss (Eq. 4) by timestep on clean crops;
- the paper's claims of Sec. 4.1 on hazy and clean pictures of scenes with depth: at small t the h-spaces of
  partners are close (within-pair over between-scene distance), at larger t hazy and clean lie apart (accuracy
  of a linear probe on scenes that it has not seen), and how well β can be read from h (R²). How each is
  measured: difflid_jax/evaluation/prior.py.

Written to --output: prior.json, prior.md (tables), curves.png, tsne.png (Figs. 1 and 7, with the pictures
themselves for comparison) and samples.png.

What to expect of a good prior: a ratio that is well under the random weights' at t = 0 and grows with t, and
an accuracy at t₂ above theirs, which is not at chance, since their features still hold a picture's mean
colour. Random weights have a loss of 1. At large t a small loss says little (x_t is nearly all noise there):
compare priors at small t. Choose scenes that neither the prior was trained on nor a restorer will be scored
on.
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
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from difflid_jax.data.images import contact_sheet, write_png
from difflid_jax.data.sources import DataSet, open_data
from difflid_jax.diffusion.sampling import Sampler, kept_timesteps
from difflid_jax.diffusion.unet import UNetSpec
from difflid_jax.evaluation import prior as measures
from difflid_jax.evaluation import report
from difflid_jax.features.prior import Prior, load_prior, random_prior
from difflid_jax.program import Refused, run
from difflid_jax.restoration.restorer import use_compilation_cache

# What the results depend on, beside the scenes.
_ASKED = ("weights", "times", "size", "crop", "downscale", "limit", "samples", "steps", "seed")
_HAZY, _CLEAN = "#d95f02", "#1b6ca8"
_COLOURS = ("#1b6ca8", "#999999")  # of the prior, of random weights
_HEADINGS = {
    "ratio": "distance ratio",
    "accuracy": "probe accuracy",
    "beta_r2": "R2 of beta",  # the font of the charts has no more
    "loss": "noise loss",
}


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    if len(argv) > 1 or not (options.weights and options.scenes and options.output):
        raise Refused("give --weights=PRIOR, --scenes=FOLDER or TAR#IDS and --output=FOLDER, see --help")
    output = Path(options.output)
    if (output / "prior.json").exists() and not options.overwrite:
        raise Refused(f"{output / 'prior.json'}: is there already; --overwrite replaces it")
    use_compilation_cache()
    trained = load_prior(options.weights, part="all")
    spec = trained.unet.spec
    times = _times(options.times, spec.diffusion_steps)
    _check_sizes(options, spec)
    data = _scenes(options.scenes, options.limit)
    pairs = measures.make_pairs(data, options.size, options.seed)
    priors = {"prior": trained, "random weights": random_prior(spec, options.seed, part="all")}

    sees = (options.downscale, options.seed)
    found, maps, samples = {}, [], []
    for name, prior in priors.items():
        tqdm.write(f"{name}:", file=sys.stderr)
        features = measures.h_spaces(prior, pairs, times, *sees)
        loss = measures.noise_losses(prior, data, options.crop, *sees)
        found[name] = {"sha256": prior.sha256, **_claims(features, pairs.beta), "loss": loss}
        maps.append([_pair_map(measures.t_sne(h)) for h in tqdm(features.values(), "t-SNE")])
        samples.append(_samples(prior, options))
    pictures = (measures.image_space(pairs, trained.schedule, t, *sees) for t in times)
    maps.append([_pair_map(measures.t_sne(x)) for x in tqdm(pictures, "t-SNE of pictures", len(times))])

    output.mkdir(parents=True, exist_ok=True)
    write_png(output / "samples.png", _side_by_side(samples, list(found)))
    charts = [_line_chart({name: about[what] for name, about in found.items()}) for what in _HEADINGS]
    write_png(output / "curves.png", contact_sheet([charts], list(_HEADINGS.values()), max_width=460))
    captions = [[f"{row}, t = {t}" for t in times] for row in ("h-space", "random weights", "pictures")]
    write_png(output / "tsne.png", contact_sheet(maps, captions))
    asked = {name: options[name].value for name in _ASKED}
    about = {"options": asked, "scenes": list(data.names), "fingerprint": data.fingerprint}
    report.write_json(output / "prior.json", {"priors": found, **about, **report.circumstances()})
    text = _markdown(options, len(data), found)
    report.write_text(output / "prior.md", text)
    print(text)


def _times(given: Sequence[str], steps: int) -> tuple[int, ...]:
    try:
        times = tuple(dict.fromkeys(int(t) for t in given))
    except ValueError:
        raise Refused(f"--times {','.join(given)}: expected whole numbers with commas between") from None
    if not times or min(times) < 0 or max(times) >= steps:
        raise Refused(f"--times {','.join(given)}: expected timesteps from 0 to {steps - 1}")
    return times


def _check_sizes(options: flags.FlagValues, spec: UNetSpec) -> None:
    """Refuse what would only be found after minutes of work."""
    for name, multiple in (("size", options.downscale * spec.stride), ("crop", spec.stride)):
        if options[name].value % multiple:
            raise Refused(f"--{name} {options[name].value}: this prior needs a multiple of {multiple}")
    kept_timesteps(spec.diffusion_steps, options.steps, "ddim")


def _scenes(root: str, limit: int) -> DataSet:
    data = open_data("rgbd", root)
    if limit:
        data = replace(data, elements=data.elements[:limit], names=data.names[:limit])
    if len(data) < measures.FOLDS:
        raise Refused(f"{root}: {len(data)} scenes; the probe needs {measures.FOLDS} or more")
    return data


def _claims(features: Mapping[int, np.ndarray], beta: np.ndarray) -> dict[str, dict[int, float]]:
    """Each of the measures of h, by timestep."""
    found: dict[str, dict[int, float]] = {
        name: {} for name in ("within", "between", "ratio", "accuracy", "beta_r2")
    }
    for t, h in tqdm(features.items(), "probes"):
        within, between = measures.distances(h)
        found["within"][t], found["between"][t], found["ratio"][t] = within, between, within / between
        found["accuracy"][t] = measures.probe_accuracy(h)
        found["beta_r2"][t] = measures.haze_r2(h, beta)
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
        f"{count} scenes of {Path(options.scenes).name}. h-space of the middle {options.size}×{options.size} "
        f"at 1/{options.downscale}; loss on clean crops of {options.crop} at 1/{options.downscale}; "
        f"seed {options.seed}. Distance ratio: within a pair over between clean scenes. Probe: hazy or clean "
        "in scenes not seen; a guess has 0.5. R2 of beta, from the hazy features: 0 is that of the mean."
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
    """Blocks of pictures four wide under their names."""
    blocks = [contact_sheet([list(part[i : i + 4]) for i in range(0, len(part), 4)]) for part in samples]
    return contact_sheet([blocks], list(names), max_width=2000)


def _line_chart(lines: Mapping[str, Mapping[int, float]], width: int = 460, height: int = 280) -> np.ndarray:
    """Values over t, one line a name, uint8 (height,width,3); the axis goes from 0 to 1 or further."""
    every = [value for line in lines.values() for value in line.values()]
    low, high, last = min(0.0, *every), max(1.0, *every), max(t for line in lines.values() for t in line)
    low = max(low, -1.0)  # a useless R² may be far below
    left, top, right, bottom = 40, 12, width - 14, height - 40

    def place(t: float, value: float) -> tuple[float, float]:
        share = (max(value, low) - low) / (high - low)
        return left + (right - left) * t / max(last, 1), bottom - (bottom - top) * share

    chart = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(chart), ImageFont.load_default(12)
    for value in sorted({low, 0.0, 0.25, 0.5, 0.75, 1.0, high}):
        draw.line([place(0, value), place(last, value)], "#dddddd")
    for value in sorted({low, 0.0, 0.5, 1.0}):
        draw.text((left - 6, place(0, value)[1]), f"{value:.1f}", "black", font, anchor="rm")
    for t in next(iter(lines.values())):
        draw.text((place(t, low)[0], bottom + 8), str(t), "black", font, anchor="mt")
    for (name, line), colour, x in zip(lines.items(), _COLOURS, (left, width // 2), strict=True):
        points = [place(t, line[t]) for t in sorted(line)]
        draw.line(points, colour, 2)
        for px, py in points:
            draw.ellipse([px - 3, py - 3, px + 3, py + 3], colour)
        draw.text((x, height - 4), name, colour, font, anchor="lb")
    return np.asarray(chart)


def _pair_map(points: np.ndarray, side: int = 240) -> np.ndarray:
    """Points (2,N,2) of hazy (orange) and clean (blue) pictures, partners joined; uint8 (side,side,3)."""
    low, span = points.min((0, 1)), np.ptp(points, (0, 1))
    hazy, clean = 8 + (side - 16) * (points - low) / np.maximum(span, 1e-6)
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, 0, side - 1, side - 1], outline="#dddddd")
    for a, b in zip(hazy, clean, strict=True):
        draw.line([*a, *b], "#cccccc")
    for places, colour in ((hazy, _HAZY), (clean, _CLEAN)):
        for x, y in places:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], colour)
    return np.asarray(picture)


if __name__ == "__main__":
    flags.DEFINE_string("weights", "", "Shipped name or folder of a diffusion prior with its decoder.")
    flags.DEFINE_string("scenes", "", "Held-out pictures with depth: folder or tar, as in TAR#1300-1399.")
    flags.DEFINE_string("output", "", "Folder for the tables and pictures; made where it is not there.")
    flags.DEFINE_list("times", [str(t) for t in range(0, 1000, 100)], "Timesteps at which h is read.")
    flags.DEFINE_integer("size", 256, "Side of the middle of a picture that h is read of.", lower_bound=1)
    flags.DEFINE_integer("crop", 64, "Side of the crops of the noise loss.", lower_bound=1)
    flags.DEFINE_integer("downscale", 2, "The prior sees pictures at 1/downscale.", lower_bound=1)
    flags.DEFINE_integer("limit", 0, "Only the first so many scenes (0: all).", lower_bound=0)
    flags.DEFINE_integer("samples", 8, "Pictures drawn from each.", lower_bound=1)
    flags.DEFINE_integer("steps", 50, "Steps of DDIM for a sample.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of haze, noise, crops and random weights.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Replace the results that are there.")
    run(main)
