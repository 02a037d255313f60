"""NH-HAZE: 55 pairs of non-homogeneous real haze (Table 1, right; Sec. 5.1).

Fifty pairs to train on, five to score. Both paths name the data set's folder: training uses pairs 01 to 50,
the test pairs 51 to 55:

    python -m difflid_jax.train --config=configs/nh_haze.py --workdir=runs/nh_haze \\
        --config.data.train=/data/NH-HAZE \\
        --config.data.test=/data/NH-HAZE \\
        --config.prior=/weights/imagenet256

1. Data: NH-HAZE (55 pairs, 1600x1200) from its NTIRE page;
   `python -m difflid_jax.check_data /data/NH-HAZE --dataset=nh_haze` checks the pairs.
2. Prior: OpenAI's 256x256_diffusion_uncond.pt, converted once by `python -m convert_weights.openai_ddpm`
   (--help gives its flags and the download).

Schedule: 2 steps per epoch (50 pairs, batch 40), 2,400 steps; 2e-4 halved every 300 of 1,200 epochs.
To time a step on your machine: `python scripts/benchmark.py train --config=configs/nh_haze.py`.

Expected score, from the paper: 20.29 dB PSNR, 0.738 SSIM, 0.217 LPIPS; not reproduced here yet.
"""

from difflid_jax.config import schema


def get_config():
    """The paper's settings; data and prior are given on the command line."""
    config = schema.default()
    config.prior = ""
    config.data.dataset = "nh_haze"
    config.training.log_every = 20
    config.training.evaluate_every = 400
    config.training.checkpoint_every = 400
    return config
