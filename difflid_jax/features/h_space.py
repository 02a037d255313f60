"""The paper's features: the bottleneck of a frozen diffusion U-Net at two timesteps (Sec. 4.1–4.2).

At t₁ = 0 the h-space holds the content, at t₂ = 500 the haze. Both come from one pass of 2B images through
the encoder and the middle block; the decoder, more than half of the work, is not run.

Timesteps: t = 0 means x_0 = x, without noise, and timestep 0 for the U-Net (the paper's x_0); t ≥ 1 means
x_t of Eq. 2 with ᾱ = alphas_cumprod[t], counted from 0. With `noise_at_zero`, as in the released code, the
noise of step 0 is also added at t = 0.
"""

import dataclasses
import re
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.weights import schema


@dataclasses.dataclass(frozen=True)
class HSpaceSpec(schema.JsonSpec):
    """What is read from the U-Net: at which `times` (t₁, t₂), from which layer, at which size.

    layer: "middle" (h-space), "encoder:i", "decoder:i" (Table 3's Layer-E and Layer-D) or "output".
    side: the prior sees every image resized to side×side pixels (0: at its own size). It then sees a whole
        image as it saw training's crops, at a fixed cost, and h keeps its grid.
    """

    SECTION = "features"

    times: tuple[int, int] = (0, 500)
    layer: str = "middle"
    noise_at_zero: bool = False
    side: int = 0

    def __post_init__(self):
        # Timesteps count from 0: the paper's 1000 is 999.
        self.check_fields(times=(0, 999), side=(0, 4096))
        if not re.fullmatch(r"middle|output|(encoder|decoder):\d{1,3}", self.layer):
            raise ValueError(
                "features.layer: expected middle, encoder:I, decoder:I or output, "
                f"found {schema.brief(self.layer)}"
            )

    @property
    def part(self) -> str:
        """The part of the U-Net that the layer needs."""
        return "all" if self.layer.startswith(("decoder", "output")) else "encoder"

    def multiple(self, unet: UNetSpec) -> int:
        """Sides of an image must be multiples of this. Raises ValueError if `side` does not fit `unet`."""
        if self.side % unet.stride:
            raise ValueError(f"features.side: expected a multiple of {unet.stride}, found {self.side}")
        return 1 if self.side else unet.stride


def h_space(
    unet: UNet,
    schedule: Schedule,
    x: Float[Array | np.ndarray, "b h w 3"],
    key: Array,
    spec: HSpaceSpec,
) -> tuple[Float[Array, "b rows columns c"], Float[Array, "b rows columns c"]]:
    """(h_content, h_haze), each (B,H',W',C'), of images x (B,H,W,3) in [-1,1]; pure, to be jitted.

    H and W are multiples of `spec.multiple(unet.spec)` (see `view.py`). `key` draws the noise: image i of the
    batch gets its own, which depends neither on the rest of the batch nor on the timesteps. Class-conditional
    models are given class 0. Gradients do not flow back.
    """
    x = x.astype(jnp.float32)
    if spec.side:
        x = at_side(x, spec.side)
    noise = _noise(x, key)
    noisy, steps = [], []
    for t in spec.times:
        step = jnp.full(x.shape[0], t, jnp.int32)
        clean = t == 0 and not spec.noise_at_zero
        noisy.append(x if clean else schedule.sample_noisy(x, step, noise))
        steps.append(step)
    # Interleaved: a batch that is split over devices stays so, and nothing moves between them.
    both = 2 * x.shape[0]
    batch, times = (jnp.stack(pair, 1).reshape(both, *pair[0].shape[1:]) for pair in (noisy, steps))
    labels = None if unet.spec.num_classes is None else jnp.zeros(both, jnp.int32)
    h = jax.lax.stop_gradient(unet.layers(batch, times, labels, wanted=[spec.layer])[spec.layer])
    h = h.reshape(x.shape[0], 2, *h.shape[1:])
    return h[:, 0], h[:, 1]


def layers_at(
    unet: UNet,
    schedule: Schedule,
    x: Float[Array | np.ndarray, "b h w 3"],
    key: Array,
    times: Int[Array | np.ndarray, " n"],
    wanted: Collection[str],
) -> dict[str, Float[Array, "b n _ _ _"]]:
    """The layers `wanted` (see `HSpaceSpec`) of images x in [-1,1], at the timesteps `times`; pure.

    As `h_space`, with the same noise, but for studies: any layers and number of timesteps, which may be
    traced, so that one compiled program serves all of them. H and W are multiples of the U-Net's stride.
    """
    x = x.astype(jnp.float32)
    noise = _noise(x, key)
    steps = jnp.repeat(jnp.asarray(times, jnp.int32)[None], x.shape[0], 0)  # (B,n)
    noisy = jax.vmap(lambda t: schedule.sample_noisy(x, t, noise), 1, 1)(steps)
    batch = jnp.where(steps[..., None, None, None] == 0, x[:, None], noisy).reshape(-1, *x.shape[1:])
    labels = None if unet.spec.num_classes is None else jnp.zeros(len(batch), jnp.int32)
    found = unet.layers(batch, steps.ravel(), labels, wanted=wanted)
    return {name: jax.lax.stop_gradient(h).reshape(*steps.shape, *h.shape[1:]) for name, h in found.items()}


def _noise(x: Float[Array | np.ndarray, "b h w 3"], key: Array) -> Float[Array, "b h w 3"]:
    """Gaussian noise of x's shape; image i has its own, independent of the batch size."""
    each = jnp.arange(x.shape[0])
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:], jnp.float32))(each)


def feature_channels(unet: UNet, spec: HSpaceSpec) -> int:
    """Channels C' of the maps that `h_space` returns."""
    if spec.layer == "middle":
        return unet.spec.bottleneck_channels
    side = spec.side or spec.multiple(unet.spec)
    x = jax.ShapeDtypeStruct((1, side, side, unet.spec.in_channels), jnp.float32)
    # A typed key: its shape depends on the generator.
    key = jax.eval_shape(lambda: jax.random.key(0))
    schedule = Schedule.named(unet.spec.noise_schedule, unet.spec.diffusion_steps)
    return jax.eval_shape(lambda x, key: h_space(unet, schedule, x, key, spec), x, key)[0].shape[-1]


def at_side(x: Float[Array | np.ndarray, "b h w c"], side: int) -> Float[Array, "b side side c"]:
    """x resized to side×side pixels, bilinear and anti-aliased."""
    return jax.image.resize(x, (x.shape[0], side, side, x.shape[3]), "linear")


def pad_to_multiple(
    x: Float[Array | np.ndarray, "b h w c"], multiple: int
) -> Float[Array, "b rows columns c"]:
    """x (B,H,W,C) with H and W padded at the bottom and right up to multiples, by reflection.

    A side too small to reflect that far repeats its edge for the rest. Crop back with [:, :H, :W].
    """
    for axis in (1, 2):
        missing = -x.shape[axis] % multiple
        while missing > 0 and x.shape[axis] > 1:
            step = min(missing, x.shape[axis] - 1)
            x = jnp.pad(x, _on(axis, step), mode="reflect")
            missing -= step
        if missing:
            x = jnp.pad(x, _on(axis, missing), mode="edge")
    return x


def _on(axis: int, after: int) -> tuple[tuple[int, int], ...]:
    return tuple((0, after if a == axis else 0) for a in range(4))
