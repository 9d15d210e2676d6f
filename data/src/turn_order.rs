//! What was done to the turns of a row before they are trained, and turns in the order that strict
//! templates demand.

use std::ops::AddAssign;

use bitnet_text::{Message, Role};
use serde::{Deserialize, Serialize};

/// Counts of turns that are not trained as they were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnChanges {
    /// Left out: what follows the last answer, unknown roles, calls and results of tools, answers
    /// to nothing.
    pub dropped: u64,
    /// Joined to the preceding turn of the same role.
    pub merged: u64,
    /// Turns of the system that were moved to the beginning.
    pub moved: u64,
}

impl TurnChanges {
    /// Turns that were left out, and nothing else.
    pub(crate) fn dropped(dropped: u64) -> Self {
        Self { dropped, ..Self::default() }
    }

    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }

    /// The counts in words.
    pub fn words(self) -> String {
        let counts = [
            (self.dropped, "left out"),
            (self.merged, "joined to the one before"),
            (self.moved, "moved to the beginning"),
        ];
        let counts = counts.into_iter().filter(|(turns, _)| *turns > 0);
        counts.map(|(turns, what)| format!("{turns} {what}")).collect::<Vec<_>>().join(", ")
    }
}

impl AddAssign for TurnChanges {
    fn add_assign(&mut self, other: Self) {
        self.dropped += other.dropped;
        self.merged += other.merged;
        self.moved += other.moved;
    }
}

/// The turns as one of the system, if there is any, and then the user and the assistant in
/// alternation: turns of the system move to the beginning, answers before the first question are
/// left out, and neighbours of one role are joined after a blank line. Calls and results of tools
/// stay as they are, and so do answers of which only one is trained. `None` where they are in order
/// already or no answer is left.
pub(crate) fn in_order(messages: &[Message]) -> Option<(Vec<Message>, TurnChanges)> {
    let mut changes = TurnChanges::default();
    // A stable partition: turns of one kind keep their order.
    let (systems, turns): (Vec<_>, Vec<_>) =
        messages.iter().cloned().partition(|turn| turn.role == Role::System);
    let leading = messages.iter().take_while(|turn| turn.role == Role::System).count();
    changes.moved = (systems.len() - leading) as u64;
    let first = turns.iter().position(|turn| turn.role == Role::User)?;
    changes.dropped = first as u64;
    let mut ordered: Vec<Message> = Vec::with_capacity(messages.len());
    for turn in systems.into_iter().chain(turns.into_iter().skip(first)) {
        match ordered.last_mut() {
            Some(last) if joins(last, &turn) => {
                join(last, turn);
                changes.merged += 1;
            }
            _ => ordered.push(turn),
        }
    }
    let answers = ordered.iter().any(|turn| turn.role == Role::Assistant && turn.trained);
    (answers && !changes.is_none()).then_some((ordered, changes))
}

fn joins(last: &Message, turn: &Message) -> bool {
    let of_tools =
        |turn: &Message| turn.role == Role::Tool || turn.fields.contains_key("tool_calls");
    // Half of a joined answer cannot be trained, and a call belongs to its own turn.
    last.role == turn.role && last.trained == turn.trained && !of_tools(last) && !of_tools(turn)
}

fn join(last: &mut Message, turn: Message) {
    let apart = if last.content.is_empty() || turn.content.is_empty() { "" } else { "\n\n" };
    last.content = format!("{}{apart}{}", last.content, turn.content);
    for (field, value) in turn.fields {
        last.fields.entry(field).or_insert(value);
    }
    // The parts of one of them are not what both say.
    last.fields.shift_remove("content");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::role_texts;

    fn turns(turns: &[(&str, &str)]) -> Vec<Message> {
        turns
            .iter()
            .map(|(role, text)| Message::new(Role::from_name(role).unwrap(), *text))
            .collect()
    }

    #[test]
    fn turns_come_into_the_order_that_strict_templates_demand() {
        let given = [
            ("assistant", "Hi!"),
            ("user", "a"),
            ("user", "b"),
            ("system", "Be brief."),
            ("assistant", "c"),
            ("assistant", "d"),
        ];
        let (ordered, changes) = in_order(&turns(&given)).unwrap();
        let expected = [("system", "Be brief."), ("user", "a\n\nb"), ("assistant", "c\n\nd")];
        assert_eq!(role_texts(&ordered), expected);
        assert_eq!(changes, TurnChanges { dropped: 1, merged: 2, moved: 1 });
        assert_eq!(
            changes.words(),
            "1 left out, 2 joined to the one before, 1 moved to the beginning"
        );
    }

    #[test]
    fn turns_in_order_and_those_without_an_answer_stay() {
        assert_eq!(in_order(&turns(&[("system", "s"), ("user", "a"), ("assistant", "b")])), None);
        assert_eq!(in_order(&turns(&[("assistant", "b"), ("user", "a")])), None);
        assert_eq!(in_order(&turns(&[("assistant", "b")])), None);
        let mut two = turns(&[("user", "a"), ("assistant", "b"), ("assistant", "c")]);
        two[1].trained = false;
        assert_eq!(in_order(&two), None, "an answer that is not trained is joined to none that is");
        two[1].trained = true;
        two[2].fields.insert("tool_calls".to_owned(), serde_json::json!([{}]));
        assert_eq!(in_order(&two), None);
    }
}
