"""Study what the h-space of a frozen diffusion model holds over t (paper Sec. 4.1, Eq. 5, Figs. 1, 2 and 7).

    python -m difflid_jax.study decoders --weights=photos64 --source=rgbd --data=nyu_v2_labelled_train.tar \\
        --ids=1300-1349 --train_ids=1-1299 --output=results/study
    python -m difflid_jax.study tsne --weights=weights/imagenet256 --data=SOTS/indoor --dataset=sots_indoor \\
        --output=results/study
    python -m difflid_jax.study probe …

decoders: Eq. 5 and Fig. 2. Trains one decoder D_t per timestep on clean images (--train, --train_ids) and
shows how it reconstructs the hazy and clean images of --data. An interrupted study resumes with the same
command; finished decoders are kept.
tsne: Figs. 1 and 7, h-space and image space, with random weights as control.
probe: for every layer and timestep, how well linear probes separate hazy from clean in unseen scenes and
predict β and A (--source=rgbd, for which they are known), and how often a hazy image finds its clean partner;
with random weights as control.

Written to --output: WHAT.md, WHAT.csv and images. Choose scenes that the prior was not trained on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from difflid_jax.cli import UsageError, definer, integers, refuse_existing, run, use_compilation_cache

if TYPE_CHECKING:
    from difflid_jax.data.sources import DataSet
    from difflid_jax.evaluation.probes import Pairs
    from difflid_jax.features.prior import Prior

STUDIES = ("decoders", "tsne", "probe")
# Flags that are settings of a decoder's training.
_TRAINING = ("seed", "steps", "batch_size", "learning_rate", "width")
_SOURCES = ("folders", "tfds", "photographs", "rgbd")


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> int:
    named = [*argv[1:], *([options.what] if options.what else [])]
    if len(named) != 1 or named[0] not in STUDIES:
        raise UsageError(f"name one study, {', '.join(STUDIES)}; found {' '.join(named) or 'none'}")
    if not (options.data or options.source == "photographs") or not options.output:
        raise UsageError("give --data=PATH and --output=FOLDER, see --help")
    (what,), output = named, Path(options.output)
    if what != "decoders":
        refuse_existing(output / f"{what}.md", options.overwrite)
    from difflid_jax.exhibits.files import new_figure
    from difflid_jax.features.h_space import HSpaceSpec
    from difflid_jax.features.prior import load_prior

    new_figure(1, 1)  # without matplotlib, refuse before the work
    use_compilation_cache()
    whole = what == "probe" or options.layer.startswith(("decoder", "output"))
    prior = load_prior(options.weights, part="all" if whole else "encoder")
    side = options.side or prior.unet.spec.image_size
    HSpaceSpec(layer=options.layer, side=side).multiple(prior.unet.spec)  # refuses what does not fit
    times = _times(options.times, prior.schedule.steps)
    return {"decoders": _decoders, "tsne": _tsne, "probe": _probe}[what](options, prior, side, times, output)


def _times(given: Sequence[str], steps: int) -> tuple[int, ...]:
    times = tuple(dict.fromkeys(integers(given, "times")))
    if not times or min(times) < 0 or max(times) >= steps:
        raise UsageError(f"--times {','.join(given)}: expected timesteps from 0 to {steps - 1}")
    return times


def _open(options: flags.FlagValues, role: str) -> "DataSet":
    """The images of 'train' or 'test'. Raises ValueError or OSError, see `open_data`."""
    from difflid_jax.data.rgbd import parse_ids
    from difflid_jax.data.sources import open_data

    train = role == "train"
    data = open_data(
        options.source,
        (options.train or options.data) if train else options.data,
        ids=parse_ids(options.train_ids if train else options.ids),
        frame=options.frame,
        dataset=(options.train_dataset or options.dataset) if train else options.dataset,
        split=role,
    )
    limit = options.train_limit if train else options.limit
    return data.subset(range(min(limit, len(data)))) if limit else data


def _pairs(options: flags.FlagValues, side: int, least: int) -> "tuple[DataSet, Pairs]":
    from difflid_jax.evaluation.probes import make_pairs

    data = _open(options, "test")
    if len(data) < least:
        raise UsageError(f"{options.data}: {len(data)} scenes; this study needs {least} or more")
    return data, make_pairs(data, side, options.seed)


def _decoders(
    options: flags.FlagValues, prior: "Prior", side: int, times: tuple[int, ...], output: Path
) -> int:
    from difflid_jax.evaluation.probes import clean_images
    from difflid_jax.exhibits import decoders
    from difflid_jax.tasks import decoder

    if not (options.train or options.train_ids):
        raise UsageError("decoders must be trained on other images than --data; give --train or --train_ids")
    data, pairs = _pairs(options, side, 1)
    train = _open(options, "train")
    if shared := {data.keys[i] for i in data.elements.flat} & {train.keys[i] for i in train.elements.flat}:
        raise UsageError(
            f"{len(shared)} images are both trained on and tested on; separate --ids and --train_ids, or "
            "--data and --train"
        )
    images = clean_images(train, side)
    reconstruct = decoder.reconstructor(prior, pairs, options.layer, options.seed)
    decoded = {}
    for t in times:
        experiment = decoder.experiment(
            prior=options.weights,
            layer=options.layer,
            t=t,
            side=side,
            **{name: options[name].value for name in _TRAINING},
        )
        folder = output / "decoders" / f"t{t:03}"
        if status := decoder.train(experiment, prior, images, folder):
            return status
        decoded[t] = reconstruct(decoder.load_decoder(folder / "weights"), t)
    caption = (
        f"{_caption(options, data, side, prior)} Decoders: {options.steps:,} steps of {options.batch_size} "
        f"images, drawn from {len(images):,} clean ones; no hazy image was trained on."
    )
    print(decoders.write(output, decoded, pairs, caption))
    return 0


def _tsne(options: flags.FlagValues, prior: "Prior", side: int, times: tuple[int, ...], output: Path) -> int:
    from difflid_jax.evaluation import probes
    from difflid_jax.exhibits import tsne

    if options.layer == "output":
        raise UsageError("--layer=output is zero with the control's random weights; choose another layer")
    data, pairs = _pairs(options, side, 3)
    features = {}
    for name, weights in _with_control(prior, options.seed).items():
        found = probes.layer_features(weights, pairs, times, [options.layer], options.seed)
        features[name] = {t: found[options.layer, t] for t in times}
    features["images"] = {t: probes.image_space(pairs, prior.schedule, t, options.seed) for t in times}
    points = {space: {t: probes.t_sne(h) for t, h in found.items()} for space, found in features.items()}
    caption = f"{_caption(options, data, side, prior)} Layer {options.layer}, averaged over positions."
    print(tsne.write(output, features, points, data.names, caption))
    return 0


def _probe(options: flags.FlagValues, prior: "Prior", side: int, times: tuple[int, ...], output: Path) -> int:
    from tqdm import tqdm

    from difflid_jax.evaluation import probes
    from difflid_jax.exhibits import probe

    data, pairs = _pairs(options, side, probes.FOLDS)
    blocks = prior.unet.spec.num_input_blocks
    layers = options.layers or probe.layer_names(blocks, blocks)
    found = {}
    for name, weights in _with_control(prior, options.seed).items():
        features = probes.layer_features(weights, pairs, times, layers, options.seed)
        cells = tqdm(features.items(), desc=f"probes, {name}", unit="cell")
        found[name] = {at: probe.measure(h, pairs) for at, h in cells}
    caption = (
        f"{_caption(options, data, side, prior)} Features are averaged over positions; probes are fitted on "
        "four fifths of the scenes and scored on the rest. A guess tells hazy from clean in 0.5 and "
        f"retrieves in {1 / len(data):.3f} of the cases."
    )
    print(probe.write(output, found, caption))
    return 0


def _with_control(prior: "Prior", seed: int) -> "dict[str, Prior]":
    from difflid_jax.features.prior import random_prior

    control = random_prior(prior.unet.spec, seed, part=prior.unet.part)
    return {"prior": prior, "random weights": control}


def _caption(options: flags.FlagValues, data: "DataSet", side: int, prior: "Prior") -> str:
    made = " (RESIDE's haze, made on the fly)" if data.kind == "depth" else ""
    return (
        f"Prior `{options.weights}` (SHA-256 {prior.sha256[:12]}…). {len(data)} scenes of "
        f"{Path(options.data).name or options.source}{made}, seen at {side}×{side}; seed {options.seed}."
    )


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the program's flags on `values`."""
    define = definer(values)
    define("enum", "what", None, list(STUDIES), "The study, if it is not the first argument.")
    define("path", "weights", "photos64", "Shipped name or folder of a diffusion model.")
    define("enum", "source", "folders", list(_SOURCES), "Kind of --data: pairs, or images with depth.")
    define("path", "data", "", "The images: pairs or, for rgbd, a folder or tar of images with depth.")
    define("string", "dataset", "folders", "Layout of pairs, see check_data.")
    define("string", "ids", "", "First and last id of images with depth, as in 1300-1399; empty: all.")
    define("string", "frame", "nyu_mirrored", "How images with depth are mirrored and cut.")
    define("integer", "limit", 0, "Number of scenes, from the first (0: all).", lower_bound=0)
    define("integer", "side", 0, "The model sees images at side×side (0: its own size).", lower_bound=0)
    define("list", "times", [*(str(t) for t in range(0, 1000, 100)), "999"], "Timesteps.")
    define("string", "layer", "middle", "Layer of decoders and tsne: middle, encoder:i, decoder:i, output.")
    define("list", "layers", [], "Layers of probe; empty: all.")
    define("integer", "seed", 0, "Seed of haze, noise, random weights and training.", 0, 2**32 - 1)
    define("path", "output", "", "Folder of the results; created if missing.")
    define("bool", "overwrite", False, "Replace an existing page of tsne or probe.")
    define("path", "train", "", "decoders: images to train on (default: --data).")
    define("string", "train_ids", "", "decoders: their ids.")
    define("string", "train_dataset", "", "decoders: their layout (default: --dataset).")
    define("integer", "train_limit", 0, "decoders: number of these, from the first (0: all).", lower_bound=0)
    define("integer", "steps", 2000, "decoders: training steps of each.", lower_bound=1)
    define("integer", "batch_size", 16, "decoders: images per step.", lower_bound=1)
    define("float", "learning_rate", 1e-3, "decoders: initial rate of a cosine schedule.", lower_bound=1e-9)
    define("integer", "width", 128, "decoders: channels after the 1×1.", lower_bound=1)


if __name__ == "__main__":
    run(main, define_flags)
