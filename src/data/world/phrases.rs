//! The sentence patterns: for each kind of event, note and turn, the ways to say it.
//!
//! Slots in braces are filled by `narrator`: `{s}` the subject, `{a}` its name, `{his}` its
//! possessive, `{o}` the other person, `{O}` and `{X}` the names of the other and the third,
//! `{t}` the thing, `{n}` its label without an article, `{k}` the container, `{p}` the place,
//! `{c}` a colour. A pattern listed twice is twice as likely.

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
            _ => &["picked up {t}", "saw {t} and picked it up", "found {t} and picked it up"],
        },
        Event::Put(..) => &[
            "put {t} into {k}",
            "put {t} into {k}",
            "put {t} in {k}",
            "put {t} into {k} to keep it safe",
        ],
        Event::Hide(..) => &["hid {t} in {k}"],
        Event::Give(..) => &["gave {t} to {o}"],
        Event::Leave(..) => &["left {t} there", "put {t} down there"],
        Event::Lose(..) => &[
            "There {t} fell to the ground, but {s} did not see it.",
            "{s} was singing, and did not see that {t} fell to the ground.",
        ],
    }
}

/// Whole sentences for a note.
pub(super) const fn of_note(note: Note) -> &'static [&'static str] {
    match note {
        Note::Treasures => &["{s} loved {t} very much.", "{s} took {t} everywhere."],
        Note::KeepSafe => &["{s} wanted to keep {t} safe.", "{s} did not want to lose {t}."],
        Note::Present => &[
            "{s} wanted to give {o} a present.",
            "It was a special day, and {s} had a present for {O}.",
        ],
        Note::LikesColour => {
            &["{a} liked the colour {c} best of all.", "{a} loved the colour {c}."]
        }
        Note::NotThere => &[
            "{s} looked into {k}, but {t} was not there.",
            "{s} looked for {t} in {k}, but could not find it.",
        ],
        Note::Sad => &["{s} was sad.", "{s} was very sad.", "{s} began to cry."],
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
        Note::Missed => &["Now {s} saw that {t} was gone.", "{s} looked for {t}, but it was gone."],
        Note::Game => &[
            "{s} and {O} played a game. {O} closed {their} eyes.",
            "{s} and {O} wanted to play. {O} closed {their} eyes and waited.",
        ],
        Note::Errand => &[
            "{s} said to {o}, \"Please bring the {n} to {X}.\"",
            "\"Can you bring the {n} to {X}?\" {s} asked {o}.",
        ],
        Note::Tidy => &["{s} wanted to tidy up.", "{s} had to tidy up before dinner."],
        Note::Trade => {
            &["\"Do you want my {n}?\" {s} asked {o}.", "\"Let us trade,\" {s} said to {o}."]
        }
        Note::Found => &["{s} saw {t}."],
    }
}

/// Words that may open a sentence after a turn of time.
pub(super) const fn of_turn(turn: Turn) -> &'static [&'static str] {
    match turn {
        Turn::Meanwhile => &["Meanwhile, ", "At that time, "],
        Turn::Later => &["Later, ", "After a while, ", "A little later, "],
        Turn::Evening => &["In the evening, ", "At the end of the day, ", "When it got dark, "],
    }
}

/// Words that may open any sentence in which something happens; most often none.
pub(super) const LEADS: &[&str] = &["", "", "", "", "", "Then ", "Then ", "After that, ", "Soon "];

/// The first sentence, about the hero: nature, kind, name.
pub(super) const HERO: &[&str] = &[
    "Once there was a {nature} {kind} named {a}.",
    "Once upon a time, there was a {nature} {kind} named {a}.",
    "{a} was a {nature} {kind}.",
    "This is a story about {a}, a {nature} {kind}.",
];

/// The sentence about the friend, of whom `{O}` is the hero.
pub(super) const FRIEND: &[&str] = &[
    "{O} had a friend named {a}, who was a {nature} {kind}.",
    "{O} had a friend, a {nature} {kind} named {a}.",
    "{O}'s friend {a} was a {nature} {kind}.",
];

/// The sentence about the third person.
pub(super) const THIRD: &[&str] = &[
    "There was also a {nature} {kind} named {a}.",
    "{a} was a {nature} {kind}.",
    "A {nature} {kind} named {a} lived near them.",
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
