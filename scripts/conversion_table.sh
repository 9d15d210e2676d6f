#!/usr/bin/env bash
# What does it cost to make a dense model ternary, and which way is best?
#
#   cargo build --release
#   scripts/conversion_table.sh BASE.toml OUT [dotted.key=value …]
#
# For each of SEEDS trains a dense teacher without sub-norms and a ternary model from scratch on TOKENS, then
# turns the teacher into ternary students in each of WAYS, on each of BUDGETS (percent of TOKENS). BASE is a
# recipe of one stage with a new model and data.validation; settings behind OUT are for all runs. Students
# have the peak learning rate RATE and other text than the teacher begins with (another seed). Prints the
# held-out loss of each, mean and standard error over the seeds. What is in OUT is continued.
#
#   direct       the teacher's weights are the latents, ternary from the first step
#   lambda       with a warm-up of λ over a tenth of the run
#   subnorms     with sub-norms inserted
#   both         both of these
#   logits       without either: half cross-entropy, half KL of the teacher's logits at temperature 2
#   warm-logits  the warm-up and the logits
#   all          both, and the logits
#   relations    all, and the relations of the last layer
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
program=${PROGRAM:-$here/target/release/bitnet-train}
tokens=${TOKENS:-1000000} seeds=${SEEDS:-1 2 3} budgets=${BUDGETS:-5 20 100}
ways=${WAYS:-direct lambda subnorms both logits warm-logits all relations} rate=${RATE:-2e-3}
base=$1 out=$2
shift 2

# train NAME TOKENS SEED [word …]: a run, unless it is there.
train() {
    local name=$1 count=$2 seed=$3
    shift 3
    "$program" --recipe "$base" --out "$out/$name" --resume auto --quiet ${THREADS:+--threads "$THREADS"} \
        "train.tokens=$count" "seed=$seed" eval.every=1000000000 report.html=false "${common[@]}" "$@"
}

common=("$@")
warm=ternary_warmup.shape=linear norms=model.insert_sub_norms=true
kl="distill.temperature=2 distill.logits=0.5 distill.cross_entropy=0.5"
for seed in $seeds; do
    train "teacher-$seed" "$tokens" "$seed" model.quantise=false model.sub_norms=false
    train "scratch-$seed" "$tokens" "$seed"
    teacher=$(cd "$out/teacher-$seed/final" && pwd)
    for way in $ways; do
        case $way in
            direct) words= ;;
            lambda) words=$warm ;;
            subnorms) words=$norms ;;
            both) words="$warm $norms" ;;
            logits) words="distill.teacher=$teacher $kl" ;;
            warm-logits) words="$warm distill.teacher=$teacher $kl" ;;
            all) words="$warm $norms distill.teacher=$teacher $kl" ;;
            relations) words="$warm $norms distill.teacher=$teacher $kl distill.relations=${RELATIONS:-1}" ;;
            *) echo "no such way: $way" >&2; exit 2 ;;
        esac
        for budget in $budgets; do
            # shellcheck disable=SC2086
            train "$way-$budget-$seed" "$((tokens * budget / 100))" "$((seed + 100))" \
                "model.init=$teacher" model.quantise=true \
                "phase.main.learning_rate={ shape = \"linear\", peak = $rate, end = 0.0 }" \
                'phase.main.weight_decay={ shape = "constant", value = 0.0 }' $words
        done
    done
done

python3 - "$out" "$seeds" "$budgets" "$ways" <<'PYTHON'
import json, pathlib, statistics, sys

out, (seeds, budgets, ways) = pathlib.Path(sys.argv[1]), (word.split() for word in sys.argv[2:5])


def loss(name):
    """The last held-out loss of a run: the mean over its sets."""
    lines = map(json.loads, open(out / name / "metrics.jsonl"))
    last = [line["eval"] for line in lines if "eval" in line][-1]
    return statistics.mean(one["nll_per_token"] for one in last.values())


def cell(names):
    losses = [loss(name) for name in names]
    error = statistics.stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else float("nan")
    return f"{statistics.mean(losses):.4f} ± {error:.4f}"


print(f"{'':12}" + "".join(f"{budget + ' %':>18}" for budget in budgets))
for way in ways:
    cells = [cell(f"{way}-{budget}-{seed}" for seed in seeds) for budget in budgets]
    print(f"{way:12}" + "".join(f"{text:>18}" for text in cells))
for name in ["scratch", "teacher"]:
    print(f"{name:12}{cell(f'{name}-{seed}' for seed in seeds):>{18 * len(budgets)}}")
PYTHON
