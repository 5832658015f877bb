"""What fuzz tests share: random edits of a file's bytes, and how long hypothesis searches."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["EDITS", "damaged", "long_search", "searching"]

BYTES = st.one_of(
    st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\n"])
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["set", "insert", "delete", "cut", "copy"]), BYTES), max_size=4
)


def damaged(content: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for place, what, value in edits:
        at = int(place * max(0, len(content) - 1))
        before, after = content[:at], content[at:]
        content = {
            "set": before + value + after[len(value) :],
            "insert": before + value + after,
            "delete": before + after[len(value) :],
            "cut": before,
            "copy": before + content[: len(value) * 8] + after,
        }[what]
    return content


def searching(examples: int) -> settings:
    """The same cases in each run."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)


def long_search(examples: int) -> settings:
    """New cases in each run; LOGLIK_FUZZ multiplies their number."""
    return settings(searching(int(float(os.environ.get("LOGLIK_FUZZ", 1)) * examples)), derandomize=False)
