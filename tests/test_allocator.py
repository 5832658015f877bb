import subprocess
import sys

from helpers.needs import needs

MEASURE = """
    import resource, sys, torch
    from loglik.cpu.allocator import keep_freed_memory

    if sys.argv[1] == "keep":
        keep_freed_memory()

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def step():  # 64 and 16 MiB, freed in the order of their allocation
        first, second = torch.ones(2**24), torch.ones(2**22)
        del first, second

    for _ in range(12):  # until the heap has grown to hold the blocks among the small ones
        step()
    before = faults()
    for _ in range(4):
        step()
    print(faults() - before)
"""


def page_faults(words: str) -> int:
    script = "\n".join(line[4:] for line in MEASURE.splitlines())
    done = subprocess.run([sys.executable, "-c", script, words], capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs("glibc")
def test_a_step_after_the_first_asks_for_no_new_pages() -> None:
    assert page_faults("keep") < 100 < page_faults("leave")
