#!/usr/bin/env bash
# How much of a machine's speed is left when ranks share it?
#
#   cargo build --release --features mpi
#   scripts/bench_ranks.sh s m
#
# For each config and precision, ROUNDS times in turn: one process with a thread for each of RANKS
# cores, RANKS ranks with a thread each, and the same with a sharded optimizer. Prints medians of the
# tokens a second, their ratio to the one process, the share of a step in which gradients are
# exchanged (or waited for), and the largest memory of a rank. `s` has 8 rows of 256, `m` 4 of 512.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${PROGRAM:-target/release/bitnet-train}
ranks=${RANKS:-2} rounds=${ROUNDS:-5} steps=${STEPS:-8} precisions=${PRECISIONS:-f32 bf16}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
results=$(mktemp)
trap 'rm -f "$results"' EXIT

for config in "$@"; do
    case $config in
        s) rows=8 time=256 ;;
        m) rows=4 time=512 ;;
        *) echo "unknown config $config; expected s or m" >&2 && exit 2 ;;
    esac
    for precision in $precisions; do
        bench=("$program" bench --config "configs/$config.toml" --seq-len $time --batch $rows
            --steps "$steps" --precision "$precision" --json)
        for _ in $(seq "$rounds"); do
            record() { tail -1 | sed "s/^/$config $precision $1 /" >>"$results"; }
            "${bench[@]}" --threads "$ranks" 2>/dev/null | record "one process"
            mpirun -n "$ranks" "${bench[@]}" 2>/dev/null | record "$ranks ranks"
            mpirun -n "$ranks" "${bench[@]}" --shard-optimizer 2>/dev/null | record "$ranks, sharded"
        done
    done
done

python3 - "$results" <<'PYTHON'
import json, statistics, sys
rows = {}
for line in open(sys.argv[1]):
    name, data = line[: line.index("{")].strip(), json.loads(line[line.index("{"):])
    config, precision, who = name.split(" ", 2)
    rows.setdefault((config, precision), {}).setdefault(who, []).append(data)
print("| config | operands | who | tokens/s | ratio | exchange | MB a rank |")
print("|---|---|---|---|---|---|---|")
for (config, precision), people in rows.items():
    speeds = {who: [run["tokens_per_second"] for run in runs] for who, runs in people.items()}
    for who, runs in people.items():
        # Runs of one round stand beside each other; noise that lasts longer than a round cancels.
        ratio = statistics.median(a / b for a, b in zip(speeds[who], speeds["one process"]))
        share = statistics.median(run["exchange_share"] for run in runs)
        memory = max(max(run["peak_rss_bytes_by_rank"]) for run in runs) / 1e6
        print(f"| {config} | {precision} | {who} | {statistics.median(speeds[who]):,.0f} | "
              f"{ratio:.2f} | {100 * share:.1f} % | {memory:.0f} |")
PYTHON
