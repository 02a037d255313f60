"""Write the features that a frozen diffusion model sees in pictures, its h-space, to one .npz file.

    python -m difflid_jax.extract a.png folder/ --weights=weights/imagenet256 --output=features.npz

For a picture a.png and the timesteps 0 and 500 the file holds `a.png/t0` and `a.png/t500`, float32
(H',W',C'); `about` is a JSON text: weights, layer, seed. Folders (and uncompressed tars) are searched for
pictures. Those that cannot be read are named, and the exit status is then 1.

In Python: difflid_jax.features.extraction.Extractor.
"""

import contextlib
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from difflid_jax.atomic import atomic_write
from difflid_jax.cli import UsageError, one_line, refuse_existing, run
from difflid_jax.data.files import File, find_files, is_tar
from difflid_jax.features.extraction import Extractor
from difflid_jax.weights import store


def main(argv: Sequence[str]) -> int:
    return extract(argv[1:], flags.FLAGS)


def extract(arguments: Sequence[str], options: flags.FlagValues) -> int:
    """Write the features of the pictures in `arguments`; the exit status."""
    if not arguments or not options.weights or not options.output:
        raise UsageError("give pictures or folders, --weights DIR and --output FILE.npz")
    output = Path(options.output)
    if output.suffix != ".npz":
        raise UsageError(f"--output {output}: expected a name that ends in .npz")
    refuse_existing(output, options.overwrite)
    try:
        times = [int(t) for t in options.times]
    except ValueError:
        raise UsageError(
            f"--times {','.join(options.times)}: expected whole numbers with commas between"
        ) from None
    pictures = named_pictures(arguments)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
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
    with NpzWriter(output) as writer:
        for name, file in tqdm(pictures.items(), desc="extracting", unit="picture"):
            try:
                picture = file.image()
            except (ValueError, OSError) as error:
                failures += 1
                tqdm.write(f"extract: {one_line(error)}", file=sys.stderr)
                continue
            for t, features in extractor(picture).items():
                writer.add(f"{name}/t{t}", features)
        if failures == len(pictures):
            raise UsageError("none of the pictures could be read; nothing was written")
        writer.add("about", np.array(json.dumps(about)))
    done = len(pictures) - failures
    print(f"{output}: {done} pictures, timesteps {', '.join(map(str, extractor.times))}, {options.layer}")
    if failures:
        print(f"{failures} of {len(pictures)} pictures could not be read")
    return 1 if failures else 0


def named_pictures(arguments: Sequence[str]) -> dict[str, File]:
    """The pictures named or found in folders, by the name that their features get.

    Raises ValueError where a folder holds none, or where two pictures would get the same name.
    """
    found: dict[str, File] = {}
    for argument in arguments:
        path = Path(argument)
        folder = path.is_dir() or is_tar(path)
        files = find_files(path) if folder else [File(path)]
        if not files:
            raise ValueError(f"{path}: expected pictures in this folder, found none")
        for file in files:
            name = file.member or (file.path.relative_to(path).as_posix() if folder else path.name)
            if name in found:
                raise ValueError(
                    f"{file.name}: {found[name].name} has the same name, {name}; extract them apart"
                )
            found[name] = file
    return found


class NpzWriter:
    """An .npz file, array by array, that takes its name only when it is whole."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "NpzWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            temporary = opened.enter_context(atomic_write(self.path))
            self.archive = opened.enter_context(zipfile.ZipFile(temporary, "x"))
            self.opened = opened.pop_all()
        return self

    def add(self, name: str, array: np.ndarray) -> None:
        with self.archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    def __exit__(self, *raised: Any) -> None:
        self.opened.__exit__(*raised)


def define_flags(values: flags.FlagValues) -> flags.FlagValues:
    """The program's flags, defined on `values`."""
    flags.DEFINE_string("weights", None, "shipped name or folder of a diffusion model", flag_values=values)
    flags.DEFINE_string("output", None, "the .npz file to write", flag_values=values)
    flags.DEFINE_list("times", ["0", "500"], "timesteps, 0 (no noise) to 999", flag_values=values)
    flags.DEFINE_string(
        "layer", "middle", "middle (h-space), encoder:i, decoder:i or output", flag_values=values
    )
    flags.DEFINE_integer("noise_seed", 0, "where the noise comes from", flag_values=values)
    flags.DEFINE_bool("noise_at_zero", False, "add the noise of step 0 at timestep 0", flag_values=values)
    flags.DEFINE_integer(
        "side",
        0,
        "the model sees every picture at side×side (0: at its own size)",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ["auto", "float32", "bfloat16"],
        "of the computation (auto: bfloat16 on GPU and TPU)",
        flag_values=values,
    )
    flags.DEFINE_bool("overwrite", False, "replace the file if it is there", flag_values=values)
    return values


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    run(main)
