"""Table 1's experiment at laptop scale, on a rebuilt RESIDE: does the prior help?

    python -m difflid_jax.train --config=configs/sots_rebuilt.py:full --config.seed=0 \\
        --workdir=runs/rebuilt/full-0 \\
        --config.data.train=nyu_v2_labelled_train.tar --config.data.train_ids='(1, 1299)' \\
        --config.data.validation=V --config.data.validation_source=folders \\
        --config.data.test=SOTS/indoor --config.data.test_source=folders

V: `python -m difflid_jax.synthesize --recipe=sots_indoor --ids=1300-1399 --output=V
--rgb=nyu_v2_labelled_train.tar`. `python scripts/compare_runs.py` draws the learning curves of such runs and
prints their spread.

The argument after the colon is the arm; data, steps, crops, schedule and the number of trained parameters are
the same in all three:

- full: DiffLI²D on the shipped prior;
- random: DiffLI²D on the same frozen U-Net with random weights;
- baseline: no features, the self-attention of Table 2 in place of CIM and HAE.

The paper's recipe (L1, Adam, crops of resized and mirrored images, A in 0.7 … 1 and β in 0.6 … 1.8 drawn for
every crop) at a size for a laptop: widths 16 to 128; crops of 64 px that cover between half and all of a
scene's height; 400 steps of 16 crops, one cosine. About seven minutes per run on one CPU core."""

from difflid_jax.config import schema
from difflid_jax.weights.schema import check_choice

ARMS = ("full", "random", "baseline")


def get_config(arm: str = "full"):
    """The common recipe with the features of an arm; the images are given on the command line."""
    check_choice("sots_rebuilt.py", arm, ARMS)
    config = schema.default()
    config.prior = "photos64"
    config.data.source = "rgbd"
    config.data.validation_dataset = "sots_indoor"
    config.data.test_dataset = "sots_indoor"
    config.data.crop = 64
    config.data.scale = (64 / 460, 64 / 224)
    config.data.batch_size = 16
    config.features.side = 64
    config.features.random = arm == "random"
    config.network.preset = "slim"
    config.network.variant = "baseline" if arm == "baseline" else "full"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.ema = 0.99
    config.optimizer.clip = 1.0
    config.training.steps = 400
    config.training.evaluate_every = 100
    config.training.checkpoint_every = 100
    config.evaluation.lpips = False
    config.evaluation.limit = 20
    return config
