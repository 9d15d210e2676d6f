//! The flags of `bitnet serve`. `serve` interprets them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bitnet_serve::PromptBos;
use clap::{Args, ValueEnum};

use crate::common_args::{AdapterArgs, CacheArgs, HeadArg, ThreadArgs};

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Model folder or GGUF file
    #[arg(value_name = "MODEL", required_unless_present_any = ["model", "list_endpoints"], conflicts_with = "model")]
    positional: Option<PathBuf>,
    /// The same
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Address to listen on; one that other machines reach needs --api-key-file
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = parse_host)]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub(crate) port: u16,
    /// File with one accepted key a line; without one no key is asked for
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Listen on an address that other machines reach without asking for a key
    #[arg(long)]
    pub(crate) insecure_no_auth: bool,
    /// Answers that are made together
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) slots: u16,
    /// Longest context in tokens, prompt and answer together [default: the model's, as memory
    /// allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) context: Option<u32>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Precision of the head (and a tied embedding): as in the file, which is what `bitnet score`
    /// takes, or 8 bits with a scale per row
    #[arg(long, value_enum, value_name = "file|int8", default_value = "int8")]
    pub(crate) head: HeadArg,
    /// Another origin whose pages may ask, such as `https://chat.example`; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,
    /// Whether a prompt of /v1/completions begins with the token that begins a document: as the
    /// tokenizer says, always, or only if the prompt has it
    #[arg(long, value_enum, value_name = "auto|always|never", default_value = "auto")]
    pub(crate) bos: PromptBosArg,
    /// Seconds that answers in work may take after SIGTERM
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub(crate) drain_timeout: u32,
    /// Most memory of the process in bytes [default: four fifths of what is free]
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_memory: Option<u64>,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print the endpoints, one a line, and end
    #[arg(long)]
    pub(crate) list_endpoints: bool,
}

impl ServeArgs {
    pub(crate) fn path(&self) -> &Path {
        self.positional.as_ref().or(self.model.as_ref()).expect("clap requires one of them")
    }
}

/// The token before a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PromptBosArg {
    Auto,
    Always,
    Never,
}

impl PromptBosArg {
    pub(crate) fn policy(self) -> PromptBos {
        match self {
            Self::Auto => PromptBos::Auto,
            Self::Always => PromptBos::Always,
            Self::Never => PromptBos::Never,
        }
    }
}

fn parse_host(text: &str) -> Result<IpAddr, String> {
    // No names are resolved: what is listened on must not depend on a resolver.
    let text = if text == "localhost" { "127.0.0.1" } else { text };
    text.parse().map_err(|_| "expected an IP address, such as 127.0.0.1 or 0.0.0.0".to_owned())
}
