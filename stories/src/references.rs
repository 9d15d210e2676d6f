//! Referring expressions: whether a person or thing is called by name, by description or by a
//! pronoun. A pronoun is used only if it is unambiguous.
//!
//! For that, the tracker remembers who and what the last sentences mentioned.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::scene::{ContainerId, PersonId, Scene, ThingId};

/// What "it" can refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Antecedent {
    Thing(ThingId),
    Container(ContainerId),
}

/// The most sentences in a row whose subject is a pronoun.
const MAX_PRONOUN_RUN: u8 = 2;

/// After this many sentences, "it" no longer refers to the theme.
const MAX_THEME_AGE: u8 = 2;

/// The recent mentions.
#[derive(Default)]
pub(crate) struct ReferenceTracker {
    /// People mentioned in the last sentence, and in this one.
    before: Vec<PersonId>,
    now: Vec<PersonId>,
    subject: Option<PersonId>,
    pronoun_run: u8,
    /// What the last clause was about: the antecedent of "it".
    theme: Option<Antecedent>,
    theme_is_near: bool,
    theme_age: u8,
    next_theme: Option<Antecedent>,
    containers_now: Vec<ContainerId>,
}

impl ReferenceTracker {
    /// Starts a sentence: a pronoun can refer to the last sentence, but not to earlier ones.
    pub(crate) fn begin_sentence(&mut self, actor: PersonId) {
        self.before = std::mem::take(&mut self.now);
        self.containers_now.clear();
        self.end_clause();
        self.theme_age += 1;
        if self.theme_age > MAX_THEME_AGE {
            self.theme = None;
        }
        // "It" reaches over a full stop only where the subject stays the same.
        self.theme_is_near = self.subject == Some(actor) && self.theme.is_some();
    }

    /// Ends a clause: what it was about can be "it" in the next.
    pub(crate) fn end_clause(&mut self) {
        if let Some(item) = self.next_theme.take() {
            self.theme = Some(item);
            self.theme_age = 0;
        }
        self.theme_is_near = self.theme.is_some();
    }

    /// After "went to the barn", "it" can be what is carried, but not what was left behind.
    pub(crate) fn leave_place(&mut self) {
        if matches!(self.theme, Some(Antecedent::Container(_))) {
            self.theme = None;
            self.theme_is_near = false;
        }
    }

    /// Forgets all mentions, at a change of scene.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Makes another person the subject, who is named at the next mention. "It" stays.
    pub(crate) fn switch_subject(&mut self, actor: PersonId) {
        self.subject = Some(actor);
        // As if the pronouns were used up: the next mention is by name.
        self.pronoun_run = MAX_PRONOUN_RUN;
    }

    /// The subject of a sentence: a pronoun if it is unambiguous.
    pub(crate) fn subject(&mut self, scene: &Scene, who: PersonId) -> String {
        let clear = self.subject == Some(who) && !Self::has_rival(scene, who, &self.before);
        let pronoun = clear && self.pronoun_run < MAX_PRONOUN_RUN;
        self.pronoun_run = if pronoun { self.pronoun_run + 1 } else { 0 };
        self.subject = Some(who);
        self.now.push(who);
        let person = scene.person(who);
        if pronoun { person.gender.subject() } else { person.name }.to_owned()
    }

    /// The subject again in the same sentence.
    pub(crate) fn same_subject(&mut self, scene: &Scene, who: PersonId) -> String {
        let person = scene.person(who);
        let rival = Self::has_rival(scene, who, &self.now);
        if rival { person.name } else { person.gender.subject() }.to_owned()
    }

    /// Always the name.
    pub(crate) fn name(&mut self, scene: &Scene, who: PersonId) -> String {
        self.now.push(who);
        scene.person(who).name.to_owned()
    }

    /// The actor by name, as the new subject.
    pub(crate) fn actor(&mut self, scene: &Scene, who: PersonId) -> String {
        self.subject = Some(who);
        self.pronoun_run = 0;
        self.name(scene, who)
    }

    /// A person who is not the subject: a pronoun if it is unambiguous.
    pub(crate) fn object(&mut self, scene: &Scene, who: PersonId) -> String {
        let known = self.before.contains(&who);
        // A rival in either sentence makes the pronoun ambiguous.
        let rival = [&self.before, &self.now].iter().any(|said| Self::has_rival(scene, who, said));
        self.now.push(who);
        let person = scene.person(who);
        if known && !rival { person.gender.object() } else { person.name }.to_owned()
    }

    /// A thing or container: "it" if it is what the last clause was about.
    pub(crate) fn item(&mut self, scene: &Scene, rng: &mut ChaCha8Rng, item: Antecedent) -> String {
        let first = self.next_theme.is_none();
        // The first item of a clause is what the clause is about.
        self.next_theme.get_or_insert(item);
        if first && self.theme == Some(item) && self.theme_is_near {
            return "it".to_owned();
        }
        let may_be_it = !first && self.theme == Some(item) && self.theme_is_near;
        match item {
            // "took the key out of it": the clause has named another thing first.
            Antecedent::Container(_) if may_be_it && self.next_theme != Some(item) => {
                "it".to_owned()
            }
            Antecedent::Container(id) => self.container(scene, id),
            Antecedent::Thing(id) => format!("the {}", thing_label(scene, rng, id)),
        }
    }

    /// A container by its colour, unless the sentence has already mentioned it.
    fn container(&mut self, scene: &Scene, id: ContainerId) -> String {
        let container = scene.container(id);
        if self.containers_now.contains(&id) {
            return format!("the {}", container.noun);
        }
        self.containers_now.push(id);
        format!("the {} {}", container.colour, container.noun)
    }

    /// A thing by its label, never "it".
    pub(crate) fn described(&mut self, scene: &Scene, rng: &mut ChaCha8Rng, id: ThingId) -> String {
        format!("the {}", self.label(scene, rng, id))
    }

    /// The label of a thing without an article, as used in direct speech.
    pub(crate) fn label(&mut self, scene: &Scene, rng: &mut ChaCha8Rng, id: ThingId) -> String {
        self.next_theme = Some(Antecedent::Thing(id));
        thing_label(scene, rng, id)
    }

    /// Whether the same pronoun could mean another of these people.
    fn has_rival(scene: &Scene, who: PersonId, said: &[PersonId]) -> bool {
        let gender = scene.person(who).gender;
        said.iter().any(|&other| other != who && scene.person(other).gender == gender)
    }
}

/// "ball" if that is unambiguous, and otherwise "red ball"; sometimes "red ball" anyway.
pub(crate) fn thing_label(scene: &Scene, rng: &mut ChaCha8Rng, id: ThingId) -> String {
    let thing = scene.thing(id);
    if scene.is_only_one(id) && rng.random_bool(0.7) {
        thing.noun.to_owned()
    } else {
        format!("{} {}", thing.colour, thing.noun)
    }
}
