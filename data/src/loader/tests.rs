//! The mix, the limits and the order of rows.

use super::*;
use crate::fixtures::cache_of;
use crate::packing::LongDocuments;
use crate::sequence::PackedSequence;
use crate::sequence_plan::SequencePlan;
use proptest::prelude::*;

impl Loader<SequencePlan> {
    fn rows(
        &mut self,
        phase: usize,
        mixture: &DataMixture,
        state: &LoaderState,
        count: usize,
    ) -> Result<(Vec<PackedSequence>, LoaderState), DataError> {
        self.items(phase, mixture, state, count, 0..count)
    }
}

/// Two sets of documents of 1 to 9 tokens: `a` has ids from 0, `b` from 10000.
fn sets() -> BTreeMap<String, TokenCache> {
    let documents = |first: u32, count: u32| -> Vec<Vec<u32>> {
        let document = |n| (0..=(n * 7 % 9)).map(|at| first + n * 20 + at).collect();
        (0..count).map(document).collect()
    };
    let (a, b) = (cache_of(&documents(0, 30)), cache_of(&documents(10_000, 13)));
    BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)])
}

fn loader(policy: LongDocuments) -> Loader<SequencePlan> {
    Loader::new(sets(), LoaderSettings { seed: 5, seq_len: 6, policy })
}

fn mix(a: f64, b: f64) -> DataMixture {
    let sets = vec![("a".to_owned(), a), ("b".to_owned(), b)];
    DataMixture { sets, ..DataMixture::default() }
}

fn of_b(row: &PackedSequence) -> bool {
    row.tokens[0] >= 10_000
}

#[test]
fn the_mix_decides_how_often_a_set_is_drawn() {
    let (rows, position) = loader(LongDocuments::Split)
        .rows(0, &mix(3.0, 1.0), &LoaderState::default(), 2000)
        .unwrap();
    let share = rows.iter().filter(|row| of_b(row)).count() as f64 / 2000.0;
    assert!((share - 0.25).abs() < 0.05, "five standard deviations: {share}");
    assert_eq!(position.phase_rows, [2000]);
    let only = loader(LongDocuments::Split).rows(0, &mix(0.0, 0.1), &LoaderState::default(), 100);
    assert!(only.unwrap().0.iter().all(of_b));
}

#[test]
fn the_order_of_the_sets_in_a_mix_does_not_matter() {
    let mut reversed = mix(0.3, 0.7);
    reversed.sets.reverse();
    let take = |mix: &DataMixture| {
        loader(LongDocuments::Drop).rows(1, mix, &LoaderState::default(), 50).unwrap()
    };
    assert_eq!(take(&mix(0.3, 0.7)), take(&reversed));
}

#[test]
fn phases_continue_the_sets_and_draw_on_their_own() {
    let mut loader = loader(LongDocuments::Split);
    let only = mix(1.0, 0.0);
    let (first, position) = loader.rows(0, &only, &LoaderState::default(), 4).unwrap();
    let (second, position) = loader.rows(1, &only, &position, 4).unwrap();
    let (both, _) = loader.rows(0, &only, &LoaderState::default(), 8).unwrap();
    assert_eq!([first, second].concat(), both);
    assert_eq!(position.phase_rows, [4, 4]);
    assert_eq!(position.sets["a"], EpochPosition { epoch: 0, row: 8 });
}

#[test]
fn no_row_repeats_before_the_epoch_ends_and_the_next_is_in_another_order() {
    let mut loader = loader(LongDocuments::Split);
    let rows = loader.plan("a", 0).unwrap().items() as usize;
    let (both, position) =
        loader.rows(0, &mix(1.0, 0.0), &LoaderState::default(), 2 * rows).unwrap();
    assert_eq!(position.sets["a"], EpochPosition { epoch: 1, row: rows as u64 });
    let pairs = |rows: &[PackedSequence]| {
        let pair =
            |row: &PackedSequence| row.tokens.iter().copied().zip(row.targets.clone()).collect();
        let mut pairs: Vec<(i32, i32)> = rows.iter().flat_map::<Vec<_>, _>(pair).collect();
        pairs.sort_unstable();
        pairs
    };
    assert_eq!(pairs(&both[..rows]), pairs(&both[rows..]));
    assert_ne!(both[..rows], both[rows..]);
}

#[test]
fn a_mix_that_cannot_be_drawn_is_an_error() {
    let rows = |sets: Vec<(String, f64)>| {
        let error = loader(LongDocuments::Split).rows(
            0,
            &DataMixture { sets, ..DataMixture::default() },
            &LoaderState::default(),
            1,
        );
        error.unwrap_err().to_string()
    };
    assert_eq!(
        rows(vec![("c".to_owned(), 1.0)]),
        "[data]: unknown set; expected one of \"a\", \"b\", got \"c\""
    );
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        let message = rows(vec![("a".to_owned(), weight)]);
        assert!(message.starts_with("[data] \"a\": bad weight;"), "{message}");
    }
    let nothing = "[data]: nothing to draw from; expected a set with a weight above 0, got none";
    assert_eq!(rows(vec![("a".to_owned(), 0.0)]), nothing);
    assert_eq!(rows(Vec::new()), nothing);
}

#[test]
fn a_set_whose_documents_are_all_too_long_is_an_error_and_not_an_endless_loop() {
    let sets = BTreeMap::from([("a".to_owned(), cache_of(&[vec![1; 9], vec![1]]))]);
    let settings = LoaderSettings { seed: 1, seq_len: 4, policy: LongDocuments::Drop };
    let mix = DataMixture { sets: vec![("a".to_owned(), 1.0)], ..DataMixture::default() };
    let error = Loader::<SequencePlan>::new(sets, settings)
        .rows(0, &mix, &LoaderState::default(), 1)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "[data] \"a\": no rows of 4 tokens; expected a document that fits, got 2 documents of \
         which 1 are too short and 1 too long"
    );
}

#[test]
fn a_set_is_read_as_often_as_it_may_be_and_then_the_others_take_its_place() {
    let items = |set: &str| {
        let mut loader = loader(LongDocuments::Split);
        (0..2).map(|epoch| loader.plan(set, epoch).unwrap().items() as usize).sum::<usize>()
    };
    let twice = items("b");
    let limits = |sets: &[&str]| sets.iter().map(|set| ((*set).to_owned(), 2)).collect();
    let mix = DataMixture { max_epochs: limits(&["b"]), ..mix(0.2, 0.8) };
    let start = LoaderState::default();
    let (rows, state) = loader(LongDocuments::Split).rows(0, &mix, &start, 500).unwrap();
    assert_eq!(rows.iter().filter(|row| of_b(row)).count(), twice);
    assert_eq!(state.sets["b"].epoch, 1);
    // In parts and after a checkpoint, in another phase too.
    let mut joined = Vec::new();
    let mut at = start.clone();
    for count in [1, 20, 0, 100, 379] {
        let (more, next) = loader(LongDocuments::Split).rows(0, &mix, &at, count).unwrap();
        joined.extend(more);
        at = next;
    }
    assert_eq!(joined, rows);
    assert!(!loader(LongDocuments::Split).rows(1, &mix, &at, 90).unwrap().0.iter().any(of_b));
    let mix = DataMixture { max_epochs: limits(&["a", "b"]), ..mix };
    let all = items("a") + twice;
    let mut loader = loader(LongDocuments::Split);
    assert_eq!(loader.rows(0, &mix, &start, all).unwrap().0.len(), all);
    let error = loader.rows(0, &mix, &start, all + 1).unwrap_err().to_string();
    assert_eq!(
        error,
        "[data]: no rows left; expected a set that was read less than max_epochs times, got a, b"
    );
}

#[test]
fn plans_that_are_made_ahead_give_the_same_rows() {
    let (mix, start) = (mix(0.5, 0.5), LoaderState::default());
    let usual = loader(LongDocuments::Truncate).rows(0, &mix, &start, 300).unwrap();
    let mut ahead = loader(LongDocuments::Truncate);
    ahead.plans.large = 1;
    assert_eq!(ahead.rows(0, &mix, &start, 300).unwrap(), usual);
    assert!(usual.1.sets.values().all(|position| position.epoch > 2));
}

#[test]
fn the_sequence_of_rows_is_frozen() {
    let (rows, _) =
        loader(LongDocuments::Split).rows(0, &mix(0.5, 0.5), &LoaderState::default(), 5).unwrap();
    let firsts: Vec<i32> = rows.iter().map(|row| row.tokens[0]).collect();
    assert_eq!(firsts, [140, 562, 100, 10_040, 106]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn pieces_of_any_size_join_to_the_same_rows_even_through_a_checkpoint(
        pieces in prop::collection::vec(0..40_usize, 1..6),
        policy in prop::sample::select(vec![LongDocuments::Split, LongDocuments::Truncate, LongDocuments::Drop]),
    ) {
        let (mix, total) = (mix(0.4, 0.6), pieces.iter().sum());
        let whole = loader(policy).rows(0, &mix, &LoaderState::default(), total).unwrap();
        let (mut joined, mut position) = (Vec::new(), LoaderState::default());
        for count in pieces {
            let (rows, next) = loader(policy).rows(0, &mix, &position, count).unwrap();
            joined.extend(rows);
            let saved = serde_json::to_string(&next).unwrap();
            position = serde_json::from_str(&saved).unwrap();
        }
        prop_assert_eq!((joined, position), whole);
    }
}
