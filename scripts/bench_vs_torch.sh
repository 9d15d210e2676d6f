#!/usr/bin/env bash
# How fast is training, next to PyTorch on this machine?
#
# Runs `bitnet-train bench` in each precision and the same step in PyTorch (torch_twin.py: eager in bf16,
# compiled in f32 and bf16) in turn, ROUNDS times each, in one go, and prints medians and their ratios to PyTorch's
# fastest form of any precision. Needs Python 3.11, the Python package index and, for the compiled runs, a
# C++ compiler; everything goes into a directory of its own.
#
#   scripts/bench_vs_torch.sh [DIR] [s|m|125m|s512|long|vocab|avx2]...     default: all
#   ROUNDS=5 STEPS=8 THREADS=2 PRECISIONS="f32 bf16 int8" SUMS=chain scripts/bench_vs_torch.sh
#
# SUMS=tiles is for CPUs with AMX (docs/src/devices.md).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-$(mktemp -d)}
shift || true
cases=${*:-s m 125m s512 long vocab avx2}
rounds=${ROUNDS:-5} steps=${STEPS:-8} threads=${THREADS:-2} sums=${SUMS:-chain}
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
        precisions=${PRECISIONS:-f32 bf16 int8}
        case $case in
            s) shape="--config configs/s.toml --seq-len 256 --batch 8" ;;
            m) shape="--config configs/m.toml --seq-len 512 --batch 4" ;;
            125m) shape="--config configs/125m.toml --seq-len 512 --batch 2" ;;
            s512) shape="--config configs/s.toml --seq-len 512 --batch 4" ;;
            long) shape="--config configs/s.toml --seq-len 2048 --batch 1" ;;
            vocab) shape="--config configs/s.toml --seq-len 256 --batch 8 --vocab-size 128256" ;;
            avx2) shape="--config configs/s.toml --seq-len 256 --batch 8" ;;
            *) echo "unknown case $case; expected s, m, 125m, s512, long, vocab or avx2" >&2; exit 2 ;;
        esac
        own=$shape
        if [ "$case" = avx2 ]; then own="$shape --kernel avx2"; fi
        for precision in $precisions; do
            # shellcheck disable=SC2086
            note "$case" "$precision" bitnet-train \
                "$(ours $own --precision "$precision" --bf16-sums "$sums")"
        done
        # With AVX2 forced here, PyTorch still has all it has.
        # shellcheck disable=SC2086
        note "$case" bf16 eager "$(torch $shape --precision bf16)"
        for precision in f32 bf16; do
            if [ "$case$precision" = avx2bf16 ]; then continue; fi
            # shellcheck disable=SC2086
            note "$case" "$precision" compiled "$(torch $shape --precision "$precision" --compile)"
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
print("| | tokens/s | PyTorch's fastest | | ratio | MB | eager bf16 MB | ratio |")
print("|---|---|---|---|---|---|---|---|")
for case, precision, program in runs:
    if program != "bitnet-train":
        continue
    own, eager = (case, precision, program), (case, "bf16", "eager")
    # With AVX2 forced, the peer is f32 with all that PyTorch has.
    of_torch = [key for key in runs if key[0] == case and key[2] != program]
    if case == "avx2":
        of_torch = [key for key in of_torch if key[1] == "f32"]
    best = max(of_torch, key=speed)
    print(
        f"| {case} {precision} | {speed(own):.0f} | {speed(best):.0f} | {best[2]} {best[1]} "
        f"| {speed(own) / speed(best):.2f} | {memory(own):.0f} | {memory(eager):.0f} "
        f"| {memory(own) / memory(eager):.2f} |"
    )
PY
