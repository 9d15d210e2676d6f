//! Sentence patterns for each kind of event, remark and time shift.
//!
//! Slots in braces are filled by `renderer`: `{s}` the subject, `{he}` the subject again, `{a}` its
//! name, `{o}` the other person, `{O}` and `{X}` the names of the other and the third, `{their}`
//! the possessive of the other, `{t}` the thing, `{T}` the same but never as "it", `{n}` its label
//! without an article, `{k}` the container, `{p}` the place, `{c}` a colour. A pattern listed twice
//! is twice as likely.

use crate::builder::{Remark, TimeShift};
use crate::event::StoryEvent;
use crate::scene::{Scene, Spot};

/// Verb phrases for an event, without the subject.
pub(crate) fn of_event(event: StoryEvent, scene: &Scene) -> &'static [&'static str] {
    match event {
        StoryEvent::Go(..) => &["went to {p}", "went to {p}", "walked to {p}", "ran to {p}"],
        StoryEvent::Open(..) => &["opened {k}"],
        StoryEvent::Close(..) => &["closed {k}"],
        StoryEvent::Take(_, thing) => match scene.thing(thing).spot {
            Spot::Inside(_) => &["took {t} out of {k}"],
            _ => &["picked {t} up", "picked {t} up", "took {t}"],
        },
        StoryEvent::Put(..) => &["put {t} into {k}", "put {t} into {k}", "put {t} in {k}"],
        StoryEvent::Hide(..) => &["hid {t} in {k}"],
        StoryEvent::Give(..) => &["gave {t} to {o}"],
        StoryEvent::Leave(..) => &["left {t} there", "put {t} down there"],
        StoryEvent::Lose(..) => &[
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

/// Whole sentences for a remark.
pub(crate) const fn of_remark(remark: Remark) -> &'static [&'static str] {
    match remark {
        Remark::Treasures => &["{s} loved {t} very much.", "{s} took {t} everywhere."],
        Remark::KeepSafe => &["{s} wanted to keep {t} safe.", "{s} did not want to lose {t}."],
        Remark::Present => &[
            "{s} wanted to give {o} a present.",
            "It was a special day, and {s} wanted to give {o} a present.",
        ],
        Remark::LikesColour => {
            &["{a} liked the colour {c} best of all.", "{a} loved the colour {c}."]
        }
        Remark::NotThere => &[
            "{s} looked into {k}, but {t} was not there.",
            "{s} looked for {t} in {k}, but could not find it.",
        ],
        Remark::Sad => &[
            "{s} was sad.",
            "{s} was very sad.",
            "{s} began to cry.",
            "{s} was sad and did not know what to do.",
        ],
        Remark::Glad => &["{s} was happy.", "{s} was very glad.", "{s} smiled.", "{s} laughed."],
        Remark::Thanks => {
            &["\"Thank you, {O}!\" said {a}.", "{s} thanked {o}.", "\"You are so kind,\" said {a}."]
        }
        Remark::AskWhere => {
            &["{s} asked {o}, \"Where is the {n}?\"", "\"Where is the {n}?\" {s} asked {o}."]
        }
        Remark::TellContainer => &[
            "\"It is in {k},\" said {a}.",
            "\"Look in {k},\" said {a}.",
            "{a} said, \"It is in {k}.\"",
        ],
        Remark::AskFor => &[
            "{s} asked {o}, \"May I have the {n}?\"",
            "\"Please give me the {n},\" {s} said to {o}.",
        ],
        Remark::Agree => &["\"Yes, I will,\" said {a}.", "{s} was glad to help."],
        Remark::Missed => {
            &["Now {s} saw that {T} was gone.", "{s} looked for {T}, but it was gone."]
        }
        Remark::Game => &[
            "{s} and {O} played a game. {O} closed {their} eyes.",
            "{s} and {O} wanted to play. {O} closed {their} eyes and waited.",
        ],
        Remark::Errand => &[
            "{s} said to {o}, \"Please bring the {n} to {X}.\"",
            "\"Can you bring the {n} to {X}?\" {s} asked {o}.",
        ],
        Remark::Tidy => &["{s} wanted to tidy up.", "{s} had to tidy up."],
        Remark::Trade => {
            &["\"Do you want my {n}?\" {s} asked {o}.", "\"Let us trade,\" {s} said to {o}."]
        }
        Remark::Wants => {
            &["{s} needed {t}.", "{s} wanted to see {t}.", "{s} wanted to play with {t}."]
        }
        Remark::HasAgain => HAS_AGAIN,
    }
}

/// Words that open a sentence after a time shift.
pub(crate) const fn of_time_shift(time_shift: TimeShift) -> &'static [&'static str] {
    match time_shift {
        TimeShift::Meanwhile => &["Meanwhile, ", "At that time, "],
        TimeShift::Later => &["Later, ", "After a while, ", "A little later, "],
        TimeShift::Evening => &["In the evening, ", "When it got dark, ", "Before dinner, "],
    }
}

/// Verb phrases for going back to a place.
pub(crate) const RETURNS: &[&str] =
    &["went back to {p}", "went back to {p}", "went to {p}", "ran back to {p}"];

/// Words that may open a sentence after another event; most often none.
pub(crate) const LEADS: &[&str] = &["", "", "", "", "", "Then ", "Then ", "After that, "];

/// The first sentence, about the hero: the day, nature, kind, name and place.
pub(crate) const HERO: &[&str] = &[
    "{day}a {nature} {kind} named {a} was in the {p}.",
    "{day}there was a {nature} {kind} named {a} in the {p}.",
    "{day}{a}, a {nature} {kind}, was in the {p}.",
    "This is a story about {a}, a {nature} {kind}. {day}{he} was in the {p}.",
];

/// The sentence about the friend; `{He}` and `{His}` are the hero.
pub(crate) const FRIEND: &[&str] = &[
    "{His} friend {a}, a {nature} {kind}, was in the {p}.",
    "{He} had a friend named {a}, a {nature} {kind}, who was in the {p}.",
    "{His} friend was a {nature} {kind} named {a}, who was in the {p}.",
];

/// The sentence about the third person.
pub(crate) const THIRD: &[&str] = &[
    "{a}, a {nature} {kind}, was in the {p}.",
    "There was also a {nature} {kind} named {a} in the {p}.",
    "A {nature} {kind} named {a} was in the {p}.",
];

/// The opening words of a story.
pub(crate) const DAYS: &[&str] =
    &["One morning, ", "One day, ", "One sunny day, ", "On a cold day, ", "One afternoon, "];

/// The last sentence of a story.
pub(crate) const CLOSINGS: &[&str] = &[
    "It was a good day.",
    "It had been a long day.",
    "What a day it was!",
    "Everyone was tired but happy.",
    "Then it was time for bed.",
    "And that was the end of the day.",
];

/// The words before a statement of the outcome.
pub(crate) const ENDS: &[&str] = &["In the end, ", "Now ", "So now "];
