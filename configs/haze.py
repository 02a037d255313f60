"""The restorer that ships as "haze": a narrow DiffLI²D on the shipped prior, trained on two CPU cores.

Three runs, each from the weights of the one before, on crops of 64, 128 and 256 px that show about the same
part of a picture: what the haze of a whole scene is, is learned where a crop costs a sixteenth.

    for size in 64 128 256; do
    python -m difflid_jax.train --config=configs/haze.py:$size --workdir=runs/haze-$size \\
        --config.init=$before \\
        --config.data.train='nyu_v2_labelled_train.tar#1-1299,nyu_v2_labelled_train.tar#1-1299,BSDS500' \\
        --config.data.validation=V --config.data.validation_source=folders
    before=runs/haze-$size/weights
    done

V: `python -m difflid_jax.data.synthesize --recipe=sots_indoor --ids=1300-1399 --output=V
--rgb=nyu_v2_labelled_train.tar`, a part of it if time is short.

Data: RESIDE's indoor training set rebuilt as it is read: clean pictures with measured depth, a fresh A and
β for every crop; photographs without depth get a plausible one, so that outdoor pictures work, too. The
airlight is 1 in half of the crops, as in SOTS-indoor, slightly coloured in the others; a part of the crops is
compressed, brightened or noisy. Everything is chosen on NYU ids 1300–1399; SOTS and I-HAZE are only ever
scored at the end.

Not the paper's: widths 16 to 128 instead of 64 to 512, a prior of our own that sees every picture at 64×64,
the size it was trained at, one cosine a run instead of steps, averaged weights.
"""

from difflid_jax import config as schema

# Crop: (batch size, steps, learning rate).
RUNS = {"64": (16, 400, 2e-3), "128": (8, 700, 1e-3), "256": (4, 450, 5e-4)}


def get_config(crop: str = "64"):
    """The recipe of the run on crops of a size; the pictures are given on the command line."""
    if crop not in RUNS:
        raise ValueError(f"haze.py:{crop}: expected one of {', '.join(RUNS)}")
    config = schema.default()
    config.prior = "photos64"
    config.data.source = "photographs"
    config.data.validation_dataset = "sots_indoor"
    config.data.crop = int(crop)
    # Windows of 224 to 460 px (whole scenes of NYU), in any of the runs.
    config.data.scale = (int(crop) / 460, int(crop) / 224) if int(crop) < 256 else (256 / 460, 1.0)
    config.data.batch_size, config.training.steps, config.optimizer.learning_rate = RUNS[crop]
    config.data.haze.beta = (0.5, 1.8)
    config.data.haze.white = 0.5
    config.data.haze.tint = 0.03
    config.data.haze.gamma = (0.9, 1.1)
    config.data.haze.noise = 0.01
    config.data.haze.jpeg = (75, 98)
    config.features.side = 64
    config.network.preset = "slim"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.ema = 0.99
    config.optimizer.clip = 1.0
    config.training.evaluate_every = 200
    config.training.checkpoint_every = 100
    config.evaluation.lpips = False
    config.evaluation.limit = 20
    return config
