#!/usr/bin/env bash
# Do the programs that people use get answers from `bitnet serve`? curl, the openai and anthropic packages for
# Python, the openai package for JavaScript, and the page in Debian's chromium, driven by playwright-core.
#
# Trains a model for a moment and serves it on a free port. Needs Python 3 and the Python package index; for
# JavaScript npm and its registry, for the page chromium too, and what cannot be had is named and left out.
# Everything goes into a directory of its own (default: a new temporary one).
#
#   scripts/serve_clients.sh [DIR]
#   PROFILE=debug scripts/serve_clients.sh ...        with what `cargo test` built
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-$(mktemp -d)}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cd "$root"

profile=${PROFILE:-release}
if [ "$profile" = release ]; then cargo build --release --quiet -p bitnet-train -p bitnet; fi
bin=${CARGO_TARGET_DIR:-target}/$profile

if [ ! -x "$dir/venv/bin/python" ]; then python3 -m venv "$dir/venv"; fi
"$dir/venv/bin/pip" install --quiet openai==3.57.0 anthropic==2.14.0

if [ ! -d "$dir/served/export/hf-packed" ]; then
    "$bin/bitnet-train" --recipe recipes/quickstart/pretrain.toml --out "$dir/served" --quiet \
        train.steps=2 optimizer.warmup_steps=1 data.generate.stories=200 'export.formats=["hf-packed"]' > "$dir/train.log"
fi

"$bin/bitnet" serve --model "$dir/served/export/hf-packed" --port 0 > "$dir/address" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    if [ -s "$dir/address" ]; then break; fi
    kill -0 "$server"
    sleep 0.1
done
base=$(sed 's/^listening on //' "$dir/address")

"$dir/venv/bin/python" scripts/check_server.py "$base"

# Installs packages for JavaScript in a folder of their own, where npm has them.
fetch() {
    command -v npm >/dev/null && mkdir -p "$dir/$1" && (cd "$dir/$1" && npm install --silent --no-audit --no-fund "$2")
}

if fetch client openai@6.49.0; then
    (cd "$dir/client" && timeout 120 node "$root/scripts/check_client.mjs" "$base")
else
    echo "left out: openai for JavaScript, which needs npm and its registry"
fi

browser=$(command -v chromium || true)
if [ -n "$browser" ] && fetch page playwright-core@1.65.1; then
    (cd "$dir/page" && timeout 120 node "$root/scripts/check_page.mjs" "$base" "$browser")
else
    echo "left out: the page, which needs chromium, npm and its registry"
fi
