"""What torch frees stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stages.models.cpu import keep_freed_memory

SCRIPT = """
import resource, torch
from stages.models.cpu import prepare_cpu
{first}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):  # glibc before 2.38 needs some to see that what is free is large enough
    torch.ones(2**24)
before = faults()
for _ in range(4):
    torch.ones(2**24)
print(faults() - before, torch.get_num_threads())
"""


@pytest.mark.thorough
@pytest.mark.skipif(not keep_freed_memory(), reason="malloc is not glibc's")
def test_a_tensor_as_large_as_the_one_before_costs_no_page_faults() -> None:
    def run(first: str) -> tuple[int, int]:
        code = SCRIPT.format(first=first)
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        faults, threads = map(int, output.split())
        return faults, threads

    faults, threads = run("prepare_cpu(1)")
    assert faults < 100
    assert threads == 1
    assert run("")[0] > 4 * 1000
