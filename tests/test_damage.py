"""Damaged, truncated and foreign files of a run, and full disks: one clear line, and no good model is lost."""

import errno
import hashlib
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import loglik
from helpers.commands import refused, run, well
from helpers.training import LABELS, REAL, Breaks, Drift, Killed, flow, kill, numbers, same, settings, weights
from loglik import files, runs
from loglik.recipes import RECIPES
from loglik.training import NotFinite, checkpoint, fit
from loglik.training.batches import Batches

MODEL, SUM = "model.safetensors", "model.sha256"
CHANGED = r"model.safetensors is damaged or was changed: its SHA-256 is not the one in model.sha256: copy both"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A small run whose best step is its last, 12, with the checkpoints of steps 6 and 12."""
    path = tmp_path_factory.mktemp("damage") / "run"
    trained = fit(flow(), REAL, out=path, settings=settings(max_steps=12))
    assert max(trained.history, key=lambda row: row["validation_nats"])["step"] == 12
    return path


@pytest.fixture
def path(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> tuple[Path, list]:
    """A run of the command line, and the command that made it."""
    root = tmp_path_factory.mktemp("command")
    np.save(root / "real.npy", REAL)
    words = ["fit", root / "real.npy", "--model", "flow", "--max-steps", 4, "--set", "width=8", "--set", "depth=1"]
    well(*words, "--out", root / "run")
    return root / "run", words


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]


def places(size: int, n: int) -> list[int]:
    """The first 40 bytes of a file and n others at even distances, with the last."""
    return sorted({*range(min(40, size)), *np.linspace(0, size - 1, n).astype(int).tolist()})


def damaged(content: bytes, n: int) -> list[bytes]:
    """A file's content with n flipped bytes or more, one at a time, and n / 4 truncations."""
    lengths = {0, 1, 8, *np.linspace(0, len(content) - 1, n // 4).astype(int).tolist()}
    return [flipped(content, place) for place in places(len(content), n)] + [content[:length] for length in lengths]


def refuses(path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        loglik.load(path, density=flow())
    assert "\n" not in str(error.value) and MODEL in str(error.value)


def sealed(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write weights as a stranger could, with their SHA-256."""
    save_file(tensors, path / MODEL)
    (path / SUM).write_text(f"{hashlib.sha256((path / MODEL).read_bytes()).hexdigest()}  {MODEL}\n")


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [MODEL, SUM, "config.yaml", "config.sha256", "metrics.csv", "metrics.sha256"])
def test_every_flipped_byte_and_every_truncation_is_found(name, n, path) -> None:
    content, stem = (path / name).read_bytes(), name.partition(".")[0]
    words = rf"{stem}\.\w+ is damaged or was changed: its SHA-256 is not the one in {stem}\.sha256: copy both"
    for other in [*damaged(content, n), content + b"\n"]:
        (path / name).write_bytes(other)
        with pytest.raises(ValueError, match=words) as error:
            loglik.load(path, density=flow())
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"is damaged or was changed"):
        resume(path, max_steps=18)
    (path / name).write_bytes(content)
    loglik.load(path, density=flow())


def test_a_file_that_was_changed_on_purpose_is_read_without_its_checksum(path) -> None:
    for name in ("config", "metrics"):
        file = path / f"{name}.{'yaml' if name == 'config' else 'csv'}"
        file.write_text(file.read_text().replace("data: array", "data: mine").replace("12,", "13,"))
        (path / f"{name}.sha256").unlink()
    run = loglik.load(path, density=flow())
    assert run.config["data"] == "mine" and run.history[-1]["step"] == 13


def test_sha256sum_would_accept_the_checksum(path) -> None:
    digest = hashlib.sha256((path / MODEL).read_bytes()).hexdigest()
    assert (path / SUM).read_text() == f"{digest}  {MODEL}\n"


def test_a_run_without_a_checksum_loads_and_truncations_are_still_found(path) -> None:
    whole = weights(loglik.load(path, density=flow()).density)
    (path / SUM).unlink()
    assert same(weights(loglik.load(path, density=flow()).density), whole)
    content = (path / MODEL).read_bytes()
    for length in {0, 1, 8, *np.linspace(0, len(content) - 1, 20).astype(int).tolist()}:
        (path / MODEL).write_bytes(content[:length])
        refuses(path, r"model.safetensors does not fit config.yaml or is damaged")
    (path / MODEL).write_bytes((10**15).to_bytes(8, "little") + content[8:])
    refuses(path, r"its header has 1000000000000000 bytes, at most \d+ expected")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w * torch.nan, "16 of 16 values are NaN"),
        (lambda w: w / 0 * w.sign(), "not all values are finite"),
        (lambda w: w.to(torch.complex64), "has type C64, the model's is float32"),
        (lambda w: w.to(torch.int32), "has type I32, the model's is float32"),
        (lambda w: w > 0, "has type BOOL, the model's is float32"),
        (lambda w: w.double(), "has type F64, the model's is float32"),
        (lambda w: w.half(), "has type F16, the model's is float32"),
        (lambda w: w.T.contiguous(), r"has shape \(1, 16\), the model's is \(16, 1\)"),
        (lambda w: w[0, 0], r"has shape \(\), the model's is \(16, 1\)"),
        (lambda w: torch.zeros(2, 0, 3), r"has shape \(2, 0, 3\), the model's is \(16, 1\)"),
    ],
)
@pytest.mark.parametrize("checksum", [True, False])
def test_weights_of_wrong_values_types_and_shapes_are_refused(change, words, checksum, path) -> None:
    tensors = load_file(path / MODEL)
    name = next(name for name, value in tensors.items() if value.shape == (16, 1))
    sealed(path, {**tensors, name: change(tensors[name])})
    if not checksum:
        (path / SUM).unlink()
    refuses(path, words)
    if words[0].islower():  # of a name
        refuses(path, f"{name} {words}" if words.startswith("has") else f"{words} in {name}")


def test_missing_and_unknown_weights_are_named(path) -> None:
    tensors = load_file(path / MODEL)
    name = next(iter(tensors))
    sealed(path, {k: v for k, v in tensors.items() if k != name})
    refuses(path, f"'{name}' is missing")
    sealed(path, {**tensors, "x\n" * 500: torch.zeros(1)})
    refuses(path, r"'x\\nx.{0,100} is not a name of the model")
    (path / SUM).unlink()
    torch.save(tensors, path / MODEL)
    refuses(path, "does not fit config.yaml or is damaged")


def test_infinities_of_the_model_itself_come_back(tmp_path) -> None:
    """A buffer of log-probabilities that starts with -inf may keep it; a parameter may not."""
    whole = np.repeat(np.arange(3), 20)[:, None]
    trained = fit("independent", whole, out=tmp_path / "run")
    assert any(value.isinf().any() for value in trained.density.state_dict().values())
    assert same(weights(loglik.load(tmp_path / "run").density), weights(trained.density))


def test_a_training_in_float64_comes_back(tmp_path) -> None:
    fit(flow(), REAL, out=tmp_path / "run", settings=settings(max_steps=2, precision="64-true"))
    assert torch.float64 in {value.dtype for value in load_file(tmp_path / "run" / MODEL).values()}
    loglik.load(tmp_path / "run", density=flow())
    assert resume(tmp_path / "run", max_steps=4, precision="64-true")[0].steps == 4


@pytest.mark.parametrize("what", ["byte", "cut", "nan", "complex"])
@pytest.mark.parametrize("name", ["evaluate", "sample", "resume"])
def test_commands_refuse_damaged_weights_in_one_line(what, name, command, tmp_path) -> None:
    made, words = command
    path = tmp_path / "run"
    shutil.copytree(made, path)
    file = path / MODEL
    content, tensors = file.read_bytes(), load_file(file)
    if what == "byte":
        file.write_bytes(flipped(content, len(content) - 100))
    elif what == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        changed = torch.nan if what == "nan" else 1j
        sealed(path, {k: v * changed if v.is_floating_point() else v for k, v in tensors.items()})
    before = file.read_bytes()
    line = refused(*words, "--out", path, "--resume") if name == "resume" else refused(name, path)
    assert MODEL in line
    assert file.read_bytes() == before


# --- checkpoints and resuming -----------------------------------------------------------------------------------------


def resume(path: Path, **changes) -> tuple[runs.Run, list[str]]:
    lines: list[str] = []
    torch.manual_seed(0)
    return fit(flow(), REAL, out=path, resume=True, report=lines.append, settings=settings(**changes)), lines


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def spoil(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))


def test_no_run_is_started_again_where_no_checkpoint_is_intact(path) -> None:
    for file in (path / "checkpoints").glob("*.safetensors"):
        spoil(file)
    before = snapshot(path)
    words = (
        rf"run has {MODEL}, but no intact checkpoint .*: copy its folder checkpoints .* or train anew with another out="
    )
    with pytest.raises(ValueError, match=words) as error:
        resume(path)
    assert "\n" not in str(error.value)
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(ValueError, match=words):
        resume(path)
    assert snapshot(path) == {name: content for name, content in before.items() if "checkpoints" not in name}
    (path / MODEL).unlink()
    with pytest.raises(ValueError, match=r"run has metrics.csv, but no intact checkpoint"):
        resume(path)


def test_the_command_line_says_it_too(command, tmp_path) -> None:
    made, words = command
    shutil.copytree(made, tmp_path / "run")
    more = (*words[:5], 8, *words[6:], "--out", tmp_path / "run", "--resume")
    assert f"{tmp_path / 'run'}: training continues at step 4\n" in well(*more)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert "no intact checkpoint" in refused(*more) and "another --out" in refused(*more)


@pytest.mark.parametrize("n", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["step-000000012.safetensors", "step-000000012.sha256"])
def test_every_flipped_byte_of_a_checkpoint_is_found_and_said(name, n, path) -> None:
    file = path / "checkpoints" / name
    content = file.read_bytes()
    for other in damaged(content, n):
        file.write_bytes(other)
        lines: list[str] = []
        saved = checkpoint.load_newest(path / "checkpoints", lines.append)
        assert saved is not None and saved[1].step == 6
        assert len(lines) == 1 and "step-000000012.safetensors is skipped: it is damaged" in lines[0]


def test_where_a_resume_begins_and_what_it_skips_is_said(path, tmp_path) -> None:
    _, lines = resume(path, max_steps=18)
    assert lines == [f"{path}: training continues at step 12"]
    spoil(path / "checkpoints" / "step-000000018.safetensors")
    again, lines = resume(path, max_steps=18)
    assert len(lines) == 2 and "step-000000018.safetensors is skipped" in lines[0]
    assert lines[1] == f"{path}: training continues at step 12"
    (tmp_path / "new").mkdir()
    shutil.copy(path / "config.yaml", tmp_path / "new")
    fresh, lines = resume(tmp_path / "new", max_steps=18)
    assert lines == [f"{tmp_path / 'new'}: training starts at step 0, since it was stopped before its first checkpoint"]
    assert fresh.steps == again.steps == 18


def test_best_weights_are_checked_when_a_run_is_resumed(path) -> None:
    content = (path / MODEL).read_bytes()
    for other in (flipped(content, len(content) - 9), content[:100], b""):
        (path / MODEL).write_bytes(other)
        words = (
            rf"training cannot continue without the weights of step 12, its best: .*{CHANGED}.*; or delete {MODEL} to"
        )
        with pytest.raises(ValueError, match=words) as error:
            resume(path)
        assert "\n" not in str(error.value) and (path / MODEL).read_bytes() == other
    (path / MODEL).unlink()
    resume(path, max_steps=12)
    assert (path / MODEL).read_bytes() == content


def test_best_weights_of_an_earlier_step_cannot_come_from_the_checkpoint(tmp_path, monkeypatch) -> None:
    path, chosen = tmp_path / "run", settings(max_steps=12, ema_decay=0.0, patience=0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill(patch, checkpoint, "save", 2, "after")
        fit(Drift(), REAL, out=path, settings=chosen)
    spoil(path / MODEL)
    for words in (CHANGED + r".* on purpose$", "has no model.safetensors"):
        with pytest.raises(ValueError, match=rf"without the weights of step 6, its best: .*{words}"):
            fit(Drift(), REAL, out=path, resume=True, settings=chosen)
        (path / MODEL).unlink(missing_ok=True)


def test_a_good_model_is_kept_until_training_has_gone_on_from_an_older_checkpoint(path, monkeypatch) -> None:
    before = (path / MODEL).read_bytes()
    spoil(path / "checkpoints" / "step-000000012.safetensors")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill(patch, Batches, "batch", 4, "before")
        resume(path, max_steps=12)
    assert (path / MODEL).read_bytes() == before
    resume(path, max_steps=12)
    assert (path / MODEL).read_bytes() == before


def test_another_model_is_refused_in_one_line(path) -> None:
    bigger = loglik.Flow([*flow().transforms][:1], loglik.StandardNormal((2,)))
    bigger.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the checkpoint of step 12 in .* is not of this model") as error:
        fit(bigger, REAL, out=path, resume=True, settings=settings())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("call", range(1, 25))
def test_killed_before_any_file_is_renamed(call, tmp_path, monkeypatch) -> None:
    """The run loads or says why not, and resumed it ends as one that was not killed."""
    path, chosen = tmp_path / "run", {"max_steps": 12}
    torch.manual_seed(0)
    whole = fit(flow(), REAL, settings=settings(**chosen))
    with monkeypatch.context() as patch:
        kill(patch, os, "replace", call, "before")
        torch.manual_seed(0)
        try:
            fit(flow(), REAL, out=path, settings=settings(**chosen))
        except Killed:
            pass
        else:
            assert call > 23
    if call <= 2:
        assert {file.name for file in path.iterdir()} <= runs.LEFTOVERS
        with pytest.raises(
            ValueError, match=r"was stopped before its config.yaml was written: start it without resume"
        ):
            resume(path, **chosen)
        torch.manual_seed(0)
        done = fit(flow(), REAL, out=path, settings=settings(**chosen))
    else:
        with pytest.raises(FileExistsError, match="or pass resume=True to continue it"):
            fit(flow(), REAL, out=path, settings=settings(**chosen))
        if (path / MODEL).exists():
            loglik.load(path, density=flow())
        done, lines = resume(path, **chosen)
        assert len(lines) >= 1
    assert same(weights(done.density), weights(whole.density)) and numbers(done.history) == numbers(whole.history)
    assert same(weights(loglik.load(path, density=flow()).density), weights(whole.density))
    assert (path / SUM).read_text().count("\n") == 1


def test_a_run_of_an_earlier_version_is_resumed_wherever_it_is_killed(path, monkeypatch) -> None:
    (path / SUM).unlink()
    whole, _ = resume(shutil.copytree(path, path.parent / "copy"), max_steps=18)
    for call in range(1, 12):
        other = Path(shutil.copytree(path, path.parent / f"copy-{call}"))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill(patch, os, "replace", call, "before")
            resume(other, max_steps=18)
        loglik.load(other, density=flow())
        assert same(weights(resume(other, max_steps=18)[0].density), weights(whole.density))


# --- training that diverges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e3, 1e30, float("inf")])
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "independent"])
def test_a_learning_rate_that_is_far_too_high_is_said(rate, name, tmp_path) -> None:
    data = (np.repeat(LABELS[:, None], 3, axis=1), LABELS)
    data = {"a": LABELS * 1.5, "b": LABELS} if name == "mixture" else data
    options = {"width": 8, "max_steps": 3, "validate_every": 1, "warmup": 0, "batch_size": 32, "learning_rate": rate}
    try:
        trained = fit(name, data, out=tmp_path / "run", **options)
    except NotFinite as error:
        message = str(error)
        assert "\n" not in message and "Try a lower learning_rate" in message
        if "no weights were kept" in message:
            assert f"no weights were kept yet: {tmp_path / 'run'} has a config.yaml only" in message
            assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["config.sha256", "config.yaml"]
            return
        assert f"are kept in {tmp_path / 'run'}" in message
    else:
        assert rate == 1e3 and all(np.isfinite(row["validation_nats"]) for row in trained.history)
    loglik.load(tmp_path / "run")


def test_a_first_validation_that_is_not_finite_stops_training(command, tmp_path) -> None:
    _, words = command
    line = refused(*words, "--set", "learning_rate=1e30", "--set", "warmup=0", "--out", tmp_path / "run")
    assert "no weights were kept yet" in line and "Try a lower learning_rate (1e+30 now)" in line
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["config.sha256", "config.yaml"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_only_finite_validations_count(value, monkeypatch) -> None:
    class Late(Breaks):
        """Its validation is not finite from the second on."""

        def log_prob(self, x, context=None, *, samples=1):
            return super().log_prob(x) if self.good > 90 else super().log_prob(x) + value

    density = Late(100, "loss")
    history = fit(density, REAL, settings=settings(ema_decay=0.0)).history
    assert [np.isfinite(row["validation_nats"]) for row in history] == [True, False, False, False]
    assert density.weight.item() == pytest.approx(history[0]["validation_nats"])
    with pytest.raises(NotFinite, match=r"step 6: the first validation is (nan|inf|-inf) nats; no weights were kept"):
        fit(Late(90, "loss"), REAL, settings=settings(ema_decay=0.0))


# --- full disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(1, 16))
def test_a_full_disk_names_the_file_and_loses_nothing(call, tmp_path, monkeypatch) -> None:
    """Each write of a training, in turn, finds no space."""
    path, count = tmp_path / "run", iter(range(1, 1000))
    written: list[str] = []

    def full(real, at):
        def write(*args, **options):
            name = str(args[at])
            if name.endswith(".partial"):
                written.append(name)
                if next(count) == call:
                    Path(name).write_bytes(b"half")
                    raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **options)

        return write

    torch.manual_seed(0)
    whole = fit(flow(), REAL, settings=settings(max_steps=12))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full(Path.write_text, 0))
        patch.setattr(files, "save_file", full(files.save_file, 1))
        torch.manual_seed(0)
        with pytest.raises(OSError, match="no space left on device: free space") as error:
            fit(flow(), REAL, out=path, settings=settings(max_steps=12))
    message = str(error.value)
    assert error.value.errno == errno.ENOSPC and "\n" not in message and "Errno" not in message
    assert message.startswith(written[-1].removesuffix(".partial"))
    assert not list(path.rglob("*.partial"))
    torch.manual_seed(0)
    if call <= 2:
        assert "resume" not in message and list(path.iterdir()) == []
        done = fit(flow(), REAL, out=path, settings=settings(max_steps=12))
    else:
        assert message.endswith("then pass resume=True to continue")
        done, _ = resume(path, max_steps=12)
    assert same(weights(done.density), weights(whole.density))
    assert same(weights(loglik.load(path, density=flow()).density), weights(whole.density))


@contextmanager
def file_size_limit(size: int):
    """As on a disk that is full after `size` bytes of any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "file"), [(100, "config.yaml"), (2000, "checkpoints/step-000000004.safetensors"), (60_000, "report.html")]
)
def test_the_system_runs_out_of_space(size, file, command, tmp_path) -> None:
    _, words = command
    path = tmp_path / "run"
    with file_size_limit(size):
        line = refused(*words, "--out", path)
    assert line.startswith(f"error: {path / file}: file too large: raise the limit of a file's size (ulimit -f)")
    assert ("pass --resume to continue" in line) == file.startswith("checkpoints")
    assert not list(path.rglob("*.partial"))
    again = run(*words, "--out", path)
    if file == "config.yaml":
        assert again.status == 0
    else:
        assert "pass --resume to continue it" in again.err
        well(*words, "--out", path, "--resume")
    made = loglik.load(command[0]).density
    assert same(weights(loglik.load(path).density), weights(made))


def test_a_link_under_a_temporary_name_is_not_followed(path, tmp_path) -> None:
    (tmp_path / "mine").write_text("mine")
    (path / f"{MODEL}.partial").symlink_to(tmp_path / "mine")
    (path / "config.yaml.partial").symlink_to(tmp_path / "mine")
    resume(path, max_steps=18)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_that_is_no_run_is_offered_no_resuming(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is not empty: choose another out=$"):
        fit(flow(), REAL, out=tmp_path, settings=settings())
    with pytest.raises(ValueError, match=r"is no run$"):
        resume(tmp_path)


def test_a_lost_configuration_is_said(path) -> None:
    (path / "config.yaml").unlink()
    with pytest.raises(
        ValueError, match=r"has no config.yaml: copy it from where it is intact, or train anew with anot"
    ):
        resume(path)
