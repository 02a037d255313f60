"""Look at a diffusion model: pictures drawn from it, on one sheet.

    python -m difflid_jax.sample --weights=weights/imagenet256 --steps=50 --output=samples.png

The model needs its decoder (convert with --part all). --sampler=ddim is deterministic but for the first
noise, --sampler=ddpm adds noise at each step, of the variance that the model has learned.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from difflid_jax.cli import UsageError, refuse_existing, run
from difflid_jax.diffusion.sampling import SAMPLERS, Sampler
from difflid_jax.features.prior import load_prior
from difflid_jax.images.files import write_png
from difflid_jax.images.sheets import contact_sheet


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; every input has a flag, see --help")
    draw(flags.FLAGS)


def draw(options: flags.FlagValues) -> None:
    """Draw the pictures that the flags ask for and write the sheet."""
    if not options.weights or not options.output:
        raise UsageError("give --weights DIR and --output FILE.png")
    if Path(options.output).suffix.lower() != ".png":
        raise UsageError(f"--output {options.output}: expected a name that ends in .png")
    refuse_existing(options.output, options.overwrite)
    unet, schedule, _ = load_prior(options.weights, part="all")
    spec = unet.spec
    size = options.size or spec.image_size
    if size % spec.stride:
        raise UsageError(f"--size {size}: this model draws multiples of {spec.stride}")
    if spec.in_channels != 3:
        raise UsageError(
            f"{options.weights}: the model has {spec.in_channels} channels and draws no RGB pictures"
        )
    labels = _labels(options.labels, spec.num_classes, options.count, options.seed)
    sampler = Sampler(unet, schedule, steps=options.steps, sampler=options.sampler, eta=options.eta)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    # A key for each picture: the batch size decides about memory and speed alone.
    keys = jax.random.split(jax.random.key(options.seed), options.count)
    pictures: list[np.ndarray] = []
    batch = min(options.batch_size, options.count)
    batches = -(-options.count // batch)
    for i in range(batches):
        watch = partial(tqdm, desc=f"sampling {i + 1}/{batches}", unit="step")
        # The last batch is filled up, so that all have one size and one compiled program.
        chosen = np.minimum(np.arange(i * batch, (i + 1) * batch), options.count - 1)
        classes = None if labels is None else jnp.asarray(labels[chosen])
        drawn = sampler(keys[chosen], (size, size), classes, watch=watch)
        pictures += list(np.asarray((drawn + 1) / 2))
    pictures = pictures[: options.count]
    broken = sum(not np.isfinite(picture).all() for picture in pictures)
    if broken:
        raise ValueError(
            f"{options.weights}: {broken} of {len(pictures)} samples are not finite: a broken model"
        )
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    write_png(options.output, contact_sheet(rows, max_width=size))
    print(
        f"{options.output}: {len(pictures)} samples of {size}×{size}, {options.steps} steps {options.sampler}"
    )


def _labels(given: Sequence[str], classes: int | None, count: int, seed: int) -> np.ndarray | None:
    if classes is None:
        if given:
            raise UsageError("--labels: this model is not class-conditional")
        return None
    if not given:
        return np.random.default_rng(seed).integers(classes, size=count)
    try:
        labels = np.array([int(label) for label in given])
    except ValueError:
        raise UsageError(f"--labels {','.join(given)}: expected whole numbers with commas between") from None
    if labels.min() < 0 or labels.max() >= classes:
        raise UsageError(f"--labels {','.join(given)}: expected 0 to {classes - 1}")
    return np.resize(labels, count)


def define_flags(values: flags.FlagValues) -> flags.FlagValues:
    """The program's flags, defined on `values`."""
    flags.DEFINE_string("weights", None, "shipped name or folder of a diffusion model", flag_values=values)
    flags.DEFINE_string("output", None, "the .png sheet to write", flag_values=values)
    flags.DEFINE_integer("steps", 50, "timesteps that are run", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("sampler", "ddim", list(SAMPLERS), "DDIM, or ancestral (ddpm)", flag_values=values)
    flags.DEFINE_float("eta", 0.0, "noise of DDIM, 0 to 1", lower_bound=0, upper_bound=1, flag_values=values)
    flags.DEFINE_integer("count", 16, "pictures", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 16, "pictures drawn together", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "size", 0, "side of a picture (0: the model's own)", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "where all noise comes from", flag_values=values)
    flags.DEFINE_list("labels", [], "classes, repeated in order (default: at random)", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace the sheet if it is there", flag_values=values)
    return values


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    run(main)
