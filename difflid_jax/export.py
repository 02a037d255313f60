"""Write a restorer as one StableHLO artefact (`jax.export`) that runs without this package.

    python -m difflid_jax.export --weights=haze --output=haze.stablehlo
    python -m difflid_jax.export --weights=runs/its --size=460x620 --output=its_460x620.stablehlo

The artefact holds the network, the frozen model and all weights. It maps hazy images (b, h, w, 3), float32 in
[0,1], to restored images of the same shape, in one piece. Without --size it takes any number of images whose
height and width are multiples of the restorer's (32 for the paper's features): pad by reflection and
crop. With --size it takes any number of images of that size only. To run it:

    from jax import export
    artefact = export.deserialize(pathlib.Path("haze.stablehlo").read_bytes())
    restored = artefact.call(hazy)

Exported programs run on CPU, CUDA and TPU, and JAX keeps reading them for at least six months.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from difflid_jax.atomic import atomic_write
from difflid_jax.cli import UsageError, definer, refuse_existing, run


def define_flags(values: flags.FlagValues) -> None:
    """Define the program's flags on `values`."""
    define = definer(values)
    define("path", "weights", "haze", "Restorer: a shipped name, a weights folder or a workdir.")
    define("path", "output", "", "File to write.")
    define("string", "size", "", "HEIGHTxWIDTH of the images; empty: any.")
    define("path", "prior", "", "Frozen model, if not the one that the restorer's metadata name.")
    define("enum", "dtype", "float32", ["float32", "bfloat16"], "Precision of the frozen model.")
    define("bool", "overwrite", False, "Replace an existing file.")


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    if len(argv) > 1 or not options.output:
        raise UsageError("give --weights NAME_OR_FOLDER and --output FILE, and nothing else")
    size = None
    if options.size:
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", options.size)
        if match is None:
            raise UsageError(f"--size {options.size}: expected HEIGHTxWIDTH in pixels, such as 480x640")
        size = int(match[1]), int(match[2])
    path = Path(options.output)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--output {path}: expected a file to write in an existing folder")
    refuse_existing(path, options.overwrite)
    # Imported here so that --help does not wait for JAX to load.
    from difflid_jax.restoration.loading import load_restorer
    from difflid_jax.restoration.stablehlo import export_restorer

    restorer = load_restorer(options.weights, prior=options.prior or None, dtype=options.dtype)
    exported = export_restorer(restorer, size)
    try:
        artefact = exported.serialize()
    except ImportError as error:
        raise UsageError("export needs flatbuffers: pip install 'difflid_jax[export]'") from error
    with atomic_write(path, overwrite=options.overwrite) as temporary:
        temporary.write_bytes(artefact)
    (hazy,) = exported.in_avals
    print(f"{path}: hazy {hazy.str_short()} in [0,1] → restored, {len(artefact) / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main, define_flags)
