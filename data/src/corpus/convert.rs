//! Files of any form and shape as one `.jsonl` file in the canonical shape.

use std::path::Path;

use super::reader::{CorpusRequest, RowBatches};
use super::row_file::RowFile;
use crate::error::DataError;
use crate::report::RowReport;

/// Writes every row in its [canonical shape](super::CanonicalRow::to_json), in order. An existing
/// file is replaced.
///
/// # Errors
/// A row that cannot be used, unless such rows are left out; then more of them than their share.
/// Nothing is written then.
pub fn convert(request: &CorpusRequest<'_>, out: &Path) -> Result<RowReport, DataError> {
    let mut rows = RowBatches::of(request)?;
    let mut file = RowFile::create(out)?;
    while let Some(batch) = rows.next(|_, row| row.to_json().to_string())? {
        batch.iter().try_for_each(|(_, line)| file.write(line.as_bytes()))?;
    }
    let report = rows.finish()?;
    file.publish()?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BadRows, DocumentSource, ReadingRules};

    #[test]
    fn files_of_different_forms_become_one_and_a_bad_row_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs_err::write(path("a.csv"), "instruction,output\nq,\"a\nb\"\n").unwrap();
        fs_err::write(path("b.txt"), "plain").unwrap();
        fs_err::write(path("c.json"), r#"[{"prompt":"p","chosen":"x","rejected":"y"},{"no":1}]"#)
            .unwrap();
        let files = ["a.csv", "b.txt", "c.json"].map(path).to_vec();
        let convert = |bad_rows, max_bad_share| {
            let rules = ReadingRules { bad_rows, max_bad_share, ..ReadingRules::default() };
            let source = DocumentSource::Files(files.clone(), rules);
            let request =
                CorpusRequest { source: &source, interrupted: &|| false, progress: &|_, _| {} };
            super::convert(&request, &path("out.jsonl"))
        };
        let error = convert(BadRows::Error, 0.0).unwrap_err().to_string();
        assert!(error.contains("c.json:2 [messages]"), "{error}");
        assert!(!path("out.jsonl").exists());
        let report = convert(BadRows::Skip, 0.5).unwrap();
        assert_eq!((report.rows, report.bad), (4, 1));
        let expected = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\
            \"content\":\"a\\nb\"}]}\n{\"text\":\"plain\"}\n{\"prompt\":[{\"role\":\"user\",\"content\":\"p\"}],\
            \"chosen\":[{\"role\":\"assistant\",\"content\":\"x\"}],\
            \"rejected\":[{\"role\":\"assistant\",\"content\":\"y\"}]}\n";
        assert_eq!(fs_err::read_to_string(path("out.jsonl")).unwrap(), expected);
    }
}
