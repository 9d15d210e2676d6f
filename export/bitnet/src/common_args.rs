//! Flags that several commands have.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct AdapterArgs {
    /// Adapter folder of the model, in PEFT's layout: a side adapter runs beside the codes, a
    /// latent one is merged into a model with latents
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// Precision of the key-value cache; f16 takes half the memory
    #[arg(long, value_enum, value_name = "f32|f16", default_value = "f32")]
    pub(crate) cache: CacheArg,
}

/// Precision of the key-value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheArg {
    F32,
    F16,
}

/// Precision of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HeadArg {
    File,
    Int8,
}

#[derive(Debug, Args)]
pub(crate) struct ThreadArgs {
    /// Worker threads [default: the cores this process may run on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Say more on stderr: kernel, threads, memory, speed
    #[arg(short, long)]
    pub(crate) verbose: bool,
}
