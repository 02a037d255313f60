"""Rebuild RESIDE's indoor sets from NYU Depth v2, in their own layout and naming.

    python -m difflid_jax.synthesize --recipe=its --rgb=nyu.tar --output=ITS
    python -m difflid_jax.synthesize --recipe=its --rgb=nyu_depth_v2_labeled.mat --output=ITS
    python -m difflid_jax.synthesize --recipe=sots_indoor --ids=1300-1399 --rgb=RGB --depth=D --output=V

Haze is I = J·t + A(1−t), t = exp(−β·d / max d), with d the depth of the whole image (RESIDE: Li et al.,
TIP 2018, Sec. III). its: ids 1–1399, ten images each, A drawn from [0.7, 1] and β from [0.6, 1.8], files
hazy/ID_K_A.png and clear/ID.png. sots_indoor: ids 1400–1449, A = 1, β = 0.5 + 0.1·K, files hazy/ID_K.png and
gt/ID.png (already cut to the hazy size). A and β of every file are also in haze.csv.

A and β depend on the seed and the id alone, so a part of a set equals that part of the whole. Running the
command again completes an interrupted set; a folder that was begun with other settings is refused.

Images and depths come from folders or uncompressed tars (0.jpg is id 1: see --first_id), or from NYU's own
nyu_depth_v2_labeled.mat (needs the extra `nyu`). --depth=plausible makes up a depth for photographs without
one (`data.haze.plausible_depth`).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import flags

from difflid_jax.cli import UsageError, definer, number_range, refuse_arguments, run
from difflid_jax.data.reside import RECIPES, synthesize
from difflid_jax.data.rgbd import FRAMES, parse_ids
from difflid_jax.data.scenes import open_scenes


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The program's flags; a test passes its own `values`."""
    define = definer(values)
    define("enum", "recipe", "its", list(RECIPES), "Set to make.")
    define("path", "rgb", None, "Folder or tar of images, or nyu_depth_v2_labeled.mat.")
    define("path", "depth", "", "Folder or tar of depths, or 'plausible' (empty: as --rgb).")
    define("path", "output", None, "Folder for the set.")
    define("string", "ids", "", "First and last id, as in 1300-1399 (empty: all of the recipe).")
    define("integer", "first_id", 1, "Id of the image with number 0.", lower_bound=0)
    define("integer", "per_scene", 10, "Hazy images per scene.", 1, 10)
    define("list", "airlight", ["0.7", "1.0"], "Range of A (its).")
    define("list", "beta", ["0.6", "1.8"], "Range of β (its).")
    define("bool", "linear", False, "Add haze to linear light, as in the air, not to sRGB values (its).")
    define("integer", "seed", 0, "Seed of A and β (its).", lower_bound=0)
    define(
        "enum",
        "frame",
        "",
        ["", *FRAMES],
        "How stored images become RESIDE's: nyu cuts NYU's border of 10 pixels, nyu_mirrored also mirrors "
        "them, whole does neither (empty: nyu for a .mat, whole for plausible depth, else nyu_mirrored).",
    )
    define("integer", "workers", 0, "Threads (0: one per core).", lower_bound=0)


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> None:
    refuse_arguments(argv)
    if not options.rgb or not options.output:
        raise UsageError("give --rgb=FILES and --output=FOLDER, see --help")
    recipe = RECIPES[options.recipe]
    recipe = replace(recipe, ids=parse_ids(options.ids) or recipe.ids, per_scene=options.per_scene)
    if recipe.name == "its":
        airlight = number_range(options.airlight, "airlight", 0, 1)
        beta = number_range(options.beta, "beta", 0, 100)
        recipe = replace(recipe, airlight=airlight, beta=beta, linear=options.linear)
    elif given := [name for name in ("airlight", "beta", "linear", "seed") if options[name].present]:
        raise UsageError(f"--{given[0]}: the haze of {recipe.name} is fixed; omit it")
    count = synthesize(
        open_scenes(options.rgb, options.depth or None, options.first_id),
        recipe,
        Path(options.output),
        seed=options.seed,
        frame=FRAMES[options.frame] if options.frame else None,
        workers=options.workers,
    )
    print(f"{options.output}: {count} images written" if count else f"{options.output}: already complete")


if __name__ == "__main__":
    run(main, define_flags)
