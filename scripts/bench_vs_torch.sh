#!/usr/bin/env bash
# How fast is training, next to PyTorch on this machine?
#
# Runs `bitnet-train bench` and the same step in PyTorch (torch_twin.py: eager and compiled) in turn,
# ROUNDS times each, in one go, and prints medians and ratios. Needs Python 3.11, the Python package
# index and, for the compiled runs, a C++ compiler; everything goes into a directory of its own.
#
#   scripts/bench_vs_torch.sh [DIR] [s|m|vocab|avx2]...     default: all four
#   ROUNDS=5 STEPS=8 THREADS=2 PRECISIONS="f32 bf16" scripts/bench_vs_torch.sh
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-$(mktemp -d)}
shift || true
cases=${*:-s m vocab avx2}
rounds=${ROUNDS:-5} steps=${STEPS:-8} threads=${THREADS:-2}
mkdir -p "$dir"
cd "$root"
cargo build --release --quiet -p bitnet-train
if [ ! -x "$dir/venv/bin/python" ]; then
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install --quiet torch==2.15.0 numpy==2.4.6
fi

ours() { target/release/bitnet-train bench --json --threads "$threads" --steps "$steps" "$@" 2>/dev/null; }
torch() {
    "$dir/venv/bin/python" scripts/torch_twin.py --threads "$threads" --steps "$steps" "$@" 2>/dev/null |
        tail -n 1
}
note() { # case, precision, program, its line of JSON
    printf '{"case":"%s","precision":"%s","program":"%s","result":%s}\n' "$1" "$2" "$3" "$4" \
        >> "$dir/results.jsonl"
}

: > "$dir/results.jsonl"
for _ in $(seq "$rounds"); do
    for case in $cases; do
        case $case in
            s) shape="--config configs/s.toml --seq-len 256 --batch 8" precisions="${PRECISIONS:-f32 bf16}" ;;
            m) shape="--config configs/m.toml --seq-len 512 --batch 4" precisions="${PRECISIONS:-f32 bf16}" ;;
            vocab) shape="--config configs/s.toml --seq-len 256 --batch 8 --vocab-size 128256"
                precisions="bf16" ;;
            avx2) shape="--config configs/s.toml --seq-len 256 --batch 8" precisions="f32" ;;
            *) echo "unknown case $case; expected s, m, vocab or avx2" >&2; exit 2 ;;
        esac
        for precision in $precisions; do
            own=$shape
            if [ "$case" = avx2 ]; then own="$shape --kernel avx2"; fi
            # shellcheck disable=SC2086
            note "$case" "$precision" bitnet-train "$(ours $own --precision "$precision")"
            # shellcheck disable=SC2086
            note "$case" "$precision" eager "$(torch $shape --precision "$precision")"
            if [ "$case" != avx2 ]; then
                # shellcheck disable=SC2086
                note "$case" "$precision" compiled "$(torch $shape --precision "$precision" --compile)"
            fi
        done
    done
    echo "round done: $(wc -l < "$dir/results.jsonl") runs" >&2
done

"$dir/venv/bin/python" - "$dir/results.jsonl" <<'PY'
import collections, json, statistics, sys

runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    run = json.loads(line)
    runs[run["case"], run["precision"], run["program"]].append(run["result"])
speed = lambda key: statistics.median(r["tokens_per_second"] for r in runs[key])
memory = lambda key: statistics.median(r["peak_rss_bytes"] for r in runs[key]) / 1e6
print("| | tokens/s | PyTorch eager | compiled | ratio to the fastest | MB | eager MB | ratio |")
print("|---|---|---|---|---|---|---|---|")
for case, precision, program in runs:
    if program != "bitnet-train":
        continue
    own, eager = (case, precision, program), (case, precision, "eager")
    compiled = (case, precision, "compiled")
    others = [speed(key) for key in (eager, compiled) if key in runs]
    shown = f"{others[1]:.0f}" if len(others) > 1 else ""
    print(
        f"| {case} {precision} | {speed(own):.0f} | {others[0]:.0f} | {shown} "
        f"| {speed(own) / max(others):.2f} | {memory(own):.0f} | {memory(eager):.0f} "
        f"| {memory(own) / memory(eager):.2f} |"
    )
PY
