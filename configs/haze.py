"""The restorer that ships as "haze": DiffLI²D+ on the shipped prior, from one run on two CPU cores.

    python -m difflid_jax.train --config=configs/haze.py --workdir=runs/haze

Data, in the current folder or at the paths of --config.data.train: nyu_v2_labelled_train.tar, of which ids
1–1299 with their measured depth are used, listed three times so that it counts three times; BSDS500 and
imagenet1000, one photograph of each ImageNet class, which get a plausible depth. Leave out photographs
smaller than 96 px.

RESIDE's indoor training set is rebuilt as it is read, with wider haze than RESIDE's:

- A = 1, as in all of SOTS-indoor, in two of five crops, else 0.45 … 1 and slightly coloured; β in 0.3 … 1.8;
- 8 % of the crops have no haze, so that clear images are left alone;
- with A < 1, scene and airlight are dimmed to 0.35 … 1, since rooms may have less light than any image of
  NYU: in all of these crops at first, which taught the network that grey haze means a dim room, and from
  step 27,000 on in 30 % of them (data.haze.dim);
- from step 36,000 on, 3 % of the crops are of one colour, without haze, and from step 48,000 on 5 %
  (data.haze.flat);
- from step 48,000 on, 40 % of the crops with A < 1 have their haze added to linear light, as in the air,
  which lifts shadows far more than RESIDE's haze in sRGB values does (data.haze.linear);
- skies of photographs are far behind the scene (data.sky); some noise, JPEG and gamma.

Crops of 96 px at every scale from full size to the whole image, each with the features of its whole image
(data.view): training then matches the use on photographs, where details are restored at full size. From
step 18,000 on a random region of an image, its sides scaled by 0.35 … 1, stands for the whole
(data.region): some images then show little but a wall or a sky.

Differences from the paper: the network (network/plus.py; patch 2, affine head, two gated branches a
block, 1.42 M parameters); a prior of our own that sees every image at 64×64, the size it was trained at;
t₂ = 300, where its features separate haze best; six cosines instead of halving; averaged weights; from
step 36,000 on the L1 distance of Fourier transforms in the loss.

54,000 steps of 8 crops, as six cosines of 9,000: the first took 71 minutes on two cores, the others 560 on
one. Chosen on pairs of NYU ids 1300–1399, made so:

    S="python -m difflid_jax.synthesize --rgb=nyu_v2_labelled_train.tar --ids=1300-1399"
    $S --recipe=sots_indoor --output=A
    $S --recipe=its --per_scene=1 --output=B
    $S --recipe=its --per_scene=1 --airlight=0.5,0.85 --beta=1,2.2 --output=C
    $S --recipe=its --per_scene=1 --linear --airlight=0.5,0.95 --beta=0.3,1.2 --output=D
    V="python scripts/validation_set.py"
    $V --set=sots_indoor=A:29 --output=VA
    $V --set=its=B:3 --output=VB
    $V --set=its=C:3 --output=VC
    $V --set=its=C:3 --light=0.35,0.8 --output=VD
    $V --set=its=D:3 --output=VL
    $V --set=sots_indoor=A:47 --shrink=1 --output=VF

and at full size every seventh pair of B, C and D. SOTS-indoor and I-HAZE are scored at the end only; the card
counts how often."""

from difflid_jax.config import schema


def get_config():
    """The whole recipe."""
    config = schema.default()
    config.prior = "photos64"
    config.data.source = "photographs"
    config.data.train = ",".join(["nyu_v2_labelled_train.tar"] * 3 + ["BSDS500", "imagenet1000"])
    config.data.train_ids = (1, 1299)  # of NYU; the others are the validation set
    config.data.crop = 96
    config.data.view = True
    config.data.sky = 3.0
    config.data.scale = (96 / 460, 1.0)
    config.data.batch_size = 8
    config.data.haze.airlight = (0.45, 1.0)
    config.data.haze.beta = (0.3, 1.8)
    config.data.haze.clean = 0.08
    config.data.haze.white = 0.4
    config.data.haze.tint = 0.04
    config.data.haze.gamma = (0.85, 1.2)
    config.data.haze.light = (0.35, 1.0)
    config.data.haze.noise = 0.01
    config.data.haze.jpeg = (75, 98)
    config.features.side = 64
    config.features.times = (0, 300)
    config.network.kind = "plus"
    config.network.preset = ""
    config.network.widths = (32, 64, 128)
    config.network.branches = 2
    config.network.patch = 2
    config.network.head = "affine"
    config.changes = (
        (18_000, "data.region", (0.35, 1.0)),
        (27_000, "data.haze.dim", 0.3),
        (36_000, "data.haze.flat", 0.03),
        (36_000, "frequency_weight", 0.05),
        (48_000, "data.haze.linear", 0.4),
        (48_000, "data.haze.flat", 0.05),
    )
    config.optimizer.learning_rate = 1.2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.cycles = 6
    config.optimizer.warmup_steps = 100
    config.optimizer.ema = 0.998
    config.optimizer.clip = 0.5
    config.training.steps = 54_000
    config.training.evaluate_every = 0
    config.training.checkpoint_every = 250
    config.evaluation.lpips = False
    return config
