"""The training runs behind an exhibit: one per row, column and seed.

`paper` budget: the configs of the paper's data sets, as published. `laptop` budget: the same rows on
configs/sots_rebuilt.py (RESIDE's indoor recipe on NYU Depth v2, 400 steps), Table 4 on
configs/lol_v1_laptop.py. A run's folder is `<column>/<row>-<seed>`: exhibits share the runs of equal rows.
`plus` is no exhibit of the paper: it compares DiffLI²D+ with the paper's block, laptop budget only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

HAZE_SETS = ("sots", "dense_haze", "nh_haze")
LOW_LIGHT_SETS = ("lol_v1", "lol_v2_real")
NYU = "nyu"  # the column of the laptop budget
TRAIN_IDS, TEST_IDS = (1, 1299), (1300, 1399)  # RESIDE ids of the laptop budget
LAPTOP_STEPS = {NYU: 400, "lol_v1": 4000}
PAPER_STEPS = {
    "sots": 420_000,
    "dense_haze": 2_400,
    "nh_haze": 2_400,
    "lol_v1": 15_600,
    "lol_v2_real": 21_600,
}

TIMES_1 = (0, 100, 300, 500, 999)  # with t2 = 500
TIMES_2 = (100, 300, 400, 500, 600, 800, 999)  # with t1 = 0


@dataclass(frozen=True)
class Run:
    """One training run.

    flags: of `python -m difflid_jax.train`, without the workdir, the data and the prior; {layer_e}, {layer_d}
    and {resnet50} stand for what the user chooses. steps: its length.
    """

    exhibit: str
    row: str
    column: str
    seed: int
    flags: tuple[str, ...]
    steps: int

    @property
    def name(self) -> str:
        """The row's name in flags and folders: without commas."""
        return self.row.replace(",", "_")

    @property
    def folder(self) -> str:
        """Its workdir, relative to the study's; the full network is called full in every exhibit."""
        name = "full" if self.row == reference(self.exhibit) else self.name
        return f"{self.column}/{name}-{self.seed}"


def rows(exhibit: str) -> tuple[str, ...]:
    """The rows that are trained for an exhibit."""
    return tuple(_EXHIBITS[exhibit][1])


def reference(exhibit: str) -> str:
    """The row that the others are compared with: the paper's own method, trained without changes."""
    return next(row for row, changes in _EXHIBITS[exhibit][1].items() if not changes)


def runs(exhibit: str, budget: str, seeds: int) -> list[Run]:
    """The runs of an exhibit, one seed after the other, so that an interrupted study has complete tables."""
    columns, changes = _EXHIBITS[exhibit]
    if budget == "laptop":
        columns = ("lol_v1" if exhibit == "table4" else NYU,)
    found = []
    for seed in range(seeds):
        for column in columns:
            for row, flags in changes.items():
                config, steps = _config(budget, column)
                options = (f"--config={config}", f"--config.seed={seed}", *flags)
                found.append(Run(exhibit, row, column, seed, options, steps))
    return found


# Table 3 names no layers. paper: see configs/table3.py; laptop: one level finer than the h-space, because the
# encoder's last block is its direct input.
LAYERS = {"paper": {"layer_e": "17", "layer_d": "1"}, "laptop": {"layer_e": "7", "layer_d": "2"}}


def data_flags(run: Run, budget: str, paths: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The flags that name a run's data, from `paths`: column → (train, test) or one path for both.

    Raises ValueError, naming it, if a --data is missing.
    """
    if run.column not in paths:
        raise ValueError(f"give --data={run.column}=TRAIN,TEST (or one path that holds both)")
    train, test = (*paths[run.column], paths[run.column][-1])[:2]
    flags = (f"--config.data.train={train}", f"--config.data.test={test}")
    if budget == "laptop" and run.column == NYU:
        flags += (f"--config.data.train_ids={TRAIN_IDS}", f"--config.data.test_ids={TEST_IDS}")
    return flags


def _config(budget: str, column: str) -> tuple[str, int]:
    if budget == "paper":
        return column, PAPER_STEPS[column]
    return "lol_v1_laptop" if column == "lol_v1" else "sots_rebuilt", LAPTOP_STEPS[column]


def _times() -> Iterator[tuple[int, int]]:
    yield from ((t1, 500) for t1 in TIMES_1)
    yield from ((0, t2) for t2 in TIMES_2 if t2 != 500)


# Figures of Sec. 4.1 → the study that draws them.
STUDIES = {"figure1": "tsne", "figure2": "decoders", "figure7": "tsne"}
_STUDY_TIMES = {
    "figure1": (0, 500, 999),
    "figure2": (*range(0, 1000, 100), 999),
    "figure7": (*range(0, 1000, 100), 999),
}
_DECODER_STEPS = {"laptop": 400, "paper": 20_000}


def study_steps(exhibit: str, budget: str) -> int:
    """The training steps of a study, all decoders together; 0 for a t-SNE, which trains nothing."""
    decoders = len(_STUDY_TIMES[exhibit]) if STUDIES[exhibit] == "decoders" else 0
    return decoders * _DECODER_STEPS[budget]


def study_flags(exhibit: str, budget: str, paths: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The arguments of `python -m difflid_jax.study`, without prior and output.

    laptop: 64 px, NYU Depth v2 made hazy, ids 1300–1349. paper: 256 px, SOTS-indoor, decoders trained on ITS.
    Raises ValueError, naming it, if a --data is missing.
    """
    column = NYU if budget == "laptop" else "sots"
    if column not in paths:
        raise ValueError(f"give --data={column}=TRAIN,TEST (or one path that holds both)")
    train, test = (*paths[column], paths[column][-1])[:2]
    times = ",".join(map(str, _STUDY_TIMES[exhibit]))
    flags = (STUDIES[exhibit], f"--data={test}", f"--times={times}")
    if budget == "laptop":
        flags += ("--source=rgbd", "--side=64", "--ids=1300-1349")
        training: tuple[str, ...] = (f"--train={train}", "--train_ids=1-1299")
    else:
        flags += ("--dataset=sots_indoor", "--side=256")
        training = (f"--train={train}", "--train_dataset=its")
    if STUDIES[exhibit] != "decoders":
        return flags
    return (*flags, *training, f"--steps={_DECODER_STEPS[budget]}")


_RANDOM = ("--config.features.random=True",)
_BASELINE = ("--config.network.variant=baseline",)

# DiffLI²D+ with as many trained parameters as the paper's block at widths 16 to 128 (406,483; ± 2 %).
_GATED = ("--config.network.kind=plus", "--config.network.preset=", "--config.network.branches=2")
_LEVELS_4 = (*_GATED, "--config.network.widths=(8,16,32,64)")
_PATCHES = (
    *_GATED,
    "--config.network.widths=(16,32,64)",
    "--config.network.patch=2",
    "--config.network.head=affine",
)

# Exhibit → (columns of the paper, row → flags that make it).
_EXHIBITS: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "table1": (HAZE_SETS, {"random": _RANDOM, "baseline": _BASELINE, "full": ()}),
    "table2": (
        HAZE_SETS,
        {row: (f"--config.network.variant={row}",) for row in ("baseline", "without_cim", "without_hae")}
        | {"full": ()},
    ),
    "table3": (
        HAZE_SETS,
        {
            "layer_e": ("--config.features.layer=encoder:{layer_e}",),
            "layer_d": ("--config.features.layer=decoder:{layer_d}",),
            "vgg16": ("--config.features.kind=vgg16", "--config.features.side=0", "--config.prior="),
            "resnet50": (
                "--config.features.kind=resnet50",
                "--config.features.side=0",
                "--config.prior={resnet50}",
            ),
            "h_space": (),
        },
    ),
    "table4": (LOW_LIGHT_SETS, {"random": _RANDOM, "full": ()}),
    "plus": (
        (),
        {
            "paper": (),
            "gated": _LEVELS_4,
            "gated_affine": (*_LEVELS_4, "--config.network.head=affine"),
            "patches": _PATCHES,
            "patches_fft": (*_PATCHES, "--config.frequency_weight=0.1"),
            "patches_view": (*_PATCHES, "--config.data.view=True"),
            "patches_random": (*_PATCHES, *_RANDOM),
        },
    ),
    "figure8": (
        ("sots",),
        {
            f"{a},{b}": (f"--config.features.times=({a},{b})",) if (a, b) != (0, 500) else ()
            for a, b in _times()
        },
    ),
}
EXHIBITS = tuple(_EXHIBITS)
