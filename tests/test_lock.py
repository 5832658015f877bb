"""One process at a time in a run's folder: the second says who is there, and a dead one does not count."""

import os
import signal
import socket

import pytest

from helpers.commands import refused, well
from helpers.training import REAL, flow, settings
from loglik.lock import in_use, is_locked, locked
from loglik.training import fit


def held_elsewhere(folder) -> tuple[int, int]:
    """Start a process that holds a folder; return its number, and a file that it closes when it ends."""
    ready, done = os.pipe()
    child = os.fork()
    if not child:
        with locked(folder):
            os.write(done, b"x")
            signal.pause()
        os._exit(0)
    os.close(done)
    assert os.read(ready, 1) == b"x"
    return child, ready


def killed(child: int, ready: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready)


def test_the_second_says_who_holds_the_folder_and_a_dead_holder_does_not_count(tmp_path) -> None:
    child, ready = held_elsewhere(tmp_path)
    try:
        assert is_locked(tmp_path)
        with (
            pytest.raises(
                BlockingIOError, match=f"in use by process {child} on {socket.gethostname()} since 20"
            ) as error,
            locked(tmp_path),
        ):
            pass
        assert "\n" not in str(error.value)
    finally:
        killed(child, ready)
    assert not is_locked(tmp_path) and sorted(p.name for p in tmp_path.iterdir()) == [".holder", ".lock"]
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_holds_the_folder_and_gives_it_back(tmp_path) -> None:
    seen = []
    fit(flow(), REAL, out=tmp_path / "run", settings=settings(max_steps=6))
    more = settings(max_steps=12)
    fit(
        flow(),
        REAL,
        out=tmp_path / "run",
        resume=True,
        settings=more,
        report=lambda line: seen.append(is_locked(tmp_path / "run")),
    )
    assert seen == [True] and not is_locked(tmp_path / "run")
    assert not {".lock", ".holder"} & {p.name for p in (tmp_path / "run").iterdir()}


def test_commands_refuse_a_folder_in_use_in_one_line(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,2\n2.5,3\n" * 30)
    words = ["fit", tmp_path / "t.csv", "--model", "independent", "--out", tmp_path / "run"]
    well(*words)
    child, ready = held_elsewhere(tmp_path / "run")
    try:
        for command in (words, [*words, "--resume"], ["compare", tmp_path / "t.csv", "--out", tmp_path / "run"]):
            line = refused(*command)
            assert f"run is in use by process {child} on" in line and "choose another --out" in line
    finally:
        killed(child, ready)
    well(*words, "--resume")
    assert "exists and is not empty" in refused(*words)


def test_a_killed_beginner_leaves_a_folder_that_can_be_used(tmp_path) -> None:
    child, ready = held_elsewhere(tmp_path / "run")
    killed(child, ready)
    fit(flow(), REAL, out=tmp_path / "run", settings=settings(max_steps=2))


@pytest.mark.parametrize("content", ["", "x", "[]", "{}", '{"process": "x"}', '{"process": 1, "host": 2, "since": 3}'])
def test_who_holds_it_is_told_if_it_is_known(content, tmp_path) -> None:
    (tmp_path / ".holder").write_text(content)
    assert "is in use by another process: wait until it ends" in in_use(tmp_path)
