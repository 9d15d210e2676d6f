//! `bitnet serve`: the model behind HTTP. The endpoints are those of `bitnet_serve`; this
//! opens the model, counts the memory and ends with the documented code.

use std::path::Path;
use std::time::Duration;

use bitnet_engine::{CachePrecision, KvCache, Model};
use bitnet_format::figures::size;
use bitnet_format::process::{free_memory, peak_memory};
use bitnet_serve::{ServeEnd, ServeOptions, ServedModel, list_endpoints, listen, serve};
use bitnet_text::ChatTemplate;

use crate::cli::CacheArg;
use crate::failure::{EndedBySignal, TooLarge, WrongFlag};
use crate::key_file;
use crate::open;
use crate::output::{note, result_line};
use crate::serve_args::ServeArgs;

/// What the process takes beside the model, the keys and values, and the logits.
const OTHER_BYTES: u64 = 64 << 20;

/// The shortest context that is of any use.
const SHORTEST_CONTEXT: usize = 256;

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    if args.list_endpoints {
        return Ok(list_endpoints().iter().try_for_each(|line| result_line(line))?);
    }
    let mut options = options(args)?;
    // First, so that a port in use is known before the model is read.
    let listener = listen(&options)?;
    let address = listener.local_addr()?;
    let model = open::model(args.path(), args.head, &args.adapter)?;
    let tokenizer = open::tokenizer(args.path(), &model)?;
    let template = ChatTemplate::of_model(args.path(), &tokenizer)?;
    for warning in template.warnings(&tokenizer) {
        note(&format!("note: {warning}"));
    }
    if args.threads.verbose {
        note(&open::backend_info(&model, options.threads));
    }
    let memory = Memory::of(args, &model, free_memory())?;
    (options.context, options.cache_bytes) = (Some(memory.context), memory.cache_bytes);
    let served = ServedModel { name: name(args.path()), model, tokenizer, template };
    let mut told = Ok(());
    let ready = || told = result_line(&format!("listening on http://{address}"));
    let end = serve(listener, served, &options, ready)?;
    told?;
    Err(EndedBySignal(match end {
        ServeEnd::Interrupt => 130,
        ServeEnd::Terminate => 143,
    })
    .into())
}

fn options(args: &ServeArgs) -> anyhow::Result<ServeOptions> {
    let keys = args.api_key_file.as_deref().map(key_file::keys).transpose()?.unwrap_or_default();
    if keys.is_empty() && !args.host.is_loopback() && !args.insecure_no_auth {
        let what = format!(
            "--host {}: other machines reach this address; expected --api-key-file FILE, or \
             --insecure-no-auth to let everybody ask",
            args.host
        );
        return Err(WrongFlag(what).into());
    }
    Ok(ServeOptions {
        host: args.host,
        port: args.port,
        keys,
        slots: args.slots.into(),
        context: None,
        cache: precision(args),
        cache_bytes: 0,
        threads: open::count(&args.threads),
        cors_origins: args.cors_origin.iter().map(|it| origin(it)).collect::<Result<_, _>>()?,
        bos: args.bos.policy(),
        drain_timeout: Duration::from_secs(args.drain_timeout.into()),
    })
}

fn precision(args: &ServeArgs) -> CachePrecision {
    match args.cache.cache {
        CacheArg::F32 => CachePrecision::F32,
        CacheArg::F16 => CachePrecision::F16,
    }
}

/// An origin as browsers send it: scheme, host and port alone.
fn origin(text: &str) -> Result<String, WrongFlag> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let is_host = |host: &str| {
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-.:[]".contains(letter);
        !host.is_empty() && host.chars().all(allowed)
    };
    match host {
        Some(host) if is_host(host) => Ok(text.to_owned()),
        _ => Err(WrongFlag(format!(
            "--cors-origin {text}: expected scheme, host and port alone, such as https://chat.example"
        ))),
    }
}

/// What clients call the model: the name of its file or folder.
fn name(path: &Path) -> String {
    // `.` and links have no name of their own.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// How the memory is shared out.
struct Memory {
    /// Tokens of the longest context.
    context: usize,
    /// Bytes of all keys and values.
    cache_bytes: usize,
}

impl Memory {
    /// Gives the keys and values what the model leaves; at least one whole context must fit.
    fn of(args: &ServeArgs, model: &Model, free: Option<u64>) -> anyhow::Result<Self> {
        let spec = model.spec();
        let limit = spec.context_length();
        let asked = args.context.map(|context| context as usize);
        if let Some(asked) = asked.filter(|asked| *asked > limit) {
            return Err(WrongFlag(format!(
                "--context {asked}: expected at most the model's {limit}"
            ))
            .into());
        }
        // Logits of a step, and of a scored chunk.
        let logits = (u64::from(args.slots) + 32) * 4 * spec.vocab_size as u64;
        // The peak has what loading took for a time, which the allocator may keep.
        let used = peak_memory().unwrap_or_default() + OTHER_BYTES + logits;
        // A fifth of what is free is left to others, and to what is not counted here.
        let most = args.max_memory.or_else(|| free.map(|free| used + free / 5 * 4));
        let left = most.unwrap_or(u64::MAX).saturating_sub(used);
        let cache_bytes = usize::try_from(left).unwrap_or(usize::MAX);
        let bytes = |tokens: usize| {
            // Contexts in steps, so that the one that is told is a round number.
            KvCache::bytes_for(spec, precision(args), tokens.next_multiple_of(SHORTEST_CONTEXT))
        };
        let wanted = asked.unwrap_or(limit);
        if bytes(wanted) <= cache_bytes {
            return Ok(Self { context: wanted, cache_bytes });
        }
        let fitting = cache_bytes / (bytes(SHORTEST_CONTEXT) / SHORTEST_CONTEXT).max(1);
        let fitting = fitting / SHORTEST_CONTEXT * SHORTEST_CONTEXT;
        if asked.is_some() || fitting == 0 {
            let least = bytes(asked.unwrap_or(SHORTEST_CONTEXT)) as u64;
            return Err(TooLarge(format!(
                "--max-memory: {} are left for keys and values beside the model's {}, and a context takes \
                 {}; expected more memory, a shorter --context, or --cache f16",
                size(left), size(used), size(least)
            ))
            .into());
        }
        note(&format!(
            "note: a context of {fitting} tokens fits into memory, not the model's {limit}"
        ));
        Ok(Self { context: fitting, cache_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_scheme_host_and_port() {
        for good in ["https://a.example", "http://localhost:3000", "http://[::1]:80"] {
            assert!(origin(good).is_ok(), "{good}");
        }
        for bad in ["*", "a.example", "https://a.example/", "https://", "ftp://a", "https://a b"] {
            assert!(origin(bad).unwrap_err().0.starts_with("--cors-origin"), "{bad}");
        }
    }
}
