//! Over which weights a scale is taken, and what else of a model is quantised: the choices that a
//! config spells `quantiser`, `embedding` and `activations`.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The weights that share a scale.
///
/// In a config `"matrix"`, `"row"`, or a number of consecutive weights of a row: 256, 128 or 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Group {
    /// One f32 scale a matrix: BitNet b1.58.
    #[default]
    Matrix,
    /// One f32 scale a row (an output).
    Row,
    /// One f16 scale for this many consecutive columns (inputs) of a row.
    Columns(usize),
}

/// The sizes of groups within a row: those that block formats of GGUF have.
pub const GROUP_COLUMNS: [usize; 3] = [64, 128, 256];

impl Group {
    /// Columns that share a scale in a matrix of `columns`; `None` for one scale a matrix.
    pub fn width(self, columns: usize) -> Option<usize> {
        match self {
            Self::Matrix => None,
            Self::Row => Some(columns),
            Self::Columns(width) => Some(width),
        }
    }

    /// Whether a row of `columns` is made of whole groups.
    pub fn divides(self, columns: usize) -> bool {
        self.width(columns).is_none_or(|width| columns.is_multiple_of(width))
    }

    fn of_columns(columns: u64) -> Result<Self, String> {
        let known = GROUP_COLUMNS.into_iter().find(|&known| known as u64 == columns);
        known.map(Self::Columns).ok_or_else(|| unknown(&columns.to_string()))
    }
}

fn unknown(found: &str) -> String {
    format!("quantiser.group is {found}; expected \"matrix\", \"row\", 256, 128 or 64")
}

impl fmt::Display for Group {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matrix => out.write_str("matrix"),
            Self::Row => out.write_str("row"),
            Self::Columns(columns) => columns.fmt(out),
        }
    }
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Columns(columns) => out.serialize_u64(*columns as u64),
            other => out.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Columns(u64),
            Name(String),
        }
        // An error of an untagged enum names no value; ours says what may stand there.
        let written =
            Written::deserialize(from).map_err(|_| D::Error::custom(unknown("neither")))?;
        match written {
            Written::Columns(columns) => Self::of_columns(columns).map_err(D::Error::custom),
            Written::Name(name) => match name.as_str() {
                "matrix" => Ok(Self::Matrix),
                "row" => Ok(Self::Row),
                other => Err(D::Error::custom(unknown(&format!("{other:?}")))),
            },
        }
    }
}

/// How a scale is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightQuantiser {
    /// The mean of |w| over the group.
    #[default]
    Absmean,
}

/// How matrices become ternary: `quantiser = { weights = "absmean", group = 128 }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantiser {
    /// How a scale is found.
    #[serde(default)]
    pub weights: WeightQuantiser,
    /// Over which weights.
    #[serde(default)]
    pub group: Group,
}

impl Quantiser {
    /// Whether it is that of BitNet b1.58, which configs need not name.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Embedding and head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingForm {
    /// Floats, as in BitNet b1.58.
    #[default]
    Full,
    /// Ternary, with the scales of the model's quantiser.
    Ternary,
}

impl EmbeddingForm {
    /// Whether configs need not name it.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The inputs of ternary matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationForm {
    /// 8 bits with one scale a token, as in BitNet b1.58.
    #[default]
    Int8,
    /// Floats, as they are.
    None,
}

impl ActivationForm {
    /// Whether configs need not name it.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Group, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_group_is_read_as_it_is_written() {
        let all = [Group::Matrix, Group::Row].into_iter();
        for group in all.chain(GROUP_COLUMNS.map(Group::Columns)) {
            let written = serde_json::to_string(&group).unwrap();
            assert_eq!(read(&written), Ok(group), "{written}");
        }
        assert_eq!(serde_json::to_string(&Group::Columns(128)).unwrap(), "128");
    }

    #[test]
    fn other_groups_are_refused_with_those_that_are_known() {
        for bad in ["32", "0", "\"column\"", "-1", "true", "1.5"] {
            let error = read(bad).unwrap_err();
            assert!(error.contains("expected \"matrix\", \"row\", 256, 128 or 64"), "{error}");
        }
    }

    #[test]
    fn a_group_divides_a_row_that_it_fills() {
        assert!(Group::Matrix.divides(7) && Group::Row.divides(7));
        assert!(Group::Columns(64).divides(192) && !Group::Columns(128).divides(192));
    }
}
