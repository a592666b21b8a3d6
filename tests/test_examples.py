"""The examples do what their first lines say."""

import os
import re
import subprocess
from pathlib import Path

BUILD = Path(os.environ.get("FORGE_BUILD", Path(__file__).resolve().parent.parent / "build" / "release"))


def test_minimal_example_lowers_its_loss():
    printed = subprocess.run([BUILD / "example_minimal"], check=True, capture_output=True, text=True).stdout
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 5
    assert losses[-1] < 0.5 * losses[0]
