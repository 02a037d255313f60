"""RESIDE: trained on ITS, scored on SOTS-indoor (Table 1, left; Sec. 5.1). The paper's main experiment.

Command (one line; the first two paths are the data sets' folders, the third comes from step 2):

    python -m difflid_jax.train --config=configs/sots.py --workdir=runs/sots \\
        --config.data.train=/data/RESIDE/ITS --config.data.test=/data/RESIDE/SOTS/indoor \\
        --config.prior=/weights/imagenet256

1. Data: ITS (standard, 13,990 hazy and 1,399 clean images) and SOTS from the RESIDE page;
   `python -m difflid_jax.check_data /data/RESIDE/ITS --dataset=its` checks the pairs.
2. Prior: OpenAI's 256x256_diffusion_uncond.pt, converted once by `python -m convert_weights.openai_ddpm`
   (--help gives its flags and the download).

Schedule: 350 steps per epoch, 420,000 steps; 2e-4 halved every 300 of 1,200 epochs. To time a step and the
schedule on your machine: `python scripts/benchmark.py train --config=configs/sots.py`.

Expected score, from the paper: 40.33 dB PSNR, 0.992 SSIM, 0.004 LPIPS; not reproduced here yet. The
paper names no validation set. To choose the weights on held-out scenes, move ids 1300 to 1399 out of the
training folder and give them as --config.data.validation.
"""

from difflid_jax.config import schema


def get_config():
    """The paper's settings; data and prior are given on the command line."""
    config = schema.default()
    config.prior = ""
    config.data.dataset = "its"
    config.data.test_dataset = "sots_indoor"
    return config
