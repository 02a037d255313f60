"""Write the h-space of images, the features of a frozen diffusion model, to one .npz file.

    python -m difflid_jax.extract a.png folder/ --weights=weights/imagenet256 --output=features.npz

For an image a.png and the timesteps 0 and 500 the file holds `a.png/t0` and `a.png/t500`, float32
(H',W',C'); `about` is a JSON text with weights, layer and seed. Folders and uncompressed tars are searched
for images. Those that cannot be read are listed, and the exit status is then 1.

In Python: difflid_jax.features.extraction.Extractor.
"""

import contextlib
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from difflid_jax.atomic import atomic_write
from difflid_jax.cli import (
    UsageError,
    definer,
    integers,
    one_line,
    refuse_existing,
    resolve_dtype,
    run,
    use_compilation_cache,
)
from difflid_jax.data.files import File, find_files, is_tar


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) < 2 or not options.weights or not options.output:
        raise UsageError("give images or folders, --weights DIR and --output FILE.npz")
    output = Path(options.output)
    if output.suffix != ".npz":
        raise UsageError(f"--output {output}: expected a name that ends in .npz")
    refuse_existing(output, options.overwrite)
    times = integers(options.times, "times")
    images = named_images(argv[1:])
    # Imported here so that --help does not wait for JAX to load.
    import jax.numpy as jnp

    from difflid_jax.features.extraction import Extractor
    from difflid_jax.weights import store

    use_compilation_cache()
    dtype = resolve_dtype(options.dtype)
    reading = {
        "layer": options.layer,
        "noise_at_zero": options.noise_at_zero,
        "side": options.side,
        "noise_seed": options.noise_seed,
    }
    extractor = Extractor(options.weights, times=times, dtype=jnp.dtype(dtype), **reading)
    about = {
        "weights": str(store.resolve(options.weights)),
        "weights_sha256": extractor.sha256,
        "times": list(extractor.times),
        "dtype": dtype,
        **reading,
    }
    failures = 0
    with npz_writer(output) as add:
        for name, file in tqdm(images.items(), desc="extracting", unit="image"):
            try:
                image = file.image()
            except (ValueError, OSError) as error:
                failures += 1
                tqdm.write(f"extract: {one_line(error)}", file=sys.stderr)
                continue
            for t, features in extractor(image).items():
                add(f"{name}/t{t}", features)
        if failures == len(images):
            raise UsageError("none of the images could be read; nothing was written")
        add("about", np.array(json.dumps(about)))
    done = len(images) - failures
    print(f"{output}: {done} images, timesteps {', '.join(map(str, extractor.times))}, {options.layer}")
    if failures:
        print(f"{failures} of {len(images)} images could not be read")
    return 1 if failures else 0


def named_images(arguments: Sequence[str]) -> dict[str, File]:
    """The images given or found in folders, by the name that their features get.

    Raises ValueError if a folder holds none, or if two images would get the same name.
    """
    found: dict[str, File] = {}
    for argument in arguments:
        path = Path(argument)
        folder = path.is_dir() or is_tar(path)
        files = find_files(path) if folder else [File(path)]
        if not files:
            raise ValueError(f"{path}: expected images in this folder, found none")
        for file in files:
            name = file.member or (file.path.relative_to(path).as_posix() if folder else path.name)
            if name in found:
                raise ValueError(
                    f"{file.name}: {found[name].name} has the same name, {name}; extract them separately"
                )
            found[name] = file
    return found


@contextlib.contextmanager
def npz_writer(path: Path) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Yield add(name, array) for an .npz file, written array by array, that is there only once complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "x") as archive:

        def add(name: str, array: np.ndarray) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)

        yield add


def define_flags(values: flags.FlagValues) -> flags.FlagValues:
    """Define the program's flags on `values`."""
    define = definer(values)
    define("path", "weights", None, "Diffusion model: a shipped name or a weights folder.")
    define("path", "output", None, "The .npz file to write.")
    define("list", "times", ["0", "500"], "Timesteps, from 0 (no noise) to 999.")
    define("string", "layer", "middle", "middle (the h-space), encoder:i, decoder:i or output.")
    define("integer", "noise_seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=2**32 - 1)
    define("bool", "noise_at_zero", False, "Add the noise of step 0 at timestep 0.")
    define(
        "integer",
        "side",
        0,
        "The model sees every image resized to side×side pixels; 0: at its own size.",
        lower_bound=0,
    )
    define(
        "enum",
        "dtype",
        "auto",
        ["auto", "float32", "bfloat16"],
        "Precision of the computation; auto: bfloat16 on GPU and TPU, float32 on CPU.",
    )
    define("bool", "overwrite", False, "Replace an existing file.")
    return values


if __name__ == "__main__":
    run(main, define_flags)
