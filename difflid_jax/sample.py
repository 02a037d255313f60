"""Sample images from a diffusion model and write them as one sheet.

    python -m difflid_jax.sample --weights=weights/imagenet256 --steps=50 --output=samples.png

The model needs its decoder (convert it with --part=all). --sampler=ddim is deterministic given the initial
noise; --sampler=ddpm adds noise at each step, with the variance that the model has learned.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from difflid_jax.cli import (
    UsageError,
    definer,
    integers,
    refuse_arguments,
    refuse_existing,
    run,
    use_compilation_cache,
)
from difflid_jax.images.files import write_png
from difflid_jax.images.sheets import contact_sheet


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> None:
    refuse_arguments(argv)
    if not options.weights or not options.output:
        raise UsageError("give --weights DIR and --output FILE.png")
    if Path(options.output).suffix.lower() != ".png":
        raise UsageError(f"--output {options.output}: expected a name that ends in .png")
    if options.eta and options.sampler == "ddpm":
        raise UsageError("--eta is the noise of ddim; ddpm adds what the model has learned")
    refuse_existing(options.output, options.overwrite)
    # Imported here so that --help does not wait for JAX to load.
    import jax
    import jax.numpy as jnp

    from difflid_jax.diffusion.sampling import Sampler
    from difflid_jax.features.prior import load_prior

    use_compilation_cache()
    unet, schedule, _ = load_prior(options.weights, part="all")
    spec = unet.spec
    size = options.size or spec.image_size
    if size % spec.stride:
        raise UsageError(f"--size {size}: expected a multiple of {spec.stride} for this model")
    if spec.in_channels != 3:
        raise UsageError(
            f"{options.weights}: expected a model of RGB images, found {spec.in_channels} channels"
        )
    labels = _labels(options.labels, spec.num_classes, options.count, options.seed)
    sampler = Sampler(unet, schedule, steps=options.steps, sampler=options.sampler, eta=options.eta)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    # A key per image: the batch size affects memory and speed only.
    keys = jax.random.split(jax.random.key(options.seed), options.count)
    images: list[np.ndarray] = []
    batch = min(options.batch_size, options.count)
    batches = -(-options.count // batch)
    for i in range(batches):
        watch = partial(tqdm, desc=f"sampling {i + 1}/{batches}", unit="step")
        # The last batch is padded, so that one compiled program serves all.
        chosen = np.minimum(np.arange(i * batch, (i + 1) * batch), options.count - 1)
        classes = None if labels is None else jnp.asarray(labels[chosen])
        drawn = sampler(keys[chosen], (size, size), classes, watch=watch)
        images += list(np.asarray((drawn + 1) / 2))
    images = images[: options.count]
    broken = sum(not np.isfinite(image).all() for image in images)
    if broken:
        raise ValueError(
            f"{options.weights}: {broken} of {len(images)} samples are not finite; the weights are damaged"
        )
    columns = math.ceil(math.sqrt(len(images)))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    write_png(options.output, contact_sheet(rows, max_width=size))
    print(
        f"{options.output}: {len(images)} samples of {size}×{size}, {options.steps} steps {options.sampler}"
    )


def _labels(given: Sequence[str], classes: int | None, count: int, seed: int) -> np.ndarray | None:
    if classes is None:
        if given:
            raise UsageError("--labels: this model is not class-conditional")
        return None
    if not given:
        return np.random.default_rng(seed).integers(classes, size=count)
    labels = np.array(integers(given, "labels"))
    if labels.min() < 0 or labels.max() >= classes:
        raise UsageError(f"--labels {','.join(given)}: expected 0 to {classes - 1}")
    return np.resize(labels, count)


def define_flags(values: flags.FlagValues) -> flags.FlagValues:
    """Define the program's flags on `values`."""
    define = definer(values)
    define("path", "weights", None, "Diffusion model: a shipped name or a weights folder.")
    define("path", "output", None, "PNG file of the sheet.")
    define("integer", "steps", 50, "Timesteps to run.", lower_bound=1)
    define("enum", "sampler", "ddim", ["ddim", "ddpm"], "DDIM, or ancestral sampling (ddpm).")
    define("float", "eta", 0.0, "Noise of DDIM, 0 to 1.", lower_bound=0, upper_bound=1)
    define("integer", "count", 16, "Number of samples.", lower_bound=1)
    define("integer", "batch_size", 16, "Samples drawn together.", lower_bound=1)
    define("integer", "size", 0, "Side of a sample in pixels; 0: the model's own.", lower_bound=0)
    define("integer", "seed", 0, "Seed of all noise.", lower_bound=0, upper_bound=2**32 - 1)
    define("list", "labels", [], "Classes, repeated in order; empty: random ones.")
    define("bool", "overwrite", False, "Replace an existing sheet.")
    return values


if __name__ == "__main__":
    run(main, define_flags)
