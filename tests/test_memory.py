import platform
import subprocess
import sys

import pytest

# Minor page faults of ten large pieces, taken and given back in turn, once the heap has grown to its size.
FAULTS = """
import resource, sys, torch
from semanticgan.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_used_again():
    give, keep = (
        int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("give", "keep")
    )
    assert keep <= give // 4  # 40 MB have 10,000 pages, made anew each time or never; with huge pages few either way
