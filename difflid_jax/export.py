"""Write a restorer as one StableHLO artefact (`jax.export`), to be run without this package.

    python -m difflid_jax.export --weights=haze --output=haze.stablehlo
    python -m difflid_jax.export --weights=runs/its --size=460x620 --output=its_460x620.stablehlo

The artefact holds network, frozen model and weights, and maps hazy (b, h, w, 3) float32 in [0,1] to restored
pictures of the same shape, in one piece. Without --size it takes any number of pictures of any height and
width that are multiples of the restorer's (32 for the paper's features): pad by reflection and crop. With
--size it takes any number of pictures of just that size. To run it:

    from jax import export
    artefact = export.deserialize(pathlib.Path("haze.stablehlo").read_bytes())
    restored = artefact.call(hazy)

Exported programs run on the CPU, CUDA and TPU back ends, and JAX keeps reading them for at least six months.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from jax import export
from jax.errors import InconclusiveDimensionOperation

from difflid_jax.atomic import atomic_write
from difflid_jax.cli import UsageError, run
from difflid_jax.restoration.loading import load_restorer
from difflid_jax.restoration.restorer import Restorer

PLATFORMS = ("cpu", "cuda", "tpu")


def export_restorer(restorer: Restorer, size: tuple[int, int] | None = None) -> export.Exported:
    """hazy (b,h,w,3) float32 in [0,1] → restored, for any b; for any h and w, multiples of
    `Geometry.common`, or for just the `size` (height, width).

    Raises ValueError where this restorer's program cannot be written for all sizes.
    """

    def restore(hazy: jax.Array) -> jax.Array:
        x = hazy.astype(jnp.float32) * 2 - 1
        restored = restorer.traced(restorer.params, restorer.frozen, x)
        return jnp.clip((restored + 1) / 2, 0, 1)

    multiple = restorer.programs.geometry.common
    sides = f"{multiple}*h, {multiple}*w" if size is None else f"{size[0]}, {size[1]}"
    shape = export.symbolic_shape(f"b, {sides}, 3")
    try:
        return export.export(jax.jit(restore), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.float32))
    except (TypeError, ValueError, NotImplementedError, InconclusiveDimensionOperation) as error:
        if size is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the program of this restorer cannot be written for all sizes ({reason}); "
            "give one, for instance --size=480x640"
        ) from error


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
        raise UsageError(f"--output {path}: expected a file to write in a folder that is there")
    restorer = load_restorer(options.weights, prior=options.prior or None, dtype=options.dtype)
    exported = export_restorer(restorer, size)
    try:
        artefact = exported.serialize()
    except ImportError as error:
        raise UsageError("export needs flatbuffers: pip install flatbuffers") from error
    with atomic_write(path, overwrite=options.overwrite) as temporary:
        temporary.write_bytes(artefact)
    (hazy,) = exported.in_avals
    print(f"{path}: hazy {hazy.str_short()} in [0,1] → restored, {len(artefact) / 1e6:.1f} MB")


if __name__ == "__main__":
    flags.DEFINE_string("weights", "haze", "Shipped name, weights folder or workdir of the restorer.")
    flags.DEFINE_string("output", "", "The file to write.")
    flags.DEFINE_string("size", "", "HEIGHTxWIDTH of the pictures; empty: any.")
    flags.DEFINE_string("prior", "", "The frozen model, if not where the restorer's metadata say.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the frozen model's arithmetic.")
    flags.DEFINE_bool("overwrite", False, "Replace the file if it is there.")
    run(main)
