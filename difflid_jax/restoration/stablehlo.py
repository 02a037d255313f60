"""A restorer as one StableHLO artefact (`jax.export`)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import export
from jax.errors import InconclusiveDimensionOperation

from difflid_jax.restoration.restorer import Restorer

PLATFORMS = ("cpu", "cuda", "tpu")


def export_restorer(
    restorer: Restorer, size: tuple[int, int] | None = None, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """The program hazy (b,h,w,3) float32 in [0,1] → restored, for any b and the `size` (height, width).

    Without `size`: for any h and w that are multiples of `Geometry.common`. Each of the `platforms` gets its
    own forms of the layers. Raises ValueError if the program cannot be written for all sizes.
    """

    def restore(hazy: jax.Array) -> jax.Array:
        x = hazy.astype(jnp.float32) * 2 - 1
        restored = restorer.traced(restorer.params, restorer.frozen, x)
        return jnp.clip((restored + 1) / 2, 0, 1)

    multiple = restorer.programs.geometry.common
    sides = f"{multiple}*h, {multiple}*w" if size is None else f"{size[0]}, {size[1]}"
    shape = export.symbolic_shape(f"b, {sides}, 3")
    try:
        return export.export(jax.jit(restore), platforms=platforms)(jax.ShapeDtypeStruct(shape, jnp.float32))
    except (TypeError, ValueError, NotImplementedError, InconclusiveDimensionOperation) as error:
        if size is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the program of this restorer cannot be written for all sizes ({reason}); "
            "give one, for instance --size=480x640"
        ) from error
