"""RESIDE's indoor sets rebuilt from NYU Depth v2, in their own layout and naming.

    python -m difflid_jax.synthesize --recipe its --rgb nyu.tar --output ITS
    python -m difflid_jax.synthesize --recipe its --rgb nyu_depth_v2_labeled.mat --output ITS
    python -m difflid_jax.synthesize --recipe sots_indoor --ids 1300-1399 --rgb RGB --depth D --output V

Haze is I = J·t + A(1−t), t = exp(−β·d / max d), with d the depth of the whole picture (RESIDE: Li et al.,
TIP 2018, Sec. III). its: ids 1–1399, ten pictures each, A drawn from [0.7, 1] and β from [0.6, 1.8], files
hazy/ID_K_A.png and clear/ID.png. sots_indoor: ids 1400–1449, A = 1, β = 0.5 + 0.1·K, files hazy/ID_K.png and
gt/ID.png (already cut to the hazy size). A and β of every file are also in haze.csv.

What is drawn depends on the seed and the id alone: a part of the set is the same part. An interrupted run
goes on where it stopped; a folder that was begun with other settings is refused.

Pictures and depths come from folders or uncompressed tars (0.jpg is id 1: see --first_id), or from NYU's own
nyu_depth_v2_labeled.mat (install the extra `nyu` for that). --depth=plausible is for photographs without
depth: each gets one that could be its own (`haze.plausible_depth`).
"""

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from difflid_jax.atomic import write_text
from difflid_jax.cli import number_range, run
from difflid_jax.data.files import File, find_files, members
from difflid_jax.data.haze import add_haze, plausible_depth
from difflid_jax.data.rgbd import Frame, parse_ids, read_depth
from difflid_jax.images.files import check_image, write_png

FRAMES: Mapping[str, Frame] = {
    "nyu_mirrored": Frame(mirrored=True),
    "nyu": Frame(mirrored=False),
    "whole": Frame(mirrored=False, crop=None),
}
_MANIFEST = "synthesized.json"


@dataclass(frozen=True)
class Recipe:
    """How a set is made: which ids, how many pictures of each, what haze, under which names."""

    name: str
    ids: str
    per_scene: int = 10
    airlight: tuple[float, float] = (1.0, 1.0)
    beta: tuple[float, float] = (0.6, 1.5)
    clean_folder: str = "gt"

    def haze(self, scene: int, seed: int) -> list[tuple[str, float, float]]:
        """(file stem, A, β) of every hazy picture of a scene; A is rounded as it is named."""
        if self.name == "sots_indoor":
            return [(f"{scene}_{k}", 1.0, round(0.5 + 0.1 * k, 1)) for k in range(1, self.per_scene + 1)]
        rng = np.random.default_rng([seed, scene])
        drawn = rng.uniform(*np.transpose([self.airlight, self.beta]), (self.per_scene, 2))
        named = [(f"{airlight:.5g}", beta) for airlight, beta in drawn]
        return [(f"{scene}_{k}_{a}", float(a), round(float(b), 6)) for k, (a, b) in enumerate(named, 1)]


RECIPES: Mapping[str, Recipe] = {
    "its": Recipe("its", "1-1399", airlight=(0.7, 1.0), beta=(0.6, 1.8), clean_folder="clear"),
    "sots_indoor": Recipe("sots_indoor", "1400-1449"),
}


class FileScenes:
    """Pictures and depths with equal numbers as names, in folders or tars; ids count from `first_id`."""

    default_frame = "nyu_mirrored"

    def __init__(self, rgb: str | os.PathLike, depth: str | os.PathLike, first_id: int = 1):
        self._rgb = _numbered(rgb, "rgb", first_id)
        self._depth = _numbered(depth, "depth", first_id)
        self.ids = sorted(self._rgb.keys() & self._depth.keys())
        alone = sorted(self._rgb.keys() ^ self._depth.keys())
        if alone:
            file = self._rgb.get(alone[0]) or self._depth[alone[0]]
            raise ValueError(
                f"{len(alone)} pictures or depths without a partner of the same number, first {file.name}"
            )

    def fingerprint(self, ids: Sequence[int]) -> str:
        """What tells these pictures from others without reading them: their numbers and lengths."""
        return _fingerprint(ids, self._rgb, self._depth)

    def load(self, scene: int) -> tuple[np.ndarray, np.ndarray]:
        """(clean uint8 (H,W,3), depth float32 (H,W), farthest = 1), whole as stored. Raises: ValueError."""
        depth = read_depth(self._depth[scene], FRAMES["whole"])
        return self._rgb[scene].image(), depth.astype(np.float32) / 65535


class PhotographScenes:
    """Photographs with numbers as names, in a folder or a tar, and a plausible depth for each."""

    default_frame = "whole"

    def __init__(self, rgb: str | os.PathLike, first_id: int = 1):
        self._rgb = _numbered(rgb, "rgb", first_id)
        self.ids = sorted(self._rgb)

    def fingerprint(self, ids: Sequence[int]) -> str:
        """As `FileScenes.fingerprint`."""
        return _fingerprint(ids, self._rgb)

    def load(self, scene: int) -> tuple[np.ndarray, np.ndarray]:
        """As `FileScenes.load`."""
        clean = self._rgb[scene].image()
        return clean, plausible_depth(clean, scene)


class MatScenes:
    """NYU's nyu_depth_v2_labeled.mat: images (N,3,W,H) uint8 and depths (N,W,H), as HDF5 stores them."""

    default_frame = "nyu"

    def __init__(self, path: str | os.PathLike, first_id: int = 1):
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise ValueError(f"{path}: a .mat is read by h5py: pip install 'difflid_jax[nyu]'") from error
        Path(path).stat()
        try:
            self._file = h5py.File(path, "r")
            images, depths = self._file["images"], self._file["depths"]
        except (OSError, KeyError) as error:
            raise ValueError(
                f"{path}: expected HDF5 (MATLAB 7.3) with “images” and “depths”, as nyu_depth_v2_labeled.mat "
                f"is ({error})"
            ) from error
        if images.ndim != 4 or images.shape[1] != 3 or depths.shape != images.shape[:1] + images.shape[2:]:
            raise ValueError(
                f"{path}: expected images (N,3,W,H) and depths (N,W,H), found {images.shape}, {depths.shape}"
            )
        self._images, self._depths, self._first_id = images, depths, first_id
        self.ids = list(range(first_id, first_id + len(images)))

    def fingerprint(self, ids: Sequence[int]) -> str:
        """As `FileScenes.fingerprint`."""
        return f"mat of {Path(self._file.filename).stat().st_size} bytes"

    def load(self, scene: int) -> tuple[np.ndarray, np.ndarray]:
        """As `FileScenes.load`."""
        index = scene - self._first_id
        clean = np.ascontiguousarray(self._images[index].transpose(2, 1, 0))
        return clean, np.asarray(self._depths[index], np.float32).T


Scenes = FileScenes | PhotographScenes | MatScenes


def open_scenes(rgb: str | os.PathLike, depth: str | os.PathLike | None = None, first_id: int = 1) -> Scenes:
    """Scenes from a .mat, or from folders or tars of pictures and of depths.

    depth: None for the same place, "plausible" for photographs that have none.

    Raises: ValueError or OSError naming what is missing.
    """
    if Path(rgb).suffix.lower() == ".mat":
        if depth:
            raise ValueError(f"{rgb}: has its own depths; leave --depth={depth} out")
        return MatScenes(rgb, first_id)
    if depth == "plausible":
        return PhotographScenes(rgb, first_id)
    return FileScenes(rgb, depth or rgb, first_id)


def synthesize(
    scenes: Scenes,
    recipe: Recipe,
    output: str | os.PathLike,
    *,
    seed: int = 0,
    frame: Frame | None = None,
    workers: int = 0,
    progress: bool = True,
) -> int:
    """Write a set under `output` and return how many pictures it took to finish it (0: it was whole).

    Raises: ValueError when `output` was begun with other settings, when ids are not there, when a picture
    and its depth differ in size, or one cannot be read; OSError when the disk is full.
    """
    wanted = sorted(parse_ids(recipe.ids))
    if missing := sorted(set(wanted) - set(scenes.ids)):
        there = f"{scenes.ids[0]}-{scenes.ids[-1]}" if scenes.ids else "none"
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} ids {recipe.ids} are not there, first {missing[0]} "
            f"(there are {there}); choose with --ids"
        )
    frame = frame or FRAMES[scenes.default_frame]
    _fitting_scene(scenes, wanted[0], frame)  # what is wrong with all of them is said before writing
    output = Path(output)
    made = {
        "recipe": asdict(recipe),
        "seed": seed,
        "frame": asdict(frame),
        "pictures": scenes.fingerprint(wanted),
    }
    _begin(output, recipe, seed, json.loads(json.dumps(made)))

    def make(scene: int) -> int:
        return _write_scene(scenes, scene, recipe, output, seed, frame)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        counts = pool.map(make, wanted)
        bar = tqdm(
            counts, f"making {recipe.name}", len(wanted), unit="scene", file=sys.stderr, disable=not progress
        )
        try:
            return sum(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin(output: Path, recipe: Recipe, seed: int, made: dict) -> None:
    """Make the folders, or make sure that they were begun with the same settings."""
    manifest = output / _MANIFEST
    if manifest.is_file():
        before = json.loads(manifest.read_text())
        if before != made:
            changed = [key for key in made if before.get(key) != made[key]]
            raise ValueError(
                f"{output}: was begun with other {' and '.join(changed)} (see {_MANIFEST}); remove it, or "
                "name another output"
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: is not empty and was not made by this program; name another output")
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_text(manifest, json.dumps(made, indent=1) + "\n")
    for folder in ("hazy", recipe.clean_folder):
        (output / folder).mkdir(exist_ok=True)
    rows = [row for scene in sorted(parse_ids(recipe.ids)) for row in recipe.haze(scene, seed)]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("name", "airlight", "beta"), *rows])
    (output / "haze.csv").write_text(table.getvalue())


def _write_scene(scenes, scene: int, recipe: Recipe, output: Path, seed: int, frame: Frame) -> int:
    clean_path = output / recipe.clean_folder / f"{scene}.png"
    hazy = [(output / "hazy" / f"{name}.png", a, b) for name, a, b in recipe.haze(scene, seed)]
    hazy = [(path, a, b) for path, a, b in hazy if not _is_whole(path)]
    if not hazy and _is_whole(clean_path):
        return 0
    clean, depth = _fitting_scene(scenes, scene, frame)
    for path, airlight, beta in hazy:
        # The haze of the whole picture, then its frame: RESIDE's maximum of depth is that of the whole.
        whole = add_haze(clean / np.float32(255), depth, beta, airlight)
        write_png(path, np.rint(frame.apply(whole) * 255).astype(np.uint8), compress_level=3)
    write_png(clean_path, np.ascontiguousarray(frame.apply(clean)), compress_level=3)
    return len(hazy) + 1


def _fitting_scene(scenes, scene: int, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    clean, depth = scenes.load(scene)
    if clean.shape[:2] != depth.shape:
        raise ValueError(
            f"scene {scene}: the picture is {clean.shape[:2]} (height, width), its depth {depth.shape}"
        )
    frame.size(*depth.shape, f"scene {scene}")
    return clean, depth


def _is_whole(path: Path) -> bool:
    try:
        check_image(path, thorough=False)
    except (ValueError, FileNotFoundError):
        return False
    return True


def _fingerprint(ids: Sequence[int], *numbered: Mapping[int, File]) -> str:
    lengths = [(i, *(_length(files[i]) for files in numbered)) for i in ids]
    return hashlib.sha256(repr(lengths).encode()).hexdigest()[:16]


def _length(file: File) -> int:
    return file.path.stat().st_size if file.member is None else members(file.path)[file.member][1]


def _numbered(root: str | os.PathLike, folder: str, first_id: int) -> dict[int, File]:
    files = find_files(root, folder) or find_files(root)
    if not files:
        raise ValueError(f"{root}: no pictures here, nor in {folder}/ below (expected PNG or JPEG)")
    numbered: dict[int, File] = {}
    for file in files:
        if not file.stem.isdecimal():
            raise ValueError(
                f"{file.name}: RESIDE numbers its scenes; expected a number as name, as in 0.jpg"
            )
        if (number := int(file.stem) + first_id) in numbered:
            raise ValueError(f"{file.name} and {numbered[number].name} have the same number; keep one")
        numbered[number] = file
    return numbered


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags of this program (not at import: other programs have flags of the same names)."""

    def flag(define, name: str, *args, **options) -> None:
        define(name, *args, **options, flag_values=values)

    flag(flags.DEFINE_enum, "recipe", "its", list(RECIPES), "Which set is made.")
    flag(flags.DEFINE_string, "rgb", None, "Folder or tar of pictures, or nyu_depth_v2_labeled.mat.")
    flag(flags.DEFINE_string, "depth", "", "Folder or tar of depths, or plausible (empty: where --rgb is).")
    flag(flags.DEFINE_string, "output", None, "Folder for the set.")
    flag(flags.DEFINE_string, "ids", "", "Which ids, as in 1-1299 or 3+7+10-12 (empty: all of the recipe).")
    flag(flags.DEFINE_integer, "first_id", 1, "Id of the picture with number 0.", lower_bound=0)
    flag(flags.DEFINE_integer, "per_scene", 10, "Hazy pictures of every scene.", 1, 10)
    flag(flags.DEFINE_list, "airlight", ["0.7", "1.0"], "Range of A (its).")
    flag(flags.DEFINE_list, "beta", ["0.6", "1.8"], "Range of β (its).")
    flag(flags.DEFINE_integer, "seed", 0, "What A and β are drawn with.", lower_bound=0)
    flag(
        flags.DEFINE_enum,
        "frame",
        "",
        ["", *FRAMES],
        "How stored pictures become RESIDE's: nyu cuts NYU's border of 10 pixels, nyu_mirrored also mirrors "
        "them, whole does neither (empty: nyu for a .mat, else nyu_mirrored).",
    )
    flag(flags.DEFINE_integer, "workers", 0, "Threads (0: one per core).", lower_bound=0)


def main(argv: Sequence[str]) -> int:
    options = flags.FLAGS
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; everything is given by flags")
    if not options.rgb or not options.output:
        raise ValueError("--rgb and --output are needed (--help lists the flags)")
    recipe = RECIPES[options.recipe]
    recipe = replace(recipe, ids=options.ids or recipe.ids, per_scene=options.per_scene)
    if recipe.name == "its":
        airlight = number_range(options.airlight, "airlight", 0, 1)
        recipe = replace(recipe, airlight=airlight, beta=number_range(options.beta, "beta", 0, 100))
    scenes = open_scenes(options.rgb, options.depth or None, options.first_id)
    frame = FRAMES[options.frame] if options.frame else None
    count = synthesize(
        scenes, recipe, options.output, seed=options.seed, frame=frame, workers=options.workers
    )
    print(f"{options.output}: {count} pictures written" if count else f"{options.output}: was whole already")
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
