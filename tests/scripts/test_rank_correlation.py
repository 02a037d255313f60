"""Probes and trained PSNR are matched by what varies, and correlated by rank."""

import pytest

from scripts import rank_correlation

PROBE = "weights,layer,t,accuracy,beta_r2,airlight_r2,retrieval,ratio\n"


def test_ranks_are_compared_at_the_timestep_that_varies(tmp_path):
    probe, runs = tmp_path / "probe.csv", tmp_path / "figure8.csv"
    times, accuracy = (0, 100, 300, 500), (0.6, 0.7, 0.9, 0.8)
    lines = [f"prior,middle,{t},{a},,,0.5,1" for t, a in zip(times, accuracy, strict=True)]
    lines += [f"random weights,middle,{t},0.5,,,0.5,1" for t in times]
    probe.write_text(PROBE + "\n".join(lines) + "\n")
    # t₂ at t₁ = 0: 100 < 500 < 300, as the accuracies. The second seed of 300 is not comparable.
    rows = [("0,100", 0, 20), ("0,300", 0, 24), ("0,300", 1, 19)]
    rows += [("0,500", 0, 21), ("100,500", 0, 20), ("300,500", 0, 19)]
    lines = "".join(f'figure8,"{row}",{seed},{psnr}\n' for row, seed, psnr in rows)
    runs.write_text("exhibit,row,seed,psnr\n" + lines)

    exhibit, psnr = rank_correlation.read_psnr(runs)
    assert exhibit == "figure8" and psnr["0,300"] == 24
    found = rank_correlation.series(exhibit, psnr, {})
    lines = rank_correlation.table(rank_correlation.read_probe(probe), found).splitlines()
    assert lines[2].startswith("| t₁ | 3 | -1.000 | – |")  # 0 > 100 > 300 in dB, the reverse in accuracy
    assert lines[3].startswith("| t₂ | 3 | 1.000 | – |")
    with pytest.raises(ValueError, match=r"no probe at .*'middle', 999"):
        rank_correlation.table({}, iter([("t₂", [(("middle", 999), 20.0)])]))
