"""Embeddings and filled tables of a trained VAE, from Python and from the commands."""

import csv
import subprocess
import sys

import pytest
import torch

import loglik
from helpers.mixed import mixed_rows, write_rows
from loglik.tasks import encode, fill_table, write_latents


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("latents"), mixed_rows("big")
    table = write_rows(folder / "t.csv", rows)
    made = loglik.fit("vae", table, label="label", max_steps=60, width=16, latent=2, out=folder / "run")
    return made, folder, rows


def test_encode_writes_a_row_for_each_example(run):
    made, folder, _ = run
    assert write_latents(made, folder / "z.csv") == 200
    rows = list(csv.DictReader((folder / "z.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == [str(i + 1) for i in range(200)]
    assert list(rows[0]) == ["row", "label", "z1", "z2"] and rows[0]["label"] in ("yes", "no")
    z = encode(made)
    assert z.shape == (200, 2) and torch.isfinite(z).all()
    assert abs(float(rows[7]["z2"]) - z[7, 1].item()) < 1.0  # whole columns are dequantized at random


def test_fill_writes_the_gaps_and_leaves_the_rest(run):
    made, folder, rows = run
    gaps = [list(row) for row in rows[:20]]
    for i, row in enumerate(gaps):
        row[i % 3] = ""
    table = write_rows(folder / "gaps.csv", gaps)
    assert fill_table(made, table, folder / "filled.csv") == 20
    filled = list(csv.reader((folder / "filled.csv").read_text().splitlines()))[1:]
    for i, (old, new) in enumerate(zip(gaps, filled, strict=True)):
        assert all(a == b or float(a) == float(b) for a, b in zip(old, new, strict=True) if a)
        assert new[i % 3] != ""
    assert all(row[2] in ("big", "small") and float(row[1]) == int(float(row[1])) for row in filled)


def test_fill_takes_a_table(run):
    made, folder, _ = run
    with pytest.raises(ValueError, match="a table is a"):
        fill_table(made, folder, folder / "filled2.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        fill_table(made, folder / "none.csv", folder / "filled2.csv")


def test_the_commands(run):
    made, folder, _ = run

    def loglik_(*words):
        line = [sys.executable, "-m", "loglik", *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, timeout=100)

    done = loglik_("encode", made.path, "--split", "test", "--out", folder / "few.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 rows of latents: ")
    done = loglik_("fill", made.path, folder / "t.csv", "--out", folder / "same.csv")
    assert done.returncode == 0 and done.stdout.startswith("0 missing values filled"), done.stderr
    bad = folder / "bad.csv"
    bad.write_text("size,count\n1.0,2\n")
    done = loglik_("fill", made.path, bad, "--out", folder / "no.csv")
    assert done.returncode == 2 and "no column 'kind', which the model needs" in done.stderr
