"""The ADM U-Net of OpenAI's released diffusion models (Dhariwal & Nichol 2021).

Reference: UNetModel in guided_diffusion/unet.py. The h-space of the paper is the output of `middle_block`;
`encode` computes it without the decoder, and a U-Net built with part="encoder" holds no decoder at all.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from difflid_jax.diffusion import blocks
from difflid_jax.diffusion.spec import PARTS, UNetSpec
from difflid_jax.weights import schema


class UNet(nnx.Module):
    """ADM U-Net: x (B,H,W,in_channels) in [-1,1], t (B,) → (B,H,W,out_channels) float32.

    H and W are multiples of `spec.stride`. Computes in `dtype`; parameters are float32.
    """

    def __init__(self, spec: UNetSpec, *, part: str = "all", dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        schema.check_choice("part of the U-Net", part, PARTS)
        self.spec = spec
        self.part = part
        self.dtype = dtype
        base = spec.model_channels
        emb = 4 * base
        float32 = {"dtype": jnp.float32, "rngs": rngs}
        compute = {"dtype": dtype, "rngs": rngs}

        def residual(inputs: int, outputs: int, resample: str | None = None) -> blocks.ResBlock:
            return blocks.ResBlock(
                inputs,
                outputs,
                emb,
                scale_shift=spec.use_scale_shift_norm,
                dropout=spec.dropout,
                resample=resample,
                **compute,
            )

        def attention(channels: int) -> blocks.AttentionBlock:
            heads = spec.heads(channels)
            return blocks.AttentionBlock(
                channels, heads=heads, new_order=spec.use_new_attention_order, **compute
            )

        self.time_embed = nnx.List([blocks.linear(base, emb, **float32), blocks.linear(emb, emb, **float32)])
        self.label_emb = None if spec.num_classes is None else nnx.Embed(spec.num_classes, emb, rngs=rngs)

        channels = first = int(spec.channel_mult[0] * base)
        self.input_blocks = nnx.List([nnx.List([blocks.conv(spec.in_channels, channels, 3, **compute)])])
        skips, rate = [channels], 1
        for level, mult in enumerate(spec.channel_mult):
            for _ in range(spec.num_res_blocks):
                layers = [residual(channels, int(mult * base))]
                channels = int(mult * base)
                if rate in spec.attention_resolutions:
                    layers.append(attention(channels))
                self.input_blocks.append(nnx.List(layers))
                skips.append(channels)
            if level < len(spec.channel_mult) - 1:
                down = (
                    residual(channels, channels, "down")
                    if spec.resblock_updown
                    else blocks.Downsample(channels, **compute)
                )
                self.input_blocks.append(nnx.List([down]))
                skips.append(channels)
                rate *= 2

        self.middle_block = nnx.List(
            [residual(channels, channels), attention(channels), residual(channels, channels)]
        )
        if part == "encoder":
            return

        self.output_blocks = nnx.List([])
        for level, mult in reversed(list(enumerate(spec.channel_mult))):
            for i in range(spec.num_res_blocks + 1):
                layers = [residual(channels + skips.pop(), int(mult * base))]
                channels = int(mult * base)
                if rate in spec.attention_resolutions:
                    layers.append(attention(channels))
                if level > 0 and i == spec.num_res_blocks:
                    layers.append(
                        residual(channels, channels, "up")
                        if spec.resblock_updown
                        else blocks.Upsample(channels, **compute)
                    )
                    rate //= 2
                self.output_blocks.append(nnx.List(layers))
        self.out_norm = blocks.group_norm(channels, of=dtype, rngs=rngs)
        self.out_conv = blocks.conv(first, spec.out_channels, 3, zero=True, **float32)

    def embed(self, t: Num[Array, " b"], y: Int[Array, " b"] | None = None) -> Float[Array, "b e"]:
        """Float32 embedding, 4·model_channels wide, of timesteps t and, if conditional, labels y."""
        if (y is None) != (self.label_emb is None):
            raise ValueError(
                "the U-Net is class-conditional: give labels y"
                if y is None
                else "labels y were given to a U-Net without classes"
            )
        first, second = self.time_embed
        emb = second(nnx.silu(first(blocks.timestep_embedding(t, self.spec.model_channels))))
        return emb if y is None else emb + self.label_emb(y)

    def encode(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        y: Int[Array, " b"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b h2 w2 d"], list[Float[Array, "b _ _ _"]]]:
        """(h-space (B,H/stride,W/stride,bottleneck_channels), skips) of x in [-1,1], in the compute dtype.

        skips[i] is the output of `input_blocks[i]`. `key` enables dropout. Raises ValueError for sides that
        are not multiples of `spec.stride`.
        """
        rows, columns = x.shape[1:3]
        if rows % self.spec.stride or columns % self.spec.stride:
            raise ValueError(
                f"the U-Net needs sides that are multiples of {self.spec.stride}, found {rows}×{columns}: "
                "pad first"
            )
        emb = self.embed(t, y)
        h, skips = x.astype(self.dtype), []
        for i, layers in enumerate(self.input_blocks):
            h = _through(layers, h, emb, _fold(key, i))
            skips.append(h)
        return _through(self.middle_block, h, emb, _fold(key, len(skips))), skips

    def decode(
        self,
        h: Float[Array, "b h2 w2 d"],
        skips: list[Float[Array, "b _ _ _"]],
        emb: Float[Array, "b e"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b h w c"], list[Float[Array, "b _ _ _"]]]:
        """(output (B,H,W,out_channels) float32, outputs of `output_blocks`) from `encode`'s results."""
        if self.part == "encoder":
            raise ValueError("this U-Net holds only its encoder and middle block: load it with part='all'")
        outputs = []
        for i, layers in enumerate(self.output_blocks):
            h = jnp.concatenate([h, skips[-1 - i]], axis=-1)
            h = _through(layers, h, emb, _fold(key, 1000 + i))
            outputs.append(h)
        return self.out_conv(nnx.silu(self.out_norm(h))), outputs

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        y: Int[Array, " b"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h w d"]:
        h, skips = self.encode(x, t, y, key=key)
        return self.decode(h, skips, self.embed(t, y), key=key)[0]

    def layers(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        y: Int[Array, " b"] | None = None,
        *,
        wanted: Collection[str],
    ) -> dict[str, Float[Array, "b _ _ _"]]:
        """Named intermediates: "middle", "encoder:i", "decoder:i", "output"; the decoder runs only if wanted.

        Raises ValueError for a name that this U-Net does not have.
        """
        h, skips = self.encode(x, t, y)
        found = {"middle": h, **{f"encoder:{i}": s for i, s in enumerate(skips)}}
        if any(name not in found for name in wanted) and self.part == "all":
            output, decoded = self.decode(h, skips, self.embed(t, y))
            found |= {"output": output, **{f"decoder:{i}": d for i, d in enumerate(decoded)}}
        unknown = [name for name in wanted if name not in found]
        if unknown:
            last = len(skips) - 1
            more = (
                f"decoder:0 … decoder:{last}, output"
                if self.part == "all"
                else "with part='all' the decoder's"
            )
            raise ValueError(
                f"layer {unknown[0]!r}: this U-Net has middle, encoder:0 … encoder:{last}, {more}"
            )
        return {name: found[name] for name in wanted}


def _through(layers: nnx.List, h: jax.Array, emb: jax.Array, key: jax.Array | None) -> jax.Array:
    for i, layer in enumerate(layers):
        h = layer(h) if isinstance(layer, nnx.Conv) else layer(h, emb, _fold(key, i))
    return h


def _fold(key: jax.Array | None, i: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, i)
