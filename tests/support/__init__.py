"""What the test modules share. None of them imports another."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
# Real CIFAR-10, the original of the bundled weights, Pinecone's API; tests that need one skip
# without it.
SHARED: Final = ROOT.parent / "shared"
