"""What only a GPU can show; the checks themselves are in benchmarks/gpu_checks.py, which a machine without pytest can run."""

import pytest
import torch

from benchmarks.gpu_checks import CHECKS

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)


@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name):
    CHECKS[name]()
