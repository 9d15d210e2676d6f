//! Rules of the project that a machine can check.

mod imports;
mod links;
mod names;

use std::path::{Path, PathBuf};
use std::process::Command;

use bitnet_format::ModelSpec;
use bitnet_train::recipe::{self, Plan};
use bitnet_train::run;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(root().join(dir)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let inner = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.extend(files(&inner, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let folders = ["src", "export", "stories", "data", "report", "tests", "examples"];
    let paths = folders.iter().flat_map(|folder| files(folder, "rs"));
    paths.map(|path| (path.clone(), fs_err::read_to_string(path).unwrap())).collect()
}

#[test]
fn every_recipe_parses() {
    let recipes = files("recipes", "toml");
    assert!(recipes.len() >= 10);
    let mut pipelines = 0;
    for path in recipes {
        let plan = recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        if let Plan::Pipeline(files) = plan {
            pipelines += 1;
            let stages = run::pipeline(&files, &[], "runs/x".as_ref()).unwrap();
            assert_eq!(stages.len(), files.len());
        }
    }
    assert_eq!(pipelines, 1, "the quickstart");
}

#[test]
fn every_config_has_the_size_its_name_says() {
    for (name, parameters) in [
        ("tiny", 1_444_608),
        ("s", 5_407_520),
        ("m", 27_417_856),
        ("125m", 113_307_904),
        ("700m", 730_019_328),
        ("2b4t", 2_412_820_480),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-8b", 8_190_735_360),
    ] {
        let path = root().join(format!("configs/{name}.toml"));
        let spec: ModelSpec = toml::from_str(&fs_err::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(spec.parameters(), parameters, "{name}");
        let gguf = |size: usize| size.is_multiple_of(256);
        let holds = gguf(spec.hidden_size) && gguf(spec.intermediate_size);
        assert_eq!(holds, !["s", "m"].contains(&name), "{name}: every K a multiple of 256");
    }
}

#[test]
fn no_crate_but_the_trainer_depends_on_burn() {
    for name in [
        "bitnet-format",
        "bitnet-terminal",
        "bitnet-text",
        "bitnet-kernels",
        "bitnet-engine",
        "bitnet-chat",
        "bitnet-serve",
        "bitnet-energy",
        "bitnet-parquet",
        "bitnet-eval",
        "bitnet",
        "bitnet-stories",
        "bitnet-data",
        "bitnet-report",
    ] {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--package", name, "--locked", "--offline", "--prefix", "none"])
            .args(["--edges", "normal,build,dev"])
            .current_dir(root())
            .output()
            .unwrap();
        let tree = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(tree.starts_with(name), "{tree}");
        for line in tree.lines() {
            assert!(
                !line.starts_with("burn") && !line.starts_with("bitnet-train"),
                "{name}: {line}"
            );
        }
    }
}

#[test]
fn every_file_says_in_its_first_lines_what_it_is_for() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{}", path.display());
    }
}

#[test]
fn one_file_names_mpi() {
    for (path, text) in sources() {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        let names = text.lines().any(|line| {
            let code = line.split("//").next().unwrap();
            // The engine itself, and the module that tests it.
            code.contains("mpi::") && !code.contains(" mpi::Mpi") && !code.contains("super::mpi::")
        });
        assert!(!names || name == "src/distributed/mpi.rs" || name == "tests/policy.rs", "{name}");
    }
}

#[test]
fn unsafe_stays_in_the_listed_files() {
    let allowed = [
        "export/kernels/src/attention.rs",
        "export/kernels/src/attention/body.rs",
        "export/kernels/src/attention/vector.rs",
        "export/kernels/src/attention/x86.rs",
        "export/kernels/src/amx.rs",
        "export/kernels/src/amx/codes.rs",
        "export/kernels/src/amx/cpu.rs",
        "export/kernels/src/amx/tiles.rs",
        "export/kernels/src/amx_bf16.rs",
        "export/kernels/src/avx2.rs",
        "export/kernels/src/avx2/vectors.rs",
        "export/kernels/src/avx512.rs",
        "export/kernels/src/avx512/rescale.rs",
        "export/kernels/src/avx_vnni.rs",
        "export/kernels/src/dot4.rs",
        "export/kernels/src/float_codes_x86.rs",
        "export/kernels/src/float_tile.rs",
        "export/kernels/src/groups.rs",
        "export/kernels/src/memory.rs",
        "export/kernels/src/neon.rs",
        "export/kernels/src/pack.rs",
        "export/kernels/src/words.rs",
        "export/kernels/src/prefetch.rs",
        "export/kernels/src/unwritten.rs",
        "export/engine/src/threads.rs",
        "export/format/src/allocation.rs",
        "export/format/src/map.rs",
        "export/text/src/chat/memory.rs",
        "src/allocator.rs",
    ];
    for (path, text) in sources() {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().unwrap();
            ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word))
                && !code.contains('"')
        });
        assert!(!uses || allowed.contains(&name), "{name}");
    }
}

/// `println!` and its like panic where the stream is closed or the disk is full.
#[test]
fn all_printing_goes_through_one_file_of_each_program() {
    for (path, text) in sources() {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        let program = name.starts_with("src/") || name.starts_with("export/bitnet/src/");
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let prints = text.lines().any(|line| {
            let code = line.split("//").next().unwrap();
            code.contains("print!(") || code.contains("println!(")
        });
        let test = name.contains("/tests") || name == "data/src/fixtures.rs";
        assert!(!program || !prints || test, "{name}");
    }
}

#[test]
fn one_file_makes_the_calls_of_one_operating_system() {
    for (path, text) in sources() {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        // Tests may make links, and so does the hub's cache.
        let own = name == "src/platform.rs" || name.starts_with("tests/");
        // The signals of the other program.
        let others = ["export/bitnet/src/output.rs", "export/serve/src/signals.rs"];
        let own = own || others.contains(&name);
        // Advice on memory belongs to the memory it is about.
        let own = own || name.starts_with("src/hub") || name == "export/kernels/src/memory.rs";
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let calls = ["std::os::unix", "rustix::", "libc::", "cfg(unix)"];
        assert!(own || calls.iter().all(|call| !text.contains(call)), "{name}");
    }
}

#[test]
fn one_file_names_the_backends() {
    for (path, text) in sources() {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        let own = name == "src/device.rs" || !name.starts_with("src/");
        // The native operations work on flex's own buffers.
        let own = own || name.starts_with("src/ops/");
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let makers =
            ["flex", "ndarray", "wgpu", "vulkan", "cuda"].map(|one| format!("Device::{one}("));
        let crates = ["burn_flex", "burn_ndarray", "burn_wgpu", "burn_cuda", "DeviceKind"];
        let named = makers.iter().any(|maker| text.contains(maker));
        assert!(own || !named && crates.iter().all(|one| !text.contains(one)), "{name}");
    }
}

#[test]
fn a_plain_build_has_no_device_but_the_cpu() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--package", "bitnet-train", "--locked", "--offline", "--prefix", "none"])
        .args(["--edges", "normal,build"])
        .current_dir(root())
        .output()
        .unwrap();
    let tree = String::from_utf8_lossy(&tree.stdout);
    assert!(tree.contains("burn-flex"), "{tree}");
    for heavy in ["cubecl-runtime", "wgpu", "cudarc", "burn-cubecl", "burn-ndarray", "burn-fusion"]
    {
        let found = tree.lines().find(|line| line.starts_with(heavy));
        assert_eq!(found, None, "{heavy}");
    }
}

#[test]
fn the_readme_gives_the_commands_that_ci_and_the_recipes_use() {
    let readme = fs_err::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains("cargo run --release -- --recipe recipes/quickstart.toml"));
    let ci = fs_err::read_to_string(root().join(".ci/run")).unwrap();
    for (command, text) in [("cargo test --workspace", &readme), ("cargo test --workspace", &ci)] {
        assert!(text.contains(command), "{command}");
    }
}
