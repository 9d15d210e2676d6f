//! Paths as messages show them: relative to the working directory where they are in it.

use std::path::{Path, PathBuf};

/// `path`, without the working directory in front; a command may repeat it as it stands.
pub fn shown(path: &Path) -> PathBuf {
    match std::env::current_dir() {
        Ok(here) => relative_to(path, &here),
        Err(_) => path.to_owned(),
    }
}

fn relative_to(path: &Path, here: &Path) -> PathBuf {
    match path.strip_prefix(here) {
        Ok(rest) if rest.as_os_str().is_empty() => PathBuf::from("."),
        Ok(rest) => rest.to_owned(),
        Err(_) => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_working_directory_is_shown_from_there() {
        let shown = |path: &str| relative_to(Path::new(path), Path::new("/home/me"));
        assert_eq!(shown("/home/me/runs/a"), Path::new("runs/a"));
        assert_eq!(shown("/home/me"), Path::new("."));
        for kept in ["/home/meadow/runs", "runs/a", "/srv/home/me/a"] {
            assert_eq!(shown(kept), Path::new(kept));
        }
    }
}
