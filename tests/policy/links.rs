//! Every relative link of the documentation leads somewhere, and nothing in it or in a recipe leaves
//! the repository.

use std::path::PathBuf;

use super::{files, root};

fn pages() -> Vec<PathBuf> {
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    let top = top.iter().map(|name| root().join(name));
    top.chain(files("docs/src", "md")).chain(files("recipes", "md")).collect()
}

/// The targets of `[text](target)` that are files.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let targets = targets.map(|target| target.split('#').next().unwrap_or_default());
    targets.filter(|target| !target.is_empty() && !target.contains("://")).collect()
}

#[test]
fn every_link_of_the_documentation_leads_somewhere() {
    let mut checked = 0;
    for page in pages() {
        let text = fs_err::read_to_string(&page).unwrap();
        for link in links(&text) {
            let target = page.parent().unwrap().join(link);
            assert!(target.exists(), "{}: {link}", page.display());
            let inside = target.canonicalize().unwrap().starts_with(root().canonicalize().unwrap());
            assert!(inside, "{}: {link} leaves the repository", page.display());
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked} links were found");
}

#[test]
fn the_summary_of_the_book_lists_every_page() {
    let summary = fs_err::read_to_string(root().join("docs/src/SUMMARY.md")).unwrap();
    let listed = links(&summary);
    for page in files("docs/src", "md") {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(name == "SUMMARY.md" || listed.contains(&name), "{name}");
    }
}

#[test]
fn no_recipe_reads_outside_the_repository() {
    for path in files("recipes", "toml") {
        let folder = path.parent().unwrap();
        let depth = folder.strip_prefix(root()).unwrap().components().count();
        let text = fs_err::read_to_string(&path).unwrap();
        for line in text.lines() {
            let code = line.split('#').next().unwrap();
            let up = code.matches("../").count();
            let leaves = up > depth && code.contains(&"../".repeat(depth + 1));
            assert!(!leaves && !code.contains("\"/"), "{}: {line}", path.display());
        }
    }
}

#[test]
fn the_scanner_of_links_leaves_out_anchors_and_addresses() {
    let text = "[a](b.md#c) [d](https://e.org) [f](#g) [h](i/j.md)";
    assert_eq!(links(text), ["b.md", "i/j.md"]);
}
