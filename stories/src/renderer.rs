//! Renders the steps of a scenario as connected English sentences.
//!
//! The renderer replays the scene, so every sentence is true at its moment. `templates` has the
//! sentence patterns, `references` decides between name and pronoun.

use rand_chacha::ChaCha8Rng;

use rand::RngExt;

use crate::builder::{Remark, Slots, Step};
use crate::event::StoryEvent;
use crate::references::{Antecedent, ReferenceTracker};
use crate::sample::pick;
use crate::scene::{PersonId, PlaceId, Scene, Spot};
use crate::templates::{self, LEADS};

/// The most verb phrases in one sentence.
const MAX_VERB_PHRASES: usize = 3;

/// Renders the steps, starting from the scene before them.
pub(crate) fn render(start: &Scene, steps: &[Step], rng: &mut ChaCha8Rng) -> String {
    let mut renderer = Renderer {
        scene: start.clone(),
        rng,
        reference: ReferenceTracker::default(),
        lead: None,
        last_lead: "",
        follows_event: false,
        follows_arrival: false,
        been: Vec::new(),
        text: String::new(),
    };
    renderer.render(steps);
    renderer.text
}

struct Renderer<'a> {
    scene: Scene,
    rng: &'a mut ChaCha8Rng,
    reference: ReferenceTracker,
    lead: Option<&'static str>,
    last_lead: &'static str,
    follows_event: bool,
    follows_arrival: bool,
    been: Vec<(PersonId, PlaceId)>,
    text: String,
}

impl Renderer<'_> {
    fn render(&mut self, mut steps: &[Step]) {
        while let Some((step, rest)) = steps.split_first() {
            steps = rest;
            match *step {
                Step::TimeShift(shift) => {
                    self.lead = Some(pick(self.rng, templates::of_time_shift(shift)));
                    self.reference.forget();
                }
                Step::Remark(remark, slots) => self.remark(remark, slots),
                Step::Event(event @ StoryEvent::Lose(..)) => self.loss(event),
                Step::Event(event) => {
                    let row = self.sentence_events(event, rest);
                    // `row` begins with this step, which is not in `rest`.
                    steps = &rest[row.len() - 1..];
                    self.events(&row);
                }
            }
        }
    }

    /// The events that share a sentence: those of one actor, up to the first gift.
    fn sentence_events(&mut self, first: StoryEvent, rest: &[Step]) -> Vec<StoryEvent> {
        let longest = self.rng.random_range(2..=MAX_VERB_PHRASES);
        let mut row = vec![first];
        for step in rest.iter().take(longest - 1) {
            let given = matches!(row.last(), Some(StoryEvent::Give(..)));
            match *step {
                Step::Event(next)
                    if !given
                        && next.actor() == first.actor()
                        && !matches!(next, StoryEvent::Lose(..)) =>
                {
                    row.push(next);
                }
                _ => break,
            }
        }
        row
    }

    fn events(&mut self, row: &[StoryEvent]) {
        let who = row[0].actor();
        self.reference.begin_sentence(who);
        let shifted = self.lead.take();
        // Both other forms begin with a walk and have no place for a lead such as "Later".
        let splits = shifted.is_none() && row.len() > 1 && matches!(row[0], StoryEvent::Go(..));
        // Never two sentences with "When … came to" in a row.
        let follows_arrival = std::mem::take(&mut self.follows_arrival);
        match self.rng.random_range(0..6) {
            0 if splits && !follows_arrival => self.arrival(who, row),
            1 if splits => self.two_steps(who, row),
            _ => {
                let lead = shifted.unwrap_or_else(|| self.fresh_lead());
                let subject = self.reference.subject(&self.scene, who);
                let phrases = self.verb_phrases(row);
                self.sentence(&format!("{lead}{subject} {}.", joined(&phrases)));
            }
        }
        self.follows_event = true;
    }

    /// "When Mia came to the barn, she opened the blue box."
    fn arrival(&mut self, who: PersonId, row: &[StoryEvent]) {
        self.follows_arrival = true;
        let subject = self.reference.subject(&self.scene, who);
        self.record_visit(row[0]);
        let place = self.render_event(row[0], "{p}");
        let again = self.reference.same_subject(&self.scene, who);
        let phrases = self.verb_phrases(&row[1..]);
        self.sentence(&format!("When {subject} came to {place}, {again} {}.", joined(&phrases)));
    }

    /// "Mia went to the barn. There she opened the blue box."
    fn two_steps(&mut self, who: PersonId, row: &[StoryEvent]) {
        let subject = self.reference.subject(&self.scene, who);
        let going = self.verb_phrases(&row[..1]);
        self.sentence(&format!("{subject} {}.", going[0]));
        self.reference.begin_sentence(who);
        let again = self.reference.subject(&self.scene, who);
        let phrases = self.verb_phrases(&row[1..]);
        self.sentence(&format!("There {again} {}.", joined(&phrases)));
    }

    fn verb_phrases(&mut self, row: &[StoryEvent]) -> Vec<String> {
        let mut phrases = Vec::with_capacity(row.len());
        for &event in row {
            let patterns = self.patterns(event);
            let pattern = pick(self.rng, patterns);
            phrases.push(self.render_event(event, pattern));
        }
        phrases
    }

    /// The patterns of an event. Coming back has its own.
    fn patterns(&mut self, event: StoryEvent) -> &'static [&'static str] {
        if self.record_visit(event) {
            templates::RETURNS
        } else {
            templates::of_event(event, &self.scene)
        }
    }

    /// Records the place that a person leaves; true if they return to a place.
    fn record_visit(&mut self, event: StoryEvent) -> bool {
        let StoryEvent::Go(who, to) = event else { return false };
        // A place counts as visited once it is left, the first one too.
        self.been.push((who, self.scene.person(who).place));
        self.been.contains(&(who, to))
    }

    /// A lead other than the last one; none if the sentence follows no event.
    fn fresh_lead(&mut self) -> &'static str {
        let lead = pick(self.rng, LEADS);
        let idle = !self.follows_event || lead == self.last_lead;
        self.last_lead = if idle { "" } else { lead };
        self.last_lead
    }

    /// Puts an event into words and applies it.
    fn render_event(&mut self, event: StoryEvent, pattern: &str) -> String {
        // In words first: "took the key out of the box" needs the scene in which it is still there.
        let said = self.fill(pattern, slots_of(event, &self.scene));
        self.reference.end_clause();
        if matches!(event, StoryEvent::Go(..)) {
            self.reference.leave_place();
        }
        self.scene.apply(event).expect("steps replay from their start");
        said
    }

    fn loss(&mut self, event: StoryEvent) {
        self.reference.begin_sentence(event.actor());
        let pattern = pick(self.rng, templates::of_event(event, &self.scene));
        let said = self.render_event(event, pattern);
        self.sentence(&said);
    }

    fn remark(&mut self, remark: Remark, slots: Slots) {
        let actor = slots.actor.expect("every remark has an actor");
        self.follows_event = false;
        self.reference.begin_sentence(actor);
        let pattern = pick(self.rng, templates::of_remark(remark));
        let said = self.fill(pattern, slots);
        let lead = self.lead.take().unwrap_or_default();
        // A quotation keeps its capital, so no lead goes before it.
        let lead = if said.starts_with('"') { "" } else { lead };
        self.sentence(&format!("{lead}{said}"));
        // After these the other person is the one a pronoun would mean.
        if matches!(remark, Remark::AskFor | Remark::Game) {
            self.reference.end_clause();
            self.reference.switch_subject(slots.other.expect("these notes have another person"));
        }
    }

    fn sentence(&mut self, said: &str) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(&capitalised(said));
    }

    fn fill(&mut self, pattern: &str, slots: Slots) -> String {
        let mut said = String::with_capacity(64);
        for (number, part) in pattern.split(['{', '}']).enumerate() {
            if number % 2 == 0 {
                said.push_str(part);
            } else {
                said.push_str(&self.slot(part, slots));
            }
        }
        said
    }

    fn slot(&mut self, slot: &str, slots: Slots) -> String {
        let Self { scene, rng, reference, .. } = self;
        let actor = slots.actor.expect("every sentence has an actor");
        let other = || slots.other.expect("the pattern needs another person");
        let thing = || slots.thing.expect("the pattern needs a thing");
        match slot {
            "s" => reference.subject(scene, actor),
            "a" => reference.actor(scene, actor),
            "o" => reference.object(scene, other()),
            "O" => reference.name(scene, other()),
            "X" => reference.name(scene, slots.third.expect("the pattern needs a third person")),
            "their" => scene.person(other()).gender.possessive().to_owned(),
            "he" => reference.same_subject(scene, actor),
            "T" => reference.described(scene, rng, thing()),
            "t" => reference.item(scene, rng, Antecedent::Thing(thing())),
            "n" => reference.label(scene, rng, thing()),
            "k" => {
                let container = slots.container.expect("the pattern needs a container");
                reference.item(scene, rng, Antecedent::Container(container))
            }
            "p" => format!("the {}", scene.place(slots.place.expect("the pattern needs a place"))),
            "c" => scene.person(actor).likes.to_owned(),
            _ => unreachable!("no pattern has the slot {slot}"),
        }
    }
}

/// What fills the slots of an event's patterns.
fn slots_of(event: StoryEvent, scene: &Scene) -> Slots {
    let slots = Slots { actor: Some(event.actor()), ..Slots::default() };
    match event {
        StoryEvent::Go(_, place) => Slots { place: Some(place), ..slots },
        StoryEvent::Open(_, container) | StoryEvent::Close(_, container) => {
            Slots { container: Some(container), ..slots }
        }
        StoryEvent::Take(_, thing) => {
            let container = match scene.thing(thing).spot {
                Spot::Inside(container) => Some(container),
                _ => None,
            };
            Slots { thing: Some(thing), container, ..slots }
        }
        StoryEvent::Put(_, thing, container) | StoryEvent::Hide(_, thing, container) => {
            Slots { thing: Some(thing), container: Some(container), ..slots }
        }
        StoryEvent::Give(_, other, thing) => {
            Slots { other: Some(other), thing: Some(thing), ..slots }
        }
        StoryEvent::Leave(_, thing) | StoryEvent::Lose(_, thing) => {
            Slots { thing: Some(thing), ..slots }
        }
    }
}

/// "a", "a and b", "a, b and c".
pub(crate) fn joined(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [init @ .., last] => format!("{} and {last}", init.join(", ")),
    }
}

/// The first letter made a capital.
pub(crate) fn capitalised(said: &str) -> String {
    let mut letters = said.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}
