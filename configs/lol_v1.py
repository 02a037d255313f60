"""LOL-v1: low-light photographs (Table 4, left; Sec. 5.4).

The same network and schedule as for haze. Both paths name the data set's folder: training uses `our485`,
the test `eval15`:

    python -m difflid_jax.train --config=configs/lol_v1.py --workdir=runs/lol_v1 \\
        --config.data.train=/data/LOL \\
        --config.data.test=/data/LOL \\
        --config.prior=/weights/imagenet256

1. Data: LOL (485 and 15 pairs, 600x400), folders `our485` and `eval15`;
   `python -m difflid_jax.check_data /data/LOL --dataset=lol_v1` checks the pairs.
2. Prior: OpenAI's 256x256_diffusion_uncond.pt, converted once by `python -m convert_weights.openai_ddpm`
   (--help gives its flags and the download).

Schedule: 13 steps per epoch (485 pairs, batch 40), 15,600 steps; 2e-4 halved every 300 of 1,200 epochs.
To time a step on your machine: `python scripts/benchmark.py train --config=configs/lol_v1.py`.

Expected score, from the paper: 23.30 dB PSNR, 0.849 SSIM, 0.136 LPIPS, 55.88 FID; not reproduced here yet.
"""

from difflid_jax.config import schema


def get_config():
    """The paper's settings; data and prior are given on the command line."""
    config = schema.default()
    config.prior = ""
    config.data.dataset = "lol_v1"
    config.training.log_every = 50
    config.training.evaluate_every = 1300
    config.training.checkpoint_every = 1300
    return config
