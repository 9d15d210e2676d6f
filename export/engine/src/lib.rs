//! Runs packed ternary models on a CPU: forward pass, KV cache, sampling. Speaks token ids.
