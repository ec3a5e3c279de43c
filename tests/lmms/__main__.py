"""`python tests/lmms`, where flashvlm[lmms] is installed: lmms-eval answers the questions about the sample clips with
the demo model, and each answer and each score must be that of `flashvlm bench accuracy`.

It takes a few minutes. The tests have lmms-eval's interface from a stand-in (`stand_in.py`): its pins of PyAV and
protobuf rule out those of constraints.txt.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
QUESTIONS = "samples/questions.jsonl"
# With few tokens answers differ, so that there is something to compare.
COLUMNS = [("100%", "flashvlm"), ("10%", "flashvlm"), ("1%", "flashvlm"), ("1%", "uniform")]


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    differences = 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        accuracy = ["accuracy", "--data", QUESTIONS, "--model", "demo", "--selectors", "flashvlm,uniform"]
        run("flashvlm_cli", "bench", *accuracy, "--keep", "10%,1%", "-o", str(out / "accuracy.jsonl"))
        records = [record for record in lines(out / "accuracy.jsonl") if "pruned" in record and "text" in record]
        for keep, selector in COLUMNS:
            given = f"pretrained=demo,keep={keep},selector={selector},dtype=float32"
            there = out / f"{keep}-{selector}"
            task = ["--tasks", "flashvlm_samples", "--include_path", str(HERE)]
            run(
                "lmms_eval",
                "--model",
                "flashvlm",
                "--model_args",
                given,
                *task,
                "--log_samples",
                "--output_path",
                str(there),
            )
            (samples,), (results,) = there.rglob("*samples*.jsonl"), there.rglob("*results.json")
            score = json.loads(results.read_text())["results"]["flashvlm_samples"]["right,none"]
            said = {
                (one["input"], one["target"]): (one["filtered_resps"], bool(one["right"])) for one in lines(samples)
            }
            ours = {}
            for record in records:
                one = record["unpruned"] if keep == "100%" else record["pruned"][keep][selector]
                ours[record["text"], record["answer"]] = (one["said"], one["right"])
            differ = [question for question in ours if said.get(question) != ours[question]]
            share = sum(right for _, right in ours.values()) / len(ours)
            print(f"{keep:>5} {selector:<9} lmms-eval {score:.4f}  bench accuracy {share:.4f}  {len(ours)} answers, "
                  f"{len(differ)} differ")  # fmt: skip
            differences += len(differ) + (abs(score - share) > 1e-9) + (len(said) != len(ours))
        run("flashvlm_cli.lmms_table", str(out))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
