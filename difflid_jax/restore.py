"""Restore hazy photographs: JPEG, PNG, WebP, TIFF and BMP of any size, with their metadata.

    python -m difflid_jax.restore photo.jpg holiday/
    python -m difflid_jax.restore photo.jpg --output=clear --weights=runs/its --strength=0.8 --compare

Writes restored/photo.jpg (or clear/photo.jpg) and so on with the same name, format, size, bit depth,
metadata, colour profile and orientation (docs/files.md has the details). From a folder, only the
photographs directly in it are taken. --jobs=N works on N at once, with N times the memory.
--compare also writes clear/photo.compare.png, which shows the image before and after (photo.jpg.compare.png
if a photo.png is restored, too). Inputs are never changed; existing outputs are replaced only with
--overwrite. A file that cannot be restored is reported and the others are restored; the exit status is then
1. It is 2 if nothing was started.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from difflid_jax.cli import UsageError, definer, run, use_compilation_cache
from difflid_jax.images.photos import MAX_PIXELS


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the program's flags."""
    define = definer(values)
    define("path", "output", "restored", "Folder for the restored photographs; created if missing.")
    define("path", "weights", "haze", "Restorer: a shipped name, a weights folder or a workdir.")
    define("path", "prior", "", "Frozen model, if not the one that the restorer's metadata name.")
    define(
        "string",
        "tile",
        "auto",
        "auto: large photographs in tiles; off: in one piece; or the tiles' side in pixels.",
    )
    define("float", "strength", 1.0, "From 0 (unchanged) to 1 (restored).")
    define(
        "enum",
        "ensemble",
        "none",
        ["none", "flip"],
        "flip: average with the restored mirror image, for twice the time.",
    )
    define("bool", "compare", False, "Also write a sheet with each photograph before and after.")
    define("integer", "jobs", 1, "Photographs at once.", lower_bound=1, upper_bound=64)
    define("bool", "overwrite", False, "Replace existing outputs.")
    define("integer", "max_pixels", MAX_PIXELS, "Refuse larger photographs without decoding.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
    # Imported here so that --help does not wait for JAX to load.
    from tqdm import tqdm

    from difflid_jax.restoration.batch import left_out, plan, restore_photographs
    from difflid_jax.restoration.loading import load_restorer
    from difflid_jax.restoration.plan import checked_tile
    from difflid_jax.restoration.restorer import checked_strength

    options = flags.FLAGS
    if len(argv) < 2 or not options.output:
        raise UsageError(
            "give photographs or folders of them, as in `difflid restore photo.jpg`; the results go into the "
            "folder of --output, restored/ by default"
        )
    tile, strength = checked_tile(options.tile), checked_strength(options.strength)
    output = Path(options.output)
    jobs = plan(argv[1:], output, compare=options.compare)
    for line in left_out(argv[1:]):
        print(f"restore: {line}", file=sys.stderr)
    use_compilation_cache()
    restorer = load_restorer(
        options.weights, prior=options.prior or None, tile=tile, ensemble=options.ensemble
    )
    start = time.perf_counter()
    try:
        failed = restore_photographs(
            jobs,
            restorer,
            strength=strength,
            overwrite=options.overwrite,
            max_pixels=options.max_pixels,
            at_once=options.jobs,
            report=lambda line: tqdm.write(f"restore: {line}", file=sys.stderr),
        )
    except KeyboardInterrupt:
        print("restore: interrupted; the files written so far are complete", file=sys.stderr)
        return 130
    done = len(jobs) - failed
    if done:
        seconds = time.perf_counter() - start
        print(f"{output}: {done} photograph{'s' * (done > 1)} restored in {seconds:.1f} s")
    if failed:
        print(f"restore: {failed} of {len(jobs)} could not be restored", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main, define_flags)
