"""The comparison in the terminal."""

from helpers.reports import IMAGES, VECTORS, comparison, data_of
from loglik.comparison import Row
from loglik.evaluation.result import Result
from loglik.report import print_comparison


def test_the_terminal_s_table_stands_best_first_with_notes(capsys):
    entries = comparison()
    entries.insert(2, Row(Result(model="png", bound="exact", nats=-60.0, bits_per_dim=1.35, n=60)))
    print_comparison(entries, data_of(IMAGES))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "made up: log-likelihood of 60 test examples, best first"
    assert [line.split()[:2] for line in lines[2:7]] == [
        ["1", "png"],
        ["diffusion", "-88.00"],  # given the label: not ranked
        ["2", "vae"],
        ["3", "independent"],
        ["4", "xz"],
    ]
    assert "lower, K=64 *" in lines[4] and "*" not in lines[5]
    assert lines[7] == "png, a compressor, is better than vae, the best density"
    assert lines[8].startswith("classifier, p(label | data): accuracy 90.0% (95% interval 79.9% to 95.3%), -0.125")
    assert lines[9:] == ["* vae, undertrained: it made 100 steps, 0.5 of an epoch"]


def test_an_error_that_is_small_or_unknown_is_not_shown_as_0(capsys):
    row = Result(model="flow", bound="exact", nats=-2.0, stderr=0.00021, n=10**6)
    certain = Result(model="c", bound="exact", nats=0.0, n=9, event="y", accuracy=1.0, calibration_error=0.0)
    print_comparison([Row(row), Row(certain)], data_of(VECTORS))
    out = capsys.readouterr().out
    assert "-2.00000 0.00021" in out and "± 0.0" not in out
