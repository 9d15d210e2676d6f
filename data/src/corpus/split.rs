//! Holds out a share of the rows.

use super::filter::RowFilter;
use crate::document::SourceLocation;
use crate::held_out::HeldOutShare;

impl RowFilter for HeldOutShare {
    type Mark = bool;

    fn mark(&self, text: &str) -> bool {
        self.holds_out(text)
    }

    fn reason(&mut self, mark: bool, _: &SourceLocation) -> Option<String> {
        mark.then(|| "held out".to_owned())
    }
}
