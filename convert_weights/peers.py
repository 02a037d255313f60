"""Converts the baselines' weights from their authors' files.

    python -m convert_weights.peers --network=aod_net --source=AOD_Net.caffemodel --output=weights/aod_net
    python -m convert_weights.peers --network=dehazenet --source=dehaze.mat --output=weights/dehazenet
    python -m convert_weights.peers --network=zero_dce --source=Epoch99.pth --output=weights/zero_dce
    python -m convert_weights.peers --network=retinexnet --source=Decom/9200.tar,Relight/9200.tar \\
        --output=weights/retinexnet
    python -m convert_weights.peers --network=uretinex_net \\
        --source=init_low.pth,init_high.pth,unfolding.pth,L_adjust.pth --output=weights/uretinex_net
    python -m convert_weights.peers --network=iat --source=best_Epoch_lol_v1.pth --output=weights/iat

Repositories: Boyiliee/AOD-Net (or its arrays as .npz: `conv1_w`, `conv1_b`, ..., kernels OIHW);
caibolun/DehazeNet; Li-Chongyi/Zero-DCE `Zero-DCE_code/snapshots`; aasharma90/RetinexNet_PyTorch `ckpts`;
AndersonYong/URetinex-Net `ckpt`; cuiziteng/Illumination-Adaptive-Transformer `IAT_enhance`. Zero-DCE and
URetinex-Net are for non-commercial use.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from convert_weights import dehazing_files, program
from convert_weights.program import layer, norm
from difflid_jax.cli import UsageError, definer, expand_home, run
from difflid_jax.weights import store
from difflid_jax.weights.rules import CONV, LINEAR, Layout, Rule, map_tensors
from difflid_jax.weights.torch_file import read_torch


@dataclass(frozen=True)
class Peer:
    """How a network's PyTorch files become our tensors.

    merge: the contents of the files, in the order of --source, and their names → one state dict.
    """

    files: tuple[str, ...]
    merge: Callable[[Sequence[Any], Sequence[str]], dict[str, Any]]
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()


def _plain(contents: Sequence[Any], where: Sequence[str]) -> dict[str, Any]:
    return {
        name: tensor
        for content, file in zip(contents, where, strict=True)
        for name, tensor in program.state_dict(content, where=file, of="this network").items()
    }


def _uretinex(contents: Sequence[Any], where: Sequence[str]) -> dict[str, Any]:
    """The models that inference uses, from four files that hold several models each."""
    used = ((("model_R", "low"),), (("model_R", "high"),), (("model_R", "r"), ("model_L", "l")))
    merged = {}
    for content, file, models in zip(contents, where, (*used, (("model_A", "a"),)), strict=True):
        for model, prefix in models:
            try:
                state = content["state_dict"][model]
            except (KeyError, TypeError) as error:
                raise ValueError(f"{file}: expected a checkpoint of URetinex-Net with {model}") from error
            state = program.state_dict(state, where=file, of="URetinex-Net")
            merged |= {f"{prefix}.{name}": tensor for name, tensor in state.items()}
    options = contents[2].get("opts")
    options = options if isinstance(options, Mapping) else {}
    for name, expected in _uretinex_options().items():
        if options.get(name) != expected:
            raise ValueError(f"{where[2]}: opts.{name}: expected {expected}, found {options.get(name)!r}")
    return merged


def _uretinex_options() -> dict[str, Any]:
    """The options that the checkpoints of URetinex-Net must have been trained with."""
    from difflid_jax.baselines import uretinex_net

    return {
        "round": uretinex_net.ROUNDS,
        "gamma": uretinex_net.GAMMA,
        "Roffset": uretinex_net.GAMMA_STEP,
        "lamda": uretinex_net.LAMBDA,
        "Loffset": uretinex_net.LAMBDA_STEP,
        "concat_L": True,
    }


_RETINEX = (
    *layer("net1_conv0", "decompose.first", CONV),
    *(rule for i in range(5) for rule in layer(f"net1_convs.{2 * i}", f"decompose.convs.{i}", CONV)),
    *layer("net1_recon", "decompose.last", CONV),
    *layer("net2_conv0_1", "relight.first", CONV),
    *(rule for i in range(3) for rule in layer(f"net2_conv1_{i + 1}", f"relight.down.{i}", CONV)),
    *(rule for i in range(3) for rule in layer(f"net2_deconv1_{i + 1}", f"relight.up.{i}", CONV)),
    *layer("net2_fusion", "relight.fusion", CONV),
    *layer("net2_output", "relight.last", CONV),
)
_URETINEX = (
    *(
        rule
        for which in ("low", "high")
        for i in range(4)
        for rule in layer(f"{which}.decom.{2 * i}", f"decompose_{which}.convs.{i}", CONV)
    ),
    *layer("r.conv1", "reflectance.of_reflectance", CONV),
    *layer("r.conv2", "reflectance.of_illumination", CONV),
    Rule("r.se_layer.fc.0.weight", "reflectance.squeeze.kernel", LINEAR),
    Rule("r.se_layer.fc.2.weight", "reflectance.excite.kernel", LINEAR),
    *(rule for i in range(5) for rule in layer(f"r.conv{i + 3}", f"reflectance.convs.{i}", CONV)),
    *layer("r.conv8", "reflectance.last", CONV),
    *(rule for i in range(5) for rule in layer(f"l.conv{i + 1}", f"illumination.convs.{i}", CONV)),
    *(rule for i in range(4) for rule in layer(f"a.conv{i + 1}", f"adjust.convs.{i}", CONV)),
)
# (1, channels, 1, 1) and (1, 1, channels) ↔ (channels,); (1, tokens, channels) ↔ (tokens, channels)
_PLANES = Layout(lambda w: w[0, :, 0, 0], lambda w: w[None, :, None, None])
_LAST = Layout(lambda w: w[0, 0], lambda w: w[None, None])
_FIRST = Layout(lambda w: w[0], lambda w: w[None])


def _local_block(which: str) -> tuple[Rule, ...]:
    theirs, ours = f"local_net.{which}_blocks.{{}}", f"{which}_blocks.{{}}"
    return (
        *(r for name in ("pos_embed", "conv1", "conv2", "attn")
          for r in layer(f"{theirs}.{name}", f"{ours}.{name}", CONV)),
        *(r for name in ("fc1", "fc2") for r in layer(f"{theirs}.mlp.{name}", f"{ours}.{name}", CONV)),
        *(Rule(f"{theirs}.gamma_{i}", f"{ours}.scale{i}", _PLANES) for i in (1, 2)),
        *(Rule(f"{theirs}.norm{i}.alpha", f"{ours}.norm{i}.scale", _LAST) for i in (1, 2)),
        *(Rule(f"{theirs}.norm{i}.beta", f"{ours}.norm{i}.bias", _LAST) for i in (1, 2)),
        *(Rule(f"{theirs}.norm{i}.color", f"{ours}.norm{i}.mix.kernel", LINEAR) for i in (1, 2)),
    )  # fmt: skip


_THEIRS, _OURS = "global_net", "global_branch"
_IAT = (
    *layer("local_net.conv1", "stem", CONV),
    *_local_block("mul"),
    *_local_block("add"),
    *layer("local_net.mul_end.0", "mul_end", CONV),
    *layer("local_net.add_end.0", "add_end", CONV),
    *layer(f"{_THEIRS}.conv_large.proj.0", f"{_OURS}.embed1", CONV),
    *norm(f"{_THEIRS}.conv_large.proj.1", f"{_OURS}.embed_norm1", statistics=True),
    *layer(f"{_THEIRS}.conv_large.proj.3", f"{_OURS}.embed2", CONV),
    *norm(f"{_THEIRS}.conv_large.proj.4", f"{_OURS}.embed_norm2", statistics=True),
    *layer(f"{_THEIRS}.generator.pos_embed", f"{_OURS}.pos_embed", CONV),
    *norm(f"{_THEIRS}.generator.norm1", f"{_OURS}.norm1"),
    *norm(f"{_THEIRS}.generator.norm2", f"{_OURS}.norm2"),
    Rule(f"{_THEIRS}.generator.attn.q", f"{_OURS}.queries", _FIRST),
    Rule(f"{_THEIRS}.generator.attn.k.weight", f"{_OURS}.key.kernel", LINEAR),
    Rule(f"{_THEIRS}.generator.attn.v.weight", f"{_OURS}.value.kernel", LINEAR),
    *layer(f"{_THEIRS}.generator.attn.proj", f"{_OURS}.proj", LINEAR),
    *layer(f"{_THEIRS}.generator.mlp.fc1", f"{_OURS}.fc1", LINEAR),
    *layer(f"{_THEIRS}.generator.mlp.fc2", f"{_OURS}.fc2", LINEAR),
    *layer(f"{_THEIRS}.gamma_linear", f"{_OURS}.gamma", LINEAR),
    *layer(f"{_THEIRS}.color_linear", f"{_OURS}.colour", LINEAR),
    Rule(f"{_THEIRS}.gamma_base", f"{_OURS}.gamma_base"),
    Rule(f"{_THEIRS}.color_base", f"{_OURS}.colour_base"),
)
PEERS = {
    "zero_dce": Peer(("Epoch99.pth",), _plain, layer("e_conv{}", "conv{}", CONV)),
    "retinexnet": Peer(("Decom/9200.tar", "Relight/9200.tar"), _plain, _RETINEX),
    "uretinex_net": Peer(
        ("init_low.pth", "init_high.pth", "unfolding.pth", "L_adjust.pth"), _uretinex, _URETINEX
    ),
    "iat": Peer(("best_Epoch_lol_v1.pth",), _plain, _IAT, ("{*}.num_batches_tracked",)),
}


def convert(network: str, sources: Sequence[Path]) -> dict[str, np.ndarray]:
    """Our tensors by name from the authors' files of `network`, in the order of the examples above.

    Raises ValueError, naming the file, if it is damaged, of another format or holds another network.
    """
    if network not in PEERS:
        if len(sources) != 1:
            raise ValueError(f"--source: {network} comes in one file, found {len(sources)}")
        return dehazing_files.read(network, sources[0])
    peer = PEERS[network]
    if len(sources) != len(peer.files):
        raise ValueError(f"--source: {network} takes {', '.join(peer.files)}; found {len(sources)} files")
    names = [str(source) for source in sources]
    state = peer.merge([read_torch(source) for source in sources], names)
    return map_tensors(state, peer.rules, peer.ignored, _shapes(network), where=", ".join(names))


@cache
def _shapes(network: str) -> dict[str, tuple[int, ...]]:
    # Imported here so that --help does not wait for JAX to load.
    from flax import nnx

    from difflid_jax.baselines.load import NETWORKS

    return store.shapes_of(nnx.eval_shape(lambda: NETWORKS[network](rngs=nnx.Rngs(0))))


def define_flags(values: flags.FlagValues = flags.FLAGS) -> flags.FlagValues:
    """The program's flags, defined on `values`."""
    define = definer(values)
    program.define_flags(values)
    define("enum", "network", None, ["aod_net", "dehazenet", *PEERS], "Network to convert.")
    define("list", "source", None, "The authors' files, in the order above.")
    return values


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> None:
    if len(argv) > 1 or not options.network or not options.source:
        raise UsageError("give --network NAME, --source FILE[,FILE…] and --output FOLDER, see --help")
    program.require_output(options)
    sources = [Path(expand_home(source)) for source in options.source]
    program.write(options, options.network, convert(options.network, sources), {}, sources)


if __name__ == "__main__":
    run(main, define_flags)
