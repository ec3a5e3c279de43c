import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attack.run import attack
from attack.seeds import write_seeds

parser = argparse.ArgumentParser(prog="python -m tests.attack")
parser.add_argument("--seconds", type=float, default=600.0)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--first", type=int, default=0, help="the number of the first file")
parser.add_argument("--files", type=int, default=10**9, help="at most so many")
parser.add_argument("--workers", type=int, default=2)
asked = parser.parse_args()
with tempfile.TemporaryDirectory() as there, tempfile.TemporaryDirectory() as here:
    seeds = write_seeds(Path(here))
    found = attack(Path(there), seeds, asked.seconds, asked.seed, asked.first, asked.files, asked.workers)
for outcome, count in sorted(found.outcomes.items()):
    print(f"{count:8d} {outcome}")
print(
    f"longest {found.slowest[0]:.1f} s (file {found.slowest[1]}), most memory {found.memory[0]} MB (file "
    f"{-found.memory[1]}), {len(found.bad)} findings"
)
for number, what in found.bad:
    print(f"--- file {number} of seed {asked.seed}\n{what}")
sys.exit(bool(found.bad) or found.memory[0] > 2048)
