//! No two files of a crate import each other, directly or through others.
//!
//! A file imports another when it names an item that is defined there: by `use`, or by a path from
//! `crate`. A re-export (`pub use`) is followed to the defining file and is no import itself. Tests
//! are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{files, root};

/// The sources of a crate by module path: `["train", "step", "adamw"]` → text.
type Modules = BTreeMap<Vec<String>, String>;

fn modules(folder: &str) -> Modules {
    let mut found = Modules::new();
    for path in files(folder, "rs") {
        let inside = path.strip_prefix(root().join(folder)).unwrap().with_extension("");
        let mut module: Vec<String> =
            inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.iter().any(|part| part.ends_with("tests")) {
            continue;
        }
        if ["mod", "lib", "main"].contains(&module.last().unwrap().as_str()) {
            module.pop();
        }
        let text = fs_err::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap());
        // A crate with a library and a program has two roots; they are one module here.
        found.entry(module).or_default().push_str(&code.collect::<Vec<_>>().join("\n"));
    }
    found
}

/// `a::{b, c::{d}}` → `a::b`, `a::c::d`.
fn expand(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else {
        return vec![path.split(" as ").next().unwrap().trim().to_owned()];
    };
    let (mut depth, mut parts, mut part) = (0, Vec::new(), String::new());
    for c in rest.trim_end().strip_suffix('}').unwrap_or(rest).chars() {
        match c {
            ',' if depth == 0 => parts.push(std::mem::take(&mut part)),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                part.push(c);
            }
        }
    }
    parts.push(part);
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expand(&format!("{before}{}", part.trim()))).collect()
}

/// The paths that a file names with `use`, and whether it re-exports them.
fn uses(text: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    for statement in text.split(';') {
        let words: Vec<&str> = statement.split_whitespace().collect();
        let Some(at) = words.iter().position(|word| *word == "use") else { continue };
        let public = at > 0 && words[at - 1].starts_with("pub");
        let path = words[at + 1..].join(" ");
        found.extend(expand(&path).into_iter().map(|path| (public, path)));
    }
    let inline = text.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "_:".contains(c)));
        (false, format!("crate::{}", &rest[..end.unwrap_or(rest.len())]))
    });
    // One that ends in `::` is the beginning of a `use` with braces, which is found above.
    let inline = inline.filter(|(_, path)| !path.ends_with("::"));
    found.extend(inline);
    found
}

/// The module that defines what `path`, named in `from`, leads to.
fn resolve(modules: &Modules, from: &[String], path: &str) -> Option<Vec<String>> {
    let mut parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
    let mut at = from.to_vec();
    let first = *parts.first()?;
    match first {
        "crate" => at.clear(),
        "self" | "super" => {}
        child if modules.contains_key(&[from, &[child.to_owned()]].concat()) => {
            parts.insert(0, "self");
        }
        _ => return None,
    }
    let mut parts = parts.into_iter().skip(usize::from(first != "super")).peekable();
    while let Some(part) = parts.peek() {
        let below = [at.as_slice(), &[(*part).to_owned()]].concat();
        if *part == "super" {
            at.pop();
        } else if modules.contains_key(&below) {
            at = below;
        } else {
            break;
        }
        parts.next();
    }
    // A path to a module itself, or the name of an item. Follow a re-export to where it comes from.
    let Some(name) = parts.next() else { return Some(at) };
    let reexport = uses(&modules[&at])
        .into_iter()
        .find(|(public, path)| *public && path.rsplit("::").next() == Some(name));
    match reexport {
        Some((_, path)) => resolve(modules, &at, &path).or(Some(at)),
        None => Some(at),
    }
}

/// Every module that `from` reaches over imports.
fn reached(
    imports: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
    from: &[String],
) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut open = vec![from.to_vec()];
    while let Some(module) = open.pop() {
        for next in imports.get(&module).into_iter().flatten() {
            if found.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    found
}

fn circles(folder: &str) -> Vec<String> {
    assert!(Path::new(root()).join(folder).is_dir(), "{folder}");
    let modules = modules(folder);
    let mut imports: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (module, text) in &modules {
        for (_, path) in uses(text).into_iter().filter(|(public, _)| !public) {
            if let Some(target) = resolve(&modules, module, &path).filter(|to| to != module) {
                imports.entry(module.clone()).or_default().insert(target);
            }
        }
    }
    // A crate of one or two files may have none.
    assert!(modules.len() <= 3 || !imports.is_empty(), "{folder}: the scanner finds imports");
    let in_circle = modules.keys().filter(|module| reached(&imports, module).contains(*module));
    in_circle.map(|module| format!("{folder}/{}", module.join("/"))).collect()
}

#[test]
fn no_files_import_each_other() {
    let crates =
        ["src", "stories/src", "data/src", "report/src", "export/format/src", "export/text/src"];
    let engine = [
        "export/terminal/src",
        "export/kernels/src",
        "export/engine/src",
        "export/chat/src",
        "export/serve/src",
        "export/bitnet/src",
    ];
    let found: Vec<String> =
        crates.iter().chain(&engine).flat_map(|folder| circles(folder)).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_scanner_of_imports_expands_braces() {
    let found = expand("a::{b, c::{d, self}, e as f}");
    assert_eq!(found, ["a::b", "a::c::d", "a::c::self", "a::e"]);
    let found = uses("pub use x::Y;\nuse z::{A, B};\nlet c = crate::d::e(1);");
    let paths: Vec<_> = found.iter().map(|(public, path)| (*public, path.as_str())).collect();
    assert_eq!(paths, [(true, "x::Y"), (false, "z::A"), (false, "z::B"), (false, "crate::d::e")]);
}
