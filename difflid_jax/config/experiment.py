"""From a ConfigDict to one frozen experiment: the specs that the rooms take, resolved once.

`resolve` and `resolve_prior` are the only code that reads the fields of a ConfigDict; programs receive what
they return. Errors are ValueErrors that name the field, as in "config.data.crop: expected …, found …".
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ml_collections import ConfigDict

from difflid_jax.config import changes, checks, identity, schema
from difflid_jax.data.augment import RESIDE, CropSpec, HazeSpec, check_seed
from difflid_jax.data.pairing.layouts import LAYOUTS
from difflid_jax.data.rgbd import FRAMES
from difflid_jax.diffusion.unet import UNetSpec
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.network.difflid import PRESETS, NetworkSpec
from difflid_jax.network.plus import PlusSpec
from difflid_jax.training.spec import RunSpec
from difflid_jax.training.validation import EvaluationSpec
from difflid_jax.weights.schema import check_choice, check_least

SOURCES = ("folders", "tfds", "photographs", "rgbd")
FEATURES = ("h_space", "vgg16", "resnet50", "release")
_DTYPES = ("float32", "bfloat16")

_VARIANTS = {  # Table 2
    "full": ("cim", "hae"),
    "without_cim": ("self_attention", "hae"),
    "without_hae": ("cim", "self_attention"),
    "baseline": ("self_attention", "self_attention"),
}


@dataclass(frozen=True)
class Source:
    """Where the images of a role ('train', 'validation', 'test') come from, see `data.sources.open_data`.

    holdout: number of elements of the training set, drawn by `seed`, that are held out for validation.
    """

    role: str
    source: str
    root: str
    ids: tuple[int, ...]
    frame: str
    dataset: str = "folders"
    sky: float = 0.0
    holdout: int = 0
    seed: int = 0

    def __post_init__(self):
        ids = self.ids
        if ids and (len(ids) != 2 or not all(type(i) is int for i in ids) or not 0 <= ids[0] <= ids[1]):
            raise ValueError(
                f"data.{self.role}_ids: expected () or (first, last) with 0 ≤ first ≤ last, found {ids}"
            )
        check_choice("data.frame", self.frame, FRAMES)
        check_least("data.holdout", self.holdout, 0)
        if self.sky != 0 and not 1 <= self.sky <= 1000:
            raise ValueError(f"data.sky: expected 0, or 1 to 1000, found {self.sky}")

    @property
    def is_given(self) -> bool:
        """Whether there is something to open; the photographs of installed packages need no path."""
        carried = self.source == "photographs" and (self.role != "validation" or self.holdout > 0)
        return bool(self.root) or carried


@dataclass(frozen=True)
class FeaturesSpec:
    """The frozen features: their kind, what is read from a U-Net, and the precision.

    random: the control, a U-Net with random weights. noise_seed: seed of the noise at evaluation. cache:
    noises per training image whose features are kept; 0 keeps none.
    """

    kind: str
    h_space: HSpaceSpec
    dtype: str
    random: bool
    noise_seed: int
    cache: int = 0

    def __post_init__(self):
        check_seed(self.noise_seed, "features.noise_seed")
        check_least("features.cache", self.cache, 0)
        check_choice("features.kind", self.kind, FEATURES)
        check_choice("features.dtype", self.dtype, ("auto", *_DTYPES))


@dataclass(frozen=True, kw_only=True)
class Experiment(RunSpec):
    """The training of a restorer."""

    prior: str
    train: Source
    validation: Source
    test: Source
    features: FeaturesSpec
    network: NetworkSpec
    network_dtype: str
    preset: str  # of the network's widths, '' for none
    evaluation: EvaluationSpec
    frequency_weight: float  # see `training.loss.restoration_loss`

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.frequency_weight <= 1e6:
            raise ValueError(f"frequency_weight: expected 0 to 1e+06, found {self.frequency_weight}")

    def network_on(self, feature_channels: int) -> NetworkSpec:
        """The network for features with this many channels."""
        return replace(self.network, feature_channels=feature_channels)


@dataclass(frozen=True, kw_only=True)
class PriorExperiment(RunSpec):
    """The training of a diffusion prior.

    variance_weight: weight of the bound that trains the variance. batches: number of held-out batches whose
    loss is measured. sample_steps: sampling steps of the images that each evaluation draws.
    """

    train: Source
    validation: Source
    unet: UNetSpec
    dtype: str
    variance_weight: float
    batches: int
    sample_steps: int

    def __post_init__(self):
        super().__post_init__()
        check_choice("dtype", self.dtype, _DTYPES)
        heads = self.unet.num_head_channels
        if heads < 1 or any(self.unet.model_channels * m % heads for m in self.unet.channel_mult):
            raise ValueError(
                "unet.num_head_channels: expected a divisor of the channels of every level, found "
                f"{self.unet.num_head_channels}"
            )
        for field, value, lowest, highest in (
            ("variance_weight", self.variance_weight, 0, 1e6),
            ("evaluation.batches", self.batches, 1, 10**6),
            ("evaluation.sample_steps", self.sample_steps, 1, self.unet.diffusion_steps),
        ):
            if not lowest <= value <= highest:
                raise ValueError(f"{field}: expected {lowest} to {highest:g}, found {value}")


def resolve(config: ConfigDict) -> Experiment:
    """The experiment of a config with the fields of `schema.default`."""
    experiment = _resolve(config)
    return replace(experiment, later=tuple((step, _resolve(later)) for step, later in changes.phases(config)))


def _resolve(config: ConfigDict) -> Experiment:
    checks.check_fields(config, schema.default())
    data, features, network = config.data, config.features, config.network
    with _naming_the_config():
        check_choice("data.source", data.source, SOURCES)
        check_choice("data.dataset", data.dataset, LAYOUTS)
        for role in ("validation", "test"):
            check_choice(f"data.{role}_source", data[f"{role}_source"], ("", *SOURCES))
            check_choice(f"data.{role}_dataset", data[f"{role}_dataset"], ("", *LAYOUTS))
        check_choice("network.preset", network.preset, ("", *PRESETS))
        check_choice("network.variant", network.variant, ("", *_VARIANTS))
        check_choice("network.dtype", network.dtype, _DTYPES)
        content, haze = _VARIANTS.get(network.variant, (network.content, network.haze))
        experiment = Experiment(
            **_run_fields(config, schema.default()),
            haze=HazeSpec(**data.haze.to_dict()),
            prior=config.prior,
            train=(train := _training_source(config)),
            **{
                role: Source(
                    role,
                    data[f"{role}_source"] or data.source,
                    data[role],
                    data[f"{role}_ids"],
                    data.frame,
                    data[f"{role}_dataset"] or data.dataset,
                )
                for role in ("validation", "test")
            }
            | ({"validation": replace(train, role="validation")} if data.holdout else {}),
            features=FeaturesSpec(
                kind=features.kind,
                h_space=HSpaceSpec(
                    times=features.times,
                    layer=features.layer,
                    noise_at_zero=features.noise_at_zero,
                    side=features.side,
                ),
                dtype=features.dtype,
                random=features.random,
                noise_seed=features.noise_seed,
                cache=features.cache,
            ),
            network=_network(
                network,
                widths=PRESETS.get(network.preset, network.widths),
                heads=network.heads,
                content=content,
                haze=haze,
            ),
            network_dtype=network.dtype,
            preset=network.preset,
            frequency_weight=config.frequency_weight,
            evaluation=EvaluationSpec(**config.evaluation.to_dict()),
        )
    checks.check_effects(config)
    return experiment


def _training_source(config: ConfigDict) -> Source:
    data = config.data
    fields = data.source, data.train, data.train_ids, data.frame, data.dataset, data.sky, data.holdout
    return Source("train", *fields, config.seed)


def _network(section: ConfigDict, **fields) -> NetworkSpec:
    check_choice("network.kind", section.kind, ("paper", "plus"))
    if section.kind == "paper":
        return NetworkSpec(**fields)
    return PlusSpec(**fields, branches=section.branches, patch=section.patch, head=section.head)


def resolve_prior(config: ConfigDict) -> PriorExperiment:
    """The experiment of a config with the fields of `schema.default_prior`."""
    checks.check_fields(config, schema.default_prior())
    data = config.data
    with _naming_the_config():
        experiment = PriorExperiment(
            **_run_fields(config, schema.default_prior()),
            haze=RESIDE,
            train=Source("train", "images", data.train, data.train_ids, data.frame),
            validation=Source("validation", "images", data.validation, data.validation_ids, data.frame),
            unet=UNetSpec(**config.unet.to_dict()),
            dtype=config.dtype,
            variance_weight=config.variance_weight,
            batches=config.evaluation.batches,
            sample_steps=config.evaluation.sample_steps,
        )
    checks.check_prior_effects(config)
    return experiment


def read_experiment(text: str) -> Experiment:
    """The experiment of a run from the text of its config.json. Raises ValueError for any other text."""
    return resolve(identity.from_json(text, schema.default().to_dict()))


def _run_fields(config: ConfigDict, reference: ConfigDict) -> dict:
    """The fields of a `RunSpec`, except the haze."""
    fields, training = config.to_dict(), config.training.to_dict()
    optimizer = config.optimizer.to_dict()
    defaults = reference.to_dict()
    return {
        "fields": fields,
        "fingerprint": identity.fingerprint(fields),
        "ending": identity.ending(fields),
        "shared_fields": identity.shared(fields),
        "differences": lambda text: identity.differences(fields, identity.read_json(text), defaults),
        "seed": config.seed,
        "init": config.init,
        "crop": CropSpec(
            size=config.data.crop,
            flip=config.data.flip,
            scale=config.data.scale,
            view=config.features.side if config.data.get("view") else 0,
            region=config.data.get("region", (1.0, 1.0)),
        ),
        "batch_size": config.data.batch_size,
        "workers": config.data.workers,
        "cache": config.data.cache,
        "halve_every_epochs": optimizer.pop("halve_every_epochs"),
        "optimizer_fields": optimizer,
        **{name: training.pop(name) for name in ("epochs", "steps", "keep", "fsdp", "tensorboard")},
        "loop_fields": training,
    }


@contextlib.contextmanager
def _naming_the_config() -> Iterator[None]:
    """Prefix the field that an error of a spec names with `config.`, as on the command line."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.{error}") from error
