//! Runs packed BitNet models from the command line.
fn main() {}
