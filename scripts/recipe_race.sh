#!/usr/bin/env bash
# Does recipe B learn more from the same tokens than recipe A?
#
#   cargo build --release
#   scripts/recipe_race.sh A.toml B.toml OUT [dotted.key=value …]
#
# Trains both from the same SEEDS on the same TOKENS, at each of SIZES, and evaluates them every EVERY steps on
# what the recipes name as validation. Settings behind OUT are for both. Prints for each size the final losses,
# the mean difference of the pairs with its standard error, the tokens that B takes to A's final loss, and
# the time of a step. What is in OUT is continued.
#
# Tokens to equal loss are read from B's own curve, whose rate has not come down there; a run of B that is
# planned for so few tokens would be better. They are therefore an upper bound, and `nan` where B never gets there.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
program=${PROGRAM:-$here/target/release/bitnet-train}
sizes=${SIZES:-tiny} tokens=${TOKENS:-1M} seeds=${SEEDS:-1,2,3} every=${EVERY:-50}
a=$1 b=$2 out=$3
shift 3

for side in a b; do
    "$program" sweep --recipe "${!side}" --sizes "$sizes" --tokens "$tokens" --seeds "$seeds" --quiet \
        ${THREADS:+--threads "$THREADS"} --out "$out/$side" "eval.every=$every" "$@" >/dev/null
done

python3 - "$out" <<'PYTHON'
import csv, json, math, pathlib, statistics, sys

out = pathlib.Path(sys.argv[1])


def curve(run):
    """Tokens and loss of every evaluation, and the median time of a step in seconds."""
    tokens, points, times, before = {}, {}, [], 0
    for line in map(json.loads, open(run / "metrics.jsonl")):
        if "tokens_per_second" in line:
            tokens[line["step"]] = line["tokens"]
            times.append((line["tokens"] - before) / line["tokens_per_second"])
            before = line["tokens"]
        elif "eval" in line:
            [held_out] = line["eval"].values() if len(line["eval"]) == 1 else sys.exit(
                f"{run}: several validation sets; expected one, set data.validation")
            points[tokens[line["step"]]] = held_out["nll_per_token"]
    return sorted(points.items()), statistics.median(times)


def reaches(points, loss):
    """The tokens where a curve first reaches a loss, between two evaluations by a straight line."""
    before = None
    for tokens, found in points:
        if found <= loss:
            share = 1.0 if before is None else (before[1] - loss) / (before[1] - found)
            start = 0 if before is None else before[0]
            return start + share * (tokens - start)
        before = tokens, found
    return math.nan


def spread(values):
    """Mean and standard error; not a number where any value is none, as where B never gets there."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    count = len(values)
    return mean, math.sqrt(squares / (count - 1) / count) if count > 1 else math.nan


sizes = {}
for row in csv.DictReader(open(out / "a" / "ladder.csv")):
    if (out / "b" / row["run"]).is_dir():
        size = row["run"].rsplit("-", 3)[0]
        sizes.setdefault((size, row["tokens"]), []).append(row["run"])
print("| size | tokens | seeds | A | B | B - A | tokens of A over those of B to A's loss | step of B over A's |")
print("|---|---|---|---|---|---|---|---|")
for (size, tokens), runs in sizes.items():
    ends, ratios, times = [], [], []
    for run in runs:
        (a, a_time), (b, b_time) = curve(out / "a" / run), curve(out / "b" / run)
        ends.append((a[-1][1], b[-1][1]))
        ratios.append(a[-1][0] / reaches(b, a[-1][1]))
        times.append(b_time / a_time)
    mean_a, mean_b = (statistics.mean(end[side] for end in ends) for side in (0, 1))
    difference, error = spread([b - a for a, b in ends])
    ratio, ratio_error = spread(ratios)
    print(f"| {size} | {int(tokens):,} | {len(runs)} | {mean_a:.4f} | {mean_b:.4f} | "
          f"{difference:+.4f} ± {error:.4f} | {ratio:.2f} ± {ratio_error:.2f} | {statistics.median(times):.2f} |")
PYTHON
