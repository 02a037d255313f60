"""The restorer that ships as "haze": a narrow DiffLI²D on the shipped prior, trained on two CPU cores.

Command (paths: NYU Depth v2's labelled training pictures as rgb/ and depth/, any folder of photographs):

    python -m difflid_jax.train --config=configs/haze.py --workdir=runs/haze \\
        --config.data.train='nyu_v2_labelled_train.tar#1-1299,nyu_v2_labelled_train.tar#1-1299,BSDS500' \\
        --config.data.validation='nyu_v2_labelled_train.tar#1300-1399' --config.data.validation_source=rgbd

Data: RESIDE's indoor training set rebuilt as it is read: clean pictures with measured depth, a fresh A and
β for every crop; photographs without depth get a plausible one, so that outdoor pictures work, too. The
airlight is slightly coloured, a part of the crops is compressed, brightened or noisy. Crops of 128 px from
pictures at half to full size. Everything is chosen on NYU ids 1300–1399; SOTS and I-HAZE are only ever
scored at the end.

Not the paper's: widths 16 to 128 instead of 64 to 512, a prior of our own that sees the picture at half its
size (so that h is H/32 × W/32, as in the paper), one cosine instead of steps, averaged weights.
"""

from difflid_jax import config as schema


def get_config():
    """The shipped restorer's recipe; the pictures are given on the command line."""
    config = schema.default()
    config.prior = "photos64"
    config.data.source = "photographs"
    config.data.scale = (0.5, 1.0)
    config.data.batch_size = 8
    config.data.haze.beta = (0.5, 1.8)
    config.data.haze.tint = 0.03
    config.data.haze.gamma = (0.9, 1.1)
    config.data.haze.noise = 0.01
    config.data.haze.jpeg = (75, 98)
    config.features.side = 64
    config.network.preset = "slim"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.ema = 0.999
    config.optimizer.clip = 1.0
    config.training.steps = 3_000
    config.training.evaluate_every = 1_000
    config.training.checkpoint_every = 500
    config.evaluation.lpips = False
    config.evaluation.limit = 10
    return config
