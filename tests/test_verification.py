"""verify: rows, selection, JSON, the page, a user's own check, and the command."""

import json

import numpy as np
import pytest

import loglik
from helpers.commands import run, well
from loglik.density import StandardNormal
from loglik.verification import CHECKS, Finding, check, verify, write_page
from loglik.verification.verify import selected

TABLE = np.random.default_rng(0).normal(size=(60, 2))


def test_a_density_by_itself_is_verified():
    found = verify(StandardNormal((2,)), TABLE, only=["normalised", "two-parts"])
    assert [(row.check.name, row.outcome) for row in found.rows] == [
        ("two-parts", "does not apply"),
        ("normalised", "holds"),
        ("normalised-recipe", "does not apply"),
    ]
    assert not found.failed and found.count("holds") == 1


def test_every_check_says_what_it_states():
    for each in selected(None):
        assert each.says.endswith(".") and len(each.says) < 120, each.name
        assert each.section and each.statement and each.name == each.name.lower()


def test_an_own_check_is_registered_and_one_with_a_taken_name_refused():
    @check("own-check", section="Own", statement="1 = 1")
    def own(subject):
        """One is one."""
        yield Finding.equal("one", 1.0, 1.0)
        yield Finding.at_least("one", 1.0, 2.0)

    try:
        (row,) = verify(StandardNormal((2,)), TABLE, only="own-check").rows
        assert row.outcome == "fails" and [finding.holds for finding in row.findings] == [True, False]

        def other(subject):
            """Two is two."""

        with pytest.raises(ValueError, match="there is a check 'own-check' already"):
            check("own-check", section="Own", statement="2 = 2")(other)
    finally:
        del CHECKS["own-check"]


def test_a_check_needs_a_docstring():
    with pytest.raises(ValueError, match="has no docstring"):
        check("no-words", section="Own", statement="1 = 1")(lambda subject: None)


def test_an_error_in_a_density_is_a_statement_that_fails():
    class Broken(StandardNormal):
        def log_prob(self, x, context=None, *, samples=1):
            raise ZeroDivisionError("division by zero")

    (row, _) = verify(Broken((2,)), TABLE, only="normalised").rows
    assert (row.outcome, row.reason) == ("fails", "ZeroDivisionError: division by zero")


def test_names_that_are_no_checks_are_refused():
    with pytest.raises(ValueError, match="there is no check 'nonsense': the checks are"):
        verify(StandardNormal((2,)), TABLE, only="nonsense")
    with pytest.raises(ValueError, match="pass data"):
        verify(StandardNormal((2,)))


def test_findings():
    assert Finding.equal("", 1.1, 1, stderr=0.05).holds and not Finding.equal("", 1.3, 1, stderr=0.05).holds
    assert Finding.at_most("", 1.1, 1, tolerance=0.2).holds and not Finding.at_most("", 1.1, 1).holds
    assert not Finding.equal("", float("nan"), 1, tolerance=1.0).holds
    assert Finding.reported("", 3.0).holds is None


def test_the_same_numbers_by_itself_and_among_others():
    flow = loglik.fit("flow", TABLE, max_steps=2, progress=False, width=16, depth=1)
    (alone,) = verify(flow, TABLE, only="two-samples").rows
    among = verify(flow, TABLE, only=["normalised", "entropy", "two-samples"]).rows
    assert alone.findings in [row.findings for row in among] and len(among) == 4


def test_the_page_and_the_json(tmp_path):
    found = verify(StandardNormal((2,)), TABLE, only=["normalised", "two"])
    found.write_json(tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["outcome"] for row in rows} == {"holds", "does not apply", "reported"}
    assert all(row["statement"] and isinstance(row["findings"], list) for row in rows)
    page = write_page(tmp_path / "page.html", found).read_text()
    assert "<math" in page and "does not apply" not in page.split("Statements that do not apply")[0].split("<h2>")[1]
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_the_command(tmp_path):
    out = well(
        "verify", "classifier", "--only", "two-parts,cross", "--out", tmp_path / "v", "--json", tmp_path / "v.json"
    )
    assert "2 statements: 2 hold, 0 fail." in out
    assert (tmp_path / "v" / "verification.html").is_file() and len(json.loads((tmp_path / "v.json").read_text())) == 2


def test_the_command_ends_with_1_where_a_statement_fails(tmp_path, monkeypatch):
    from loglik.classification import Classifier

    monkeypatch.setattr(Classifier, "probabilities", lambda self, x: self.logits(x))
    assert run("verify", "classifier", "--only", "two-parts", "--out", tmp_path / "v").status == 1


def test_the_command_passes_the_options_of_a_run(tmp_path):
    seen = []

    @check("own-options", section="Own", statement="1 = 1")
    def own(subject):
        """The subject has the options of the run."""
        seen.append((subject.model, subject.options))
        return Finding.equal("one", 1.0, 1.0)

    try:
        loglik.fit("flow", "digits", out=tmp_path / "run", max_steps=1, progress=False, width=16, depth=2)
        well("verify", tmp_path / "run", "--only", "own-options", "--out", tmp_path / "v")
    finally:
        del CHECKS["own-options"]
    assert seen == [("flow", {"width": 16, "depth": 2})]


def test_the_command_refuses_what_is_no_model(tmp_path):
    done = run("verify", "nonsense", "--out", tmp_path / "v")
    assert done.status == 2 and "neither a run nor a model" in done.err
    done = run("verify", "flow", "--only", "nonsense", "--out", tmp_path / "v")
    assert done.status == 2 and "there is no check" in done.err and not (tmp_path / "v").exists()
