//! The sentence patterns: for each kind of event, note and turn, the ways to say it.
//!
//! Slots in braces are filled by `narrator`: `{s}` the subject, `{he}` the subject again, `{a}` its
//! name, `{o}` the other person, `{O}` and `{X}` the names of the other and the third, `{their}`
//! the possessive of the other, `{t}` the thing, `{T}` the same but never as "it", `{n}` its label
//! without an article, `{k}` the container, `{p}` the place, `{c}` a colour. A pattern listed twice is twice as likely.

use super::events::Event;
use super::model::{Spot, World};
use super::stage::{Note, Turn};

/// Verb phrases for an event about to happen to a world; the subject goes before them.
pub(super) fn of_event(event: Event, world: &World) -> &'static [&'static str] {
    match event {
        Event::Go(..) => &["went to {p}", "went to {p}", "walked to {p}", "ran to {p}"],
        Event::Open(..) => &["opened {k}"],
        Event::Close(..) => &["closed {k}"],
        Event::Take(_, thing) => match world.thing(thing).spot {
            Spot::Inside(_) => &["took {t} out of {k}"],
            _ => &["picked {t} up", "picked {t} up", "took {t}"],
        },
        Event::Put(..) => &["put {t} into {k}", "put {t} into {k}", "put {t} in {k}"],
        Event::Hide(..) => &["hid {t} in {k}"],
        Event::Give(..) => &["gave {t} to {o}"],
        Event::Leave(..) => &["left {t} there", "put {t} down there"],
        Event::Lose(..) => &[
            "There {T} fell to the ground, but {s} did not see it.",
            "{s} was singing, and did not see that {T} fell to the ground.",
        ],
    }
}

const HAS_AGAIN: &[&str] = &[
    "{s} was happy because {he} had {t} again.",
    "{s} was glad to have {t} again.",
    "Now {s} had {t} again and was happy.",
    "{s} laughed and held {t} in the air.",
];

/// Whole sentences for a note.
pub(super) const fn of_note(note: Note) -> &'static [&'static str] {
    match note {
        Note::Treasures => &["{s} loved {t} very much.", "{s} took {t} everywhere."],
        Note::KeepSafe => &["{s} wanted to keep {t} safe.", "{s} did not want to lose {t}."],
        Note::Present => &[
            "{s} wanted to give {o} a present.",
            "It was a special day, and {s} wanted to give {o} a present.",
        ],
        Note::LikesColour => {
            &["{a} liked the colour {c} best of all.", "{a} loved the colour {c}."]
        }
        Note::NotThere => &[
            "{s} looked into {k}, but {t} was not there.",
            "{s} looked for {t} in {k}, but could not find it.",
        ],
        Note::Sad => &[
            "{s} was sad.",
            "{s} was very sad.",
            "{s} began to cry.",
            "{s} was sad and did not know what to do.",
        ],
        Note::Glad => &["{s} was happy.", "{s} was very glad.", "{s} smiled.", "{s} laughed."],
        Note::Thanks => {
            &["\"Thank you, {O}!\" said {a}.", "{s} thanked {o}.", "\"You are so kind,\" said {a}."]
        }
        Note::AskWhere => {
            &["{s} asked {o}, \"Where is the {n}?\"", "\"Where is the {n}?\" {s} asked {o}."]
        }
        Note::TellContainer => &[
            "\"It is in {k},\" said {a}.",
            "\"Look in {k},\" said {a}.",
            "{a} said, \"It is in {k}.\"",
        ],
        Note::AskFor => &[
            "{s} asked {o}, \"May I have the {n}?\"",
            "\"Please give me the {n},\" {s} said to {o}.",
        ],
        Note::Agree => &["\"Yes, I will,\" said {a}.", "{s} was glad to help."],
        Note::Missed => &["Now {s} saw that {T} was gone.", "{s} looked for {T}, but it was gone."],
        Note::Game => &[
            "{s} and {O} played a game. {O} closed {their} eyes.",
            "{s} and {O} wanted to play. {O} closed {their} eyes and waited.",
        ],
        Note::Errand => &[
            "{s} said to {o}, \"Please bring the {n} to {X}.\"",
            "\"Can you bring the {n} to {X}?\" {s} asked {o}.",
        ],
        Note::Tidy => &["{s} wanted to tidy up.", "{s} had to tidy up."],
        Note::Trade => {
            &["\"Do you want my {n}?\" {s} asked {o}.", "\"Let us trade,\" {s} said to {o}."]
        }
        Note::Wants => {
            &["{s} needed {t}.", "{s} wanted to see {t}.", "{s} wanted to play with {t}."]
        }
        Note::HasAgain => HAS_AGAIN,
    }
}

/// Words that may open a sentence after a turn of time.
pub(super) const fn of_turn(turn: Turn) -> &'static [&'static str] {
    match turn {
        Turn::Meanwhile => &["Meanwhile, ", "At that time, "],
        Turn::Later => &["Later, ", "After a while, ", "A little later, "],
        Turn::Evening => &["In the evening, ", "When it got dark, ", "Before dinner, "],
    }
}

/// Verb phrases for going where one has been before.
pub(super) const RETURNS: &[&str] =
    &["went back to {p}", "went back to {p}", "went to {p}", "ran back to {p}"];

/// Words that may open a sentence in which something more happens; most often none.
pub(super) const LEADS: &[&str] = &["", "", "", "", "", "Then ", "Then ", "After that, "];

/// The first sentence, about the hero: the day, nature, kind, name and place.
pub(super) const HERO: &[&str] = &[
    "{day}a {nature} {kind} named {a} was in the {p}.",
    "{day}there was a {nature} {kind} named {a} in the {p}.",
    "{day}{a}, a {nature} {kind}, was in the {p}.",
    "This is a story about {a}, a {nature} {kind}. {day}{he} was in the {p}.",
];

/// The sentence about the friend; `{He}` and `{His}` are the hero.
pub(super) const FRIEND: &[&str] = &[
    "{His} friend {a}, a {nature} {kind}, was in the {p}.",
    "{He} had a friend named {a}, a {nature} {kind}, who was in the {p}.",
    "{His} friend was a {nature} {kind} named {a}, who was in the {p}.",
];

/// The sentence about the third person.
pub(super) const THIRD: &[&str] = &[
    "{a}, a {nature} {kind}, was in the {p}.",
    "There was also a {nature} {kind} named {a} in the {p}.",
    "A {nature} {kind} named {a} was in the {p}.",
];

/// The day on which it all happens.
pub(super) const DAYS: &[&str] =
    &["One morning, ", "One day, ", "One sunny day, ", "On a cold day, ", "One afternoon, "];

/// The last sentence of what happened.
pub(super) const CLOSINGS: &[&str] = &[
    "It was a good day.",
    "It had been a long day.",
    "What a day it was!",
    "Everyone was tired but happy.",
    "Then it was time for bed.",
    "And that was the end of the day.",
];

/// What may come before the statement of an end state.
pub(super) const ENDS: &[&str] = &["In the end, ", "Now ", "So now "];
