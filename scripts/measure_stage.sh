#!/usr/bin/env bash
# Runs one of the recipes on a folder of text, conversations and preferences laid out like that of the
# measurements in docs/src/log.md:
#
#   scripts/measure_stage.sh DATA pretrain|sft|dpo [key=value …]
#
# DATA holds pretrain/{general-*,hq-*,val_general,val_hq}.jsonl, sft/*.jsonl, dpo/hh_helpful_{train,val}.jsonl
# and tokenizers/bpe4096/tokenizer.json.
set -euo pipefail
data=$(realpath "$1"); stage=$2; shift 2
cd "$(dirname "$0")/.."
case $stage in
    pretrain) words=("data.sets.general=[\"$data/pretrain/general-*.jsonl\"]"
        "data.sets.hq=[\"$data/pretrain/hq-*.jsonl\"]"
        "data.validation={val_general=[\"$data/pretrain/val_general.jsonl\"],val_hq=[\"$data/pretrain/val_hq.jsonl\"]}"
        "tokenizer={path=\"$data/tokenizers/bpe4096/tokenizer.json\"}") ;;
    sft) words=("data.train=[\"$data/sft/gsm8k.jsonl\",\"$data/sft/hh_helpful_chosen.jsonl\",\"$data/sft/oasst_en.jsonl\",\"$data/sft/self_instruct_human.jsonl\"]"
        "data.validation=[\"$data/sft/val.jsonl\"]") ;;
    dpo) words=("data.train=[\"$data/dpo/hh_helpful_train.jsonl\"]"
        "data.validation=[\"$data/dpo/hh_helpful_val.jsonl\"]") ;;
    *) echo "expected pretrain, sft or dpo, got $stage" >&2; exit 2 ;;
esac
exec target/release/bitnet-train --recipe "recipes/$stage.toml" --out "runs/$stage" "${words[@]}" "$@"
