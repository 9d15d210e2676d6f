//! A ladder of runs: sizes x tokens x seeds, ternary and dense, as settings of one base recipe.
//!
//! A size changes the six keys of `[model]` that say how large the blocks are; everything else is the
//! base recipe's. The name of a run says all that it differs in, so that a ladder can be continued and
//! extended in one directory.

use bitnet_format::ModelSpec;

/// The shapes of `configs/`, by name.
const NAMED: [(&str, &str); 6] = [
    ("tiny", include_str!("../../configs/tiny.toml")),
    ("s", include_str!("../../configs/s.toml")),
    ("m", include_str!("../../configs/m.toml")),
    ("125m", include_str!("../../configs/125m.toml")),
    ("700m", include_str!("../../configs/700m.toml")),
    ("2b4t", include_str!("../../configs/2b4t.toml")),
];
/// What the width of the feed-forward block is rounded to.
const WIDTH_STEP: usize = 32;

/// How large the blocks of a model are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LadderSize {
    /// As in the config of this name.
    Named(&'static str),
    /// So wide and so deep; heads and feed-forward width in the proportions of the base recipe.
    Scaled {
        /// `hidden_size`.
        hidden: usize,
        /// `num_hidden_layers`.
        layers: usize,
    },
}

impl std::str::FromStr for LadderSize {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if let Some((name, _)) = NAMED.iter().find(|(name, _)| *name == word) {
            return Ok(Self::Named(name));
        }
        let number = |text: &str| text.parse().ok().filter(|number| (1..=1 << 20).contains(number));
        let pair = word.split_once(':').and_then(|(hidden, layers)| {
            Some(Self::Scaled { hidden: number(hidden)?, layers: number(layers)? })
        });
        pair.ok_or_else(|| {
            let names: Vec<_> = NAMED.iter().map(|(name, _)| *name).collect();
            format!("expected {} or hidden:layers such as 128:4", names.join(", "))
        })
    }
}

impl LadderSize {
    /// As a part of a run's name.
    fn label(&self) -> String {
        match self {
            Self::Named(name) => (*name).to_owned(),
            Self::Scaled { hidden, layers } => format!("{hidden}x{layers}"),
        }
    }

    /// The shape of this size.
    fn shape(&self, base: &ModelSpec) -> Result<ModelSpec, String> {
        match *self {
            Self::Named(wanted) => {
                let text = NAMED.iter().find(|(name, _)| *name == wanted).map(|(_, text)| *text);
                let named = toml::from_str(text.expect("the name was looked up"));
                named.map_err(|error| error.to_string())
            }
            Self::Scaled { hidden, layers } => scaled(base, hidden, layers),
        }
    }
}

/// The base's proportions at another width and depth.
fn scaled(base: &ModelSpec, hidden: usize, layers: usize) -> Result<ModelSpec, String> {
    let head = base.head_dim;
    let queries = base.num_attention_heads / base.num_key_value_heads;
    // Whole heads of the base's width, and as many queries for each key head: wider models have
    // more heads, not wider ones.
    if !hidden.is_multiple_of(head * queries) {
        return Err(format!(
            "{hidden}:{layers}: expected a width that is a multiple of {} (heads of {head}, \
             {queries} for each key head, as in the base recipe), got {hidden}",
            head * queries
        ));
    }
    let heads = hidden / head;
    let exact = hidden as f64 * base.intermediate_size as f64 / base.hidden_size as f64;
    let steps = ((exact / WIDTH_STEP as f64).round() as usize).max(1);
    Ok(ModelSpec {
        hidden_size: hidden,
        intermediate_size: steps * WIDTH_STEP,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads / queries,
        ..base.clone()
    })
}

/// What the matrices of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WeightKind {
    /// Ternary weights and 8-bit activations.
    Ternary,
    /// The dense twin.
    Dense,
}

impl WeightKind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ternary => "ternary",
            Self::Dense => "dense",
        }
    }
}

/// Reads a number of tokens: `250000`, `250k`, `1.5M`, `2B`.
///
/// # Errors
/// Says what is expected.
pub fn parse_tokens(word: &str) -> Result<u64, String> {
    let wrong = || "expected a number of tokens such as 500000, 500k, 2M or 1.5B".to_owned();
    let mut units = [('k', 1e3), ('M', 1e6), ('B', 1e9)].into_iter();
    let unit = units.find_map(|(end, unit)| Some((word.strip_suffix(end)?, unit)));
    let (digits, unit) = unit.unwrap_or((word, 1.0));
    // `parse` alone would take `inf`, `nan` and `1e9` too.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = digits.parse::<f64>().ok().filter(|_| plain).ok_or_else(wrong)? * unit;
    let whole = number.round() as u64;
    // Below 2⁵³ every whole number is an f64.
    if (1.0..=1e15).contains(&number) { Ok(whole) } else { Err(wrong()) }
}

/// One run of a ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// The name of its directory.
    pub name: String,
    /// Settings of the base recipe, as on a command line.
    pub words: Vec<String>,
}

/// The runs of a ladder.
#[derive(Clone, Debug)]
pub struct Ladder {
    /// Sizes of the model.
    pub sizes: Vec<LadderSize>,
    /// Tokens to train on.
    pub tokens: Vec<u64>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Ternary, dense or both.
    pub weights: Vec<WeightKind>,
}

impl Ladder {
    /// All runs, those with the fewest tokens first, so that a part of a ladder is a whole one.
    ///
    /// # Errors
    /// Names a size that the base recipe's proportions do not allow.
    pub fn rungs(&self, base: &ModelSpec) -> Result<Vec<Rung>, String> {
        let mut rungs = Vec::new();
        let mut tokens = self.tokens.clone();
        tokens.sort_unstable();
        for tokens in tokens {
            for size in &self.sizes {
                let shape = size.shape(base)?;
                for &seed in &self.seeds {
                    let rung = |&kind| rung(size, &shape, (tokens, seed), kind);
                    rungs.extend(self.weights.iter().map(rung));
                }
            }
        }
        Ok(rungs)
    }
}

fn rung(
    size: &LadderSize,
    shape: &ModelSpec,
    (tokens, seed): (u64, u64),
    kind: WeightKind,
) -> Rung {
    let sizes = [
        ("hidden_size", shape.hidden_size),
        ("intermediate_size", shape.intermediate_size),
        ("num_hidden_layers", shape.num_hidden_layers),
        ("num_attention_heads", shape.num_attention_heads),
        ("num_key_value_heads", shape.num_key_value_heads),
        ("head_dim", shape.head_dim),
    ];
    let mut words: Vec<String> =
        sizes.iter().map(|(key, value)| format!("model.{key}={value}")).collect();
    words.push(format!("model.quantise={}", kind == WeightKind::Ternary));
    words.push(format!("train.tokens={tokens}"));
    words.push(format!("seed={seed}"));
    Rung { name: format!("{}-{tokens}-{}-seed{seed}", size.label(), kind.name()), words }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> ModelSpec {
        let text = "hidden_size = 96\nintermediate_size = 256\nnum_hidden_layers = 3\n\
                    num_attention_heads = 4\nnum_key_value_heads = 2\nhead_dim = 24\nvocab_size = 512\n";
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_size_is_a_name_or_a_width_and_a_depth() {
        assert_eq!("s".parse(), Ok(LadderSize::Named("s")));
        assert_eq!("128:4".parse(), Ok(LadderSize::Scaled { hidden: 128, layers: 4 }));
        for word in ["", "xl", "128", "128:", ":4", "0:4", "128:4:2", "-1:4"] {
            let error = word.parse::<LadderSize>().unwrap_err();
            assert!(error.contains("hidden:layers"), "{word}: {error}");
        }
    }

    #[test]
    fn a_scaled_size_keeps_the_proportions() {
        let shape = scaled(&base(), 192, 5).unwrap();
        assert_eq!((shape.intermediate_size, shape.num_hidden_layers), (512, 5));
        assert_eq!((shape.num_attention_heads, shape.num_key_value_heads), (8, 4));
        assert_eq!(scaled(&base(), 144, 1).unwrap().intermediate_size, 384);
        let error = scaled(&base(), 120, 3).unwrap_err();
        assert!(error.contains("multiple of 48"), "{error}");
    }

    #[test]
    fn every_named_shape_is_read() {
        for (name, _) in NAMED {
            let shape = LadderSize::Named(name).shape(&base()).unwrap();
            assert!(shape.hidden_size >= 256, "{name}");
        }
    }

    #[test]
    fn tokens_have_units() {
        let read = |word| parse_tokens(word).ok();
        assert_eq!(
            ["7", "250k", "1.5M", "2B"].map(read),
            [7, 250_000, 1_500_000, 2_000_000_000].map(Some)
        );
        assert_eq!(["", "0", "k", "1e9", "-3", "3m", "nan", "inf"].map(read), [None; 8]);
    }

    #[test]
    fn a_ladder_has_a_run_for_each_combination_and_names_them_apart() {
        let ladder = Ladder {
            sizes: vec!["96:3".parse().unwrap(), "tiny".parse().unwrap()],
            tokens: vec![2000, 1000],
            seeds: vec![1, 2],
            weights: vec![WeightKind::Ternary, WeightKind::Dense],
        };
        let rungs = ladder.rungs(&base()).unwrap();
        let names: std::collections::BTreeSet<_> = rungs.iter().map(|rung| &rung.name).collect();
        assert_eq!((rungs.len(), names.len()), (16, 16));
        assert_eq!(rungs[0].name, "96x3-1000-ternary-seed1");
        let words = &rungs[1].words;
        for word in ["model.quantise=false", "train.tokens=1000", "seed=1", "model.head_dim=24"] {
            assert!(words.iter().any(|one| one == word), "{word} of {words:?}");
        }
    }
}
