//! The narrator: turns the beats of an episode into connected English sentences.
//!
//! It follows the world along so that it only says what is true at that moment. The patterns are
//! in `phrases`, the choice between name and pronoun in `reference`, the opening in `opening`.

use rand_chacha::ChaCha8Rng;

use rand::RngExt;

use super::events::Event;
use super::genesis::pick;
use super::model::{PersonId, PlaceId, Spot, World};
use super::phrases::{self, LEADS};
use super::reference::{Item, Reference};
use super::stage::{Beat, Note, Roles};

/// The longest row of verb phrases in one sentence.
const LONGEST_ROW: usize = 3;

/// Tells the beats, starting from the world before them.
pub(super) fn tell(start: &World, beats: &[Beat], rng: &mut ChaCha8Rng) -> String {
    let mut narrator = Narrator {
        world: start.clone(),
        rng,
        reference: Reference::default(),
        lead: None,
        last_lead: "",
        follows_event: false,
        follows_arrival: false,
        been: Vec::new(),
        text: String::new(),
    };
    narrator.tell(beats);
    narrator.text
}

struct Narrator<'a> {
    world: World,
    rng: &'a mut ChaCha8Rng,
    reference: Reference,
    lead: Option<&'static str>,
    last_lead: &'static str,
    follows_event: bool,
    follows_arrival: bool,
    been: Vec<(PersonId, PlaceId)>,
    text: String,
}

impl Narrator<'_> {
    fn tell(&mut self, mut beats: &[Beat]) {
        while let Some((beat, rest)) = beats.split_first() {
            beats = rest;
            match *beat {
                Beat::Turn(turn) => {
                    self.lead = Some(pick(self.rng, phrases::of_turn(turn)));
                    self.reference.forget();
                }
                Beat::Note(note, roles) => self.note(note, roles),
                Beat::Event(event @ Event::Lose(..)) => self.loss(event),
                Beat::Event(event) => {
                    let row = self.row(event, rest);
                    beats = &rest[row.len() - 1..];
                    self.happening(&row);
                }
            }
        }
    }

    /// The events that go into one sentence: those of one actor, up to the first gift.
    fn row(&mut self, first: Event, rest: &[Beat]) -> Vec<Event> {
        let longest = self.rng.random_range(2..=LONGEST_ROW);
        let mut row = vec![first];
        for beat in rest.iter().take(longest - 1) {
            let given = matches!(row.last(), Some(Event::Give(..)));
            match *beat {
                Beat::Event(next)
                    if !given
                        && next.actor() == first.actor()
                        && !matches!(next, Event::Lose(..)) =>
                {
                    row.push(next);
                }
                _ => break,
            }
        }
        row
    }

    fn happening(&mut self, row: &[Event]) {
        let who = row[0].actor();
        self.reference.begin_sentence(who);
        let turned = self.lead.take();
        let splits = turned.is_none() && row.len() > 1 && matches!(row[0], Event::Go(..));
        let follows_arrival = std::mem::take(&mut self.follows_arrival);
        match self.rng.random_range(0..6) {
            0 if splits && !follows_arrival => self.arrival(who, row),
            1 if splits => self.two_steps(who, row),
            _ => {
                let lead = turned.unwrap_or_else(|| self.fresh_lead());
                let subject = self.reference.subject(&self.world, who);
                let phrases = self.verb_phrases(row);
                self.sentence(&format!("{lead}{subject} {}.", joined(&phrases)));
            }
        }
        self.follows_event = true;
    }

    /// "When Mia came to the barn, she opened the blue box."
    fn arrival(&mut self, who: PersonId, row: &[Event]) {
        self.follows_arrival = true;
        let subject = self.reference.subject(&self.world, who);
        self.remember(row[0]);
        let place = self.happen(row[0], "{p}");
        let again = self.reference.same_subject(&self.world, who);
        let phrases = self.verb_phrases(&row[1..]);
        self.sentence(&format!("When {subject} came to {place}, {again} {}.", joined(&phrases)));
    }

    /// "Mia went to the barn. There she opened the blue box."
    fn two_steps(&mut self, who: PersonId, row: &[Event]) {
        let subject = self.reference.subject(&self.world, who);
        let going = self.verb_phrases(&row[..1]);
        self.sentence(&format!("{subject} {}.", going[0]));
        self.reference.begin_sentence(who);
        let again = self.reference.subject(&self.world, who);
        let phrases = self.verb_phrases(&row[1..]);
        self.sentence(&format!("There {again} {}.", joined(&phrases)));
    }

    fn verb_phrases(&mut self, row: &[Event]) -> Vec<String> {
        let mut phrases = Vec::with_capacity(row.len());
        for &event in row {
            let patterns = self.patterns(event);
            let pattern = pick(self.rng, patterns);
            phrases.push(self.happen(event, pattern));
        }
        phrases
    }

    /// How to say an event; coming back is not just going.
    fn patterns(&mut self, event: Event) -> &'static [&'static str] {
        if self.remember(event) { phrases::RETURNS } else { phrases::of_event(event, &self.world) }
    }

    /// Remembers the place that somebody is about to leave; tells whether they go where they
    /// have been.
    fn remember(&mut self, event: Event) -> bool {
        let Event::Go(who, to) = event else { return false };
        self.been.push((who, self.world.person(who).place));
        self.been.contains(&(who, to))
    }

    /// A lead that is not the last sentence's; none where nothing has happened that it follows on.
    fn fresh_lead(&mut self) -> &'static str {
        let lead = pick(self.rng, LEADS);
        let idle = !self.follows_event || lead == self.last_lead;
        self.last_lead = if idle { "" } else { lead };
        self.last_lead
    }

    /// Words an event and lets it happen.
    fn happen(&mut self, event: Event, pattern: &str) -> String {
        let said = self.fill(pattern, roles_of(event, &self.world));
        self.reference.end_clause();
        if matches!(event, Event::Go(..)) {
            self.reference.leave_place();
        }
        self.world.apply(event).expect("beats replay from their start");
        said
    }

    fn loss(&mut self, event: Event) {
        self.reference.begin_sentence(event.actor());
        let pattern = pick(self.rng, phrases::of_event(event, &self.world));
        let said = self.happen(event, pattern);
        self.sentence(&said);
    }

    fn note(&mut self, note: Note, roles: Roles) {
        let actor = roles.actor.expect("every note has an actor");
        self.follows_event = false;
        self.reference.begin_sentence(actor);
        let pattern = pick(self.rng, phrases::of_note(note));
        let said = self.fill(pattern, roles);
        let lead = self.lead.take().unwrap_or_default();
        // A quotation keeps its capital, so no lead goes before it.
        let lead = if said.starts_with('"') { "" } else { lead };
        self.sentence(&format!("{lead}{said}"));
        if matches!(note, Note::AskFor | Note::Game) {
            self.reference.end_clause();
            self.reference.turn_to(roles.other.expect("these notes have another person"));
        }
    }

    fn sentence(&mut self, said: &str) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(&capitalised(said));
    }

    fn fill(&mut self, pattern: &str, roles: Roles) -> String {
        let mut said = String::with_capacity(64);
        for (number, part) in pattern.split(['{', '}']).enumerate() {
            if number % 2 == 0 {
                said.push_str(part);
            } else {
                said.push_str(&self.slot(part, roles));
            }
        }
        said
    }

    fn slot(&mut self, slot: &str, roles: Roles) -> String {
        let Self { world, rng, reference, .. } = self;
        let actor = roles.actor.expect("every sentence has an actor");
        let other = || roles.other.expect("the pattern needs another person");
        let thing = || roles.thing.expect("the pattern needs a thing");
        match slot {
            "s" => reference.subject(world, actor),
            "a" => reference.actor(world, actor),
            "o" => reference.object(world, other()),
            "O" => reference.name(world, other()),
            "X" => reference.name(world, roles.third.expect("the pattern needs a third person")),
            "their" => world.person(other()).gender.possessive().to_owned(),
            "he" => reference.same_subject(world, actor),
            "T" => reference.described(world, rng, thing()),
            "t" => reference.item(world, rng, Item::Thing(thing())),
            "n" => reference.label(world, rng, thing()),
            "k" => {
                let container = roles.container.expect("the pattern needs a container");
                reference.item(world, rng, Item::Container(container))
            }
            "p" => format!("the {}", world.place(roles.place.expect("the pattern needs a place"))),
            "c" => world.person(actor).likes.to_owned(),
            _ => unreachable!("no pattern has the slot {slot}"),
        }
    }
}

/// What the slots of an event's patterns stand for.
fn roles_of(event: Event, world: &World) -> Roles {
    let roles = Roles { actor: Some(event.actor()), ..Roles::default() };
    match event {
        Event::Go(_, place) => Roles { place: Some(place), ..roles },
        Event::Open(_, container) | Event::Close(_, container) => {
            Roles { container: Some(container), ..roles }
        }
        Event::Take(_, thing) => {
            let container = match world.thing(thing).spot {
                Spot::Inside(container) => Some(container),
                _ => None,
            };
            Roles { thing: Some(thing), container, ..roles }
        }
        Event::Put(_, thing, container) | Event::Hide(_, thing, container) => {
            Roles { thing: Some(thing), container: Some(container), ..roles }
        }
        Event::Give(_, other, thing) => Roles { other: Some(other), thing: Some(thing), ..roles },
        Event::Leave(_, thing) | Event::Lose(_, thing) => Roles { thing: Some(thing), ..roles },
    }
}

/// "a", "a and b", "a, b and c".
pub(super) fn joined(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [init @ .., last] => format!("{} and {last}", init.join(", ")),
    }
}

/// The first letter made a capital.
pub(super) fn capitalised(said: &str) -> String {
    let mut letters = said.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}
