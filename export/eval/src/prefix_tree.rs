//! Token sequences by their common beginnings, so that each beginning is computed once.
//!
//! ```text
//! shots ── question 1 ── choice A
//!       │             └─ choice B
//!       └─ question 2 ── …
//! ```

use std::ops::Range;

/// Beginnings shorter than this are computed again: a pass of its own would cost more.
const MIN_SHARED: usize = 4;

/// Some tokens that follow those of the parent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PrefixNode {
    /// The sequence that holds them, by its index.
    pub(crate) of: usize,
    /// Where they lie in it.
    pub(crate) tokens: Range<usize>,
    /// Sequences whose place this is: all that end here, and those whose last tokens lie here.
    pub(crate) sequences: Vec<usize>,
    pub(crate) children: Vec<PrefixNode>,
}

impl PrefixNode {
    /// Tokens of this node and all below it.
    pub(crate) fn total(&self) -> usize {
        self.tokens.len() + self.children.iter().map(Self::total).sum::<usize>()
    }
}

/// The trees of some sequences, none of them empty; those with the most tokens come first.
pub(crate) fn prefix_trees(sequences: &[Vec<u32>]) -> Vec<PrefixNode> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    // Sorted, sequences that begin alike are neighbours, and what the first and the last of a run
    // have in common, all of them have.
    order.sort_by(|a, b| sequences[*a].cmp(&sequences[*b]));
    let mut trees = Vec::new();
    grow(sequences, &order, 0, 0, &mut trees);
    sort(&mut trees);
    trees
}

/// Nodes that begin at `start` for sorted sequences that agree up to `agreed`.
fn grow(
    sequences: &[Vec<u32>],
    order: &[usize],
    start: usize,
    agreed: usize,
    out: &mut Vec<PrefixNode>,
) {
    let next = |index: usize| sequences[index].get(agreed);
    let mut rest = order;
    while let Some(&first) = rest.first() {
        // One group for each token that may come next; a sequence that ends at `agreed` has none
        // and is a group of its own, with equals of it.
        let count = rest.iter().take_while(|index| next(**index) == next(first)).count();
        let (group, after) = rest.split_at(count);
        rest = after;
        // How far the whole group agrees; those that end there come first in sorted order.
        let end = common(&sequences[first], &sequences[group[count - 1]]);
        let ending = group.iter().take_while(|index| sequences[**index].len() == end).count();
        let (here, longer) = group.split_at(ending);
        if longer.is_empty() || end - start >= MIN_SHARED {
            let mut children = Vec::new();
            grow(sequences, longer, end, end, &mut children);
            let (tokens, sequences) = (start..end, here.to_vec());
            out.push(PrefixNode { of: first, tokens, sequences, children });
        } else {
            if !here.is_empty() {
                let (tokens, sequences) = (start..end, here.to_vec());
                out.push(PrefixNode { of: first, tokens, sequences, children: Vec::new() });
            }
            // Too short to share: each branch computes these tokens itself, so its nodes begin at
            // `start`.
            grow(sequences, longer, start, end, out);
        }
    }
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn sort(nodes: &mut [PrefixNode]) {
    for node in &mut *nodes {
        sort(&mut node.children);
    }
    nodes.sort_by_key(|node| std::cmp::Reverse(node.total()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows each sequence down the tree.
    fn read(
        nodes: &[PrefixNode],
        sequences: &[Vec<u32>],
        before: &[u32],
        found: &mut [Vec<Vec<u32>>],
    ) {
        for node in nodes {
            assert_eq!(node.tokens.start, before.len());
            let all = [before, &sequences[node.of][node.tokens.clone()]].concat();
            for sequence in &node.sequences {
                found[*sequence].push(all.clone());
            }
            read(&node.children, sequences, &all, found);
        }
    }

    #[test]
    fn every_sequence_is_found_once_and_long_beginnings_are_shared() {
        let shots: Vec<u32> = (100..130).collect();
        let row = |tail: &[u32]| [shots.as_slice(), tail].concat();
        let sequences = vec![
            row(&[1, 2, 3, 4, 5, 6]),
            row(&[1, 2, 3, 4, 5, 7]),
            row(&[1, 2, 3, 4, 5]),
            row(&[1, 2, 9]),
            row(&[1, 2, 9]),
            row(&[8]),
            vec![5],
            shots.clone(),
        ];
        let trees = prefix_trees(&sequences);
        let mut found = vec![Vec::new(); sequences.len()];
        read(&trees, &sequences, &[], &mut found);
        for (found, sequence) in found.iter().zip(&sequences) {
            assert_eq!(found, std::slice::from_ref(sequence));
        }
        assert_eq!(trees.len(), 2);
        assert_eq!(trees[0].tokens, 0..30);
        let total: usize = trees.iter().map(PrefixNode::total).sum();
        assert_eq!(total, 30 + (5 + 1 + 1) + 3 + 1 + 1, "1 2 alone is too short to share");
    }

    #[test]
    fn short_beginnings_are_repeated() {
        let sequences = vec![vec![1, 2, 3], vec![1, 2], vec![1, 2, 4, 5]];
        let trees = prefix_trees(&sequences);
        assert_eq!(trees.len(), 3);
        assert!(trees.iter().all(|node| node.children.is_empty()));
        assert_eq!(trees[0].tokens, 0..4);
    }
}
