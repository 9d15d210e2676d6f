#!/usr/bin/env bash
# Do other people's programs read what we write, and do they compute what we compute?
#
# Makes three small models (relu2 with sub-norms, SiLU with sub-norms, Llama-shaped), exports each,
# and has transformers, peft, gguf-py and llama.cpp read the files. The models are trained for a moment,
# or drawn at random where only weights are compared (gguf). Needs Python 3 and the Python package
# index; everything goes into a directory of its own (default: a new temporary one).
#
#   scripts/readers.sh [DIR] [gguf|transformers|peft|llama]...    default: all four
#   scripts/readers.sh DIR bitnet.cpp=PROGRAM ik_llama.cpp=PROGRAM
#       PROGRAM: a llama-cli that you built of them (llama-quantize beside that of ik_llama.cpp);
#       bitnet.cpp: of a state before July 2026 or a fork, with relu2 in its graph
#   PROFILE=debug scripts/readers.sh ...                      with what `cargo test` built
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-$(mktemp -d)}
shift || true
readers=${*:-gguf transformers peft llama}
mkdir -p "$dir"
# All paths are of the folder it was called in.
dir=$(cd "$dir" && pwd)
named=
for reader in $readers; do
    case $reader in
        *=*)
            [ -x "${reader#*=}" ] || { echo "$reader: no program there" >&2; exit 2; }
            reader=${reader%%=*}=$(realpath "${reader#*=}")
            ;;
    esac
    named="$named $reader"
done
readers=${named# }
cd "$root"

packages="numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3"
for reader in $readers; do
    case $reader in
        gguf) packages="$packages gguf==0.19.0" ;;
        transformers) packages="$packages torch==2.15.0 transformers==5.23.0 accelerate==1.15.0" ;;
        peft) packages="$packages torch==2.15.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2" ;;
        llama) packages="$packages llama-cpp-python==0.3.36" ;;
        bitnet.cpp=* | ik_llama.cpp=*) ;;
        *) echo "unknown reader $reader; expected gguf, transformers, peft, llama, bitnet.cpp=PROGRAM" \
            "or ik_llama.cpp=PROGRAM" >&2; exit 2 ;;
    esac
done
profile=${PROFILE:-release}
if [ "$profile" = release ]; then cargo build --release --quiet -p bitnet-train -p bitnet; fi
train=target/$profile/bitnet-train

if [ ! -x "$dir/venv/bin/python" ]; then python3 -m venv "$dir/venv"; fi
# shellcheck disable=SC2086
"$dir/venv/bin/pip" install --quiet $packages

model() { # name, keys of the config
    local name=$1
    shift
    if [ ! -d "$dir/$name/final" ] && [ "$readers" = gguf ]; then
        printf 'hidden_size = 256\nintermediate_size = 512\nnum_hidden_layers = 2\n' > "$dir/$name.toml"
        printf 'num_attention_heads = 8\nnum_key_value_heads = 4\nvocab_size = 512\n' >> "$dir/$name.toml"
        printf '%s\n' "${@#model.}" >> "$dir/$name.toml"
        mkdir -p "$dir/$name"
        "$train" init --config "$dir/$name.toml" --out "$dir/$name/final"
    elif [ ! -d "$dir/$name/final" ]; then
        "$train" --recipe recipes/quickstart/pretrain.toml --out "$dir/$name" --quiet \
            train.steps=150 optimizer.warmup_steps=20 'export.formats=[]' "$@"
    fi
    for format in hf-bf16 hf-packed gguf-i2_s gguf-tq1_0 gguf-tq2_0; do
        "$train" export --model "$dir/$name/final" --format $format --out "$dir/$name/$format" --force
    done
    "$train" export --model "$dir/$name/final" --format hf-packed --linear-class bitlinear \
        --out "$dir/$name/hf-packed-bitlinear" --force
    "$train" export --model "$dir/$name/final" --format gguf-tq2_0 --embedding q8_0 \
        --out "$dir/$name/gguf-tq2_0-q8_0" --force
    "$train" export --model "$dir/$name/final" --format gguf-tq2_0 --embedding q6_k \
        --out "$dir/$name/gguf-tq2_0-q6_k" --force
}
case $readers in
    *=*) model tied model.tie_word_embeddings=true ;;
esac
case " $readers" in
    *" gguf"* | *" transformers"* | *" peft"* | *" llama"*) ;;
    *) exec "$dir/venv/bin/python" scripts/readers.py "$dir" target/$profile/bitnet $readers ;;
esac
model relu2
model silu 'model.hidden_act="silu"' model.tie_word_embeddings=true
model llama 'model.hidden_act="silu"' model.sub_norms=false

"$dir/venv/bin/python" scripts/readers.py "$dir" target/$profile/bitnet $readers
