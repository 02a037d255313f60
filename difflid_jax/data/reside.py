"""RESIDE's indoor sets (Li et al., TIP 2018, Sec. III): the recipes, and writing a set from one of them."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from difflid_jax.atomic import write_text
from difflid_jax.data.haze import add_haze
from difflid_jax.data.rgbd import FRAMES, Frame, check_ids
from difflid_jax.data.scenes import Scenes
from difflid_jax.data.threads import cores, in_threads
from difflid_jax.images.files import check_image, write_png

_MANIFEST = "synthesized.json"


@dataclass(frozen=True)
class Recipe:
    """How a set is made: first and last id, hazy images per scene, ranges of A and β, clean folder.

    linear: add haze to linear light instead of to sRGB values, as RESIDE does (`data.haze.add_haze`).
    """

    name: str
    ids: tuple[int, int]
    per_scene: int = 10
    airlight: tuple[float, float] = (1.0, 1.0)
    beta: tuple[float, float] = (0.6, 1.5)
    clean_folder: str = "gt"
    linear: bool = False

    @property
    def scenes(self) -> range:
        return range(self.ids[0], self.ids[1] + 1)

    def haze(self, scene: int, seed: int) -> list[tuple[str, float, float]]:
        """(file stem, A, β) of every hazy image of a scene; A is rounded as in its name."""
        if self.name == "sots_indoor":
            return [(f"{scene}_{k}", 1.0, round(0.5 + 0.1 * k, 1)) for k in range(1, self.per_scene + 1)]
        rng = np.random.default_rng([seed, scene])
        drawn = rng.uniform(*np.transpose([self.airlight, self.beta]), (self.per_scene, 2))
        named = [(f"{airlight:.5g}", beta) for airlight, beta in drawn]
        return [(f"{scene}_{k}_{a}", float(a), round(float(b), 6)) for k, (a, b) in enumerate(named, 1)]


RECIPES: Mapping[str, Recipe] = {
    "its": Recipe("its", (1, 1399), airlight=(0.7, 1.0), beta=(0.6, 1.8), clean_folder="clear"),
    "sots_indoor": Recipe("sots_indoor", (1400, 1449)),
}


def synthesize(
    scenes: Scenes,
    recipe: Recipe,
    output: Path,
    *,
    seed: int = 0,
    frame: Frame | None = None,
    workers: int = 0,
    progress: bool = True,
) -> int:
    """Write a set, or what is missing of it, under `output`; return the number of images written.

    frame: None uses the scenes' default. workers: threads; 0 is one per core.

    Raises: ValueError if `output` was begun with other settings, ids do not exist, an image and its depth
    differ in size, or one cannot be read; OSError if the disk is full.
    """
    check_ids(recipe.ids, scenes.ids, "the scenes")
    frame = frame or FRAMES[scenes.default_frame]
    _fitting_scene(scenes, recipe.ids[0], frame)  # an error common to all scenes is found before writing
    made = {
        "recipe": asdict(recipe),
        "seed": seed,
        "frame": asdict(frame),
        "images": scenes.fingerprint(recipe.scenes),
    }
    _begin(output, recipe, seed, json.loads(json.dumps(made)))

    def make(scene: int) -> int:
        return _write_scene(scenes, scene, recipe, output, seed, frame)

    words = f"making {recipe.name}"
    return sum(in_threads(make, recipe.scenes, words, progress, unit="scene", threads=workers or cores()))


def _begin(output: Path, recipe: Recipe, seed: int, made: dict) -> None:
    """Make the folders, or check that they were begun with the same settings."""
    manifest = output / _MANIFEST
    if manifest.is_file():
        before = json.loads(manifest.read_text())
        before.get("recipe", {}).setdefault("linear", False)  # not in older sets
        if before != made:
            changed = [key for key in made if before.get(key) != made[key]]
            raise ValueError(
                f"{output}: was begun with different settings ({' and '.join(changed)}; see {_MANIFEST}); "
                "remove it, or give another output"
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: is not empty and was not made by this program; give another output")
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_text(manifest, json.dumps(made, indent=1) + "\n")
    for folder in ("hazy", recipe.clean_folder):
        (output / folder).mkdir(exist_ok=True)
    rows = [row for scene in recipe.scenes for row in recipe.haze(scene, seed)]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("name", "airlight", "beta"), *rows])
    write_text(output / "haze.csv", table.getvalue())


def _write_scene(scenes: Scenes, scene: int, recipe: Recipe, output: Path, seed: int, frame: Frame) -> int:
    clean_path = output / recipe.clean_folder / f"{scene}.png"
    hazy = [(output / "hazy" / f"{name}.png", a, b) for name, a, b in recipe.haze(scene, seed)]
    hazy = [(path, a, b) for path, a, b in hazy if not _is_complete(path)]
    if not hazy and _is_complete(clean_path):
        return 0
    clean, depth = _fitting_scene(scenes, scene, frame)
    for path, airlight, beta in hazy:
        # Haze first, then the frame: RESIDE's maximum of depth is that of the whole image.
        whole = add_haze(clean / np.float32(255), depth, beta, airlight, linear=recipe.linear)
        write_png(path, np.rint(frame.apply(whole) * 255).astype(np.uint8), compress_level=3)
    write_png(clean_path, np.ascontiguousarray(frame.apply(clean)), compress_level=3)
    return len(hazy) + 1


def _fitting_scene(scenes: Scenes, scene: int, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    clean, depth = scenes.load(scene)
    if clean.shape[:2] != depth.shape:
        raise ValueError(
            f"scene {scene}: the image is {clean.shape[:2]} (height, width), but its depth is {depth.shape}"
        )
    frame.size(*depth.shape, f"scene {scene}")
    return clean, depth


def _is_complete(path: Path) -> bool:
    try:
        check_image(path, thorough=False)
    except (ValueError, FileNotFoundError):
        return False
    return True
