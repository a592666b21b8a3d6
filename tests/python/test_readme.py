"""README's lines for a PyTorch loop, run as they stand there."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import mlp, mlp_loss, points  # noqa: E402

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
FUSED = ["import forge_optim as forge\nopt = forge.AdamW(model", "forge.fuse(model"]


@pytest.mark.parametrize("begins", FUSED)
def test_its_optimizer_fuses_the_weights(begins):
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if block.startswith(begins))
    scope = {"model": mlp(), "forge": forge}
    exec(block, scope)
    held = [p for group in scope["opt"].param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in scope["model"].parameters()}
    mlp_loss(scope["model"], points(1)).backward()
    assert all(isinstance(p.grad, forge.FactoredGrad) == (p.dim() == 2) for p in held)
    scope["opt"].step()
