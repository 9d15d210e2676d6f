//! How people and things are referred to: by name, by description, or by a pronoun that can only
//! mean them.
//!
//! It keeps what a reader has in mind; which sentences are made is up to `narrator`.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::model::{ContainerId, PersonId, ThingId, World};

/// What "it" can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Thing(ThingId),
    Container(ContainerId),
}

/// A pronoun is not used for a subject more often than this in a row.
const LONGEST_PRONOUN_RUN: u8 = 2;

/// After that many sentences, "it" is out of mind.
const OLDEST_THEME: u8 = 2;

/// What the reader has in mind.
#[derive(Default)]
pub(super) struct Reference {
    before: Vec<PersonId>,
    now: Vec<PersonId>,
    subject: Option<PersonId>,
    pronoun_run: u8,
    theme: Option<Item>,
    theme_is_near: bool,
    theme_age: u8,
    next_theme: Option<Item>,
    containers_now: Vec<ContainerId>,
}

impl Reference {
    /// A sentence begins: those of the last one stay in mind, those before are out of it.
    pub(super) fn begin_sentence(&mut self, actor: PersonId) {
        self.before = std::mem::take(&mut self.now);
        self.containers_now.clear();
        self.end_clause();
        self.theme_age += 1;
        if self.theme_age > OLDEST_THEME {
            self.theme = None;
        }
        self.theme_is_near = self.subject == Some(actor) && self.theme.is_some();
    }

    /// A clause ends: what it was about can be "it" in the next.
    pub(super) fn end_clause(&mut self) {
        if let Some(item) = self.next_theme.take() {
            self.theme = Some(item);
            self.theme_age = 0;
        }
        self.theme_is_near = self.theme.is_some();
    }

    /// After "went to the barn" only what is carried along can be "it", not what was left behind.
    pub(super) fn leave_place(&mut self) {
        if matches!(self.theme, Some(Item::Container(_))) {
            self.theme = None;
            self.theme_is_near = false;
        }
    }

    /// The scene changes: nobody and nothing is in mind.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The other person has the next word: whoever speaks first is named, and "it" survives.
    pub(super) fn turn_to(&mut self, actor: PersonId) {
        self.subject = Some(actor);
        self.pronoun_run = LONGEST_PRONOUN_RUN;
    }

    /// The subject of a sentence: a pronoun if only they can be meant.
    pub(super) fn subject(&mut self, world: &World, who: PersonId) -> String {
        let clear = self.subject == Some(who) && !Self::has_rival(world, who, &self.before);
        let pronoun = clear && self.pronoun_run < LONGEST_PRONOUN_RUN;
        self.pronoun_run = if pronoun { self.pronoun_run + 1 } else { 0 };
        self.subject = Some(who);
        self.now.push(who);
        let person = world.person(who);
        if pronoun { person.gender.subject() } else { person.name }.to_owned()
    }

    /// The subject again in the same sentence.
    pub(super) fn same_subject(&mut self, world: &World, who: PersonId) -> String {
        let person = world.person(who);
        let rival = Self::has_rival(world, who, &self.now);
        if rival { person.name } else { person.gender.subject() }.to_owned()
    }

    /// The name, whatever is in mind.
    pub(super) fn name(&mut self, world: &World, who: PersonId) -> String {
        self.now.push(who);
        world.person(who).name.to_owned()
    }

    /// The actor by name, who is the subject of the sentence from now on.
    pub(super) fn actor(&mut self, world: &World, who: PersonId) -> String {
        self.subject = Some(who);
        self.pronoun_run = 0;
        self.name(world, who)
    }

    /// A person who is not the subject: a pronoun if only they can be meant.
    pub(super) fn object(&mut self, world: &World, who: PersonId) -> String {
        let known = self.before.contains(&who);
        let rival = [&self.before, &self.now].iter().any(|said| Self::has_rival(world, who, said));
        self.now.push(who);
        let person = world.person(who);
        if known && !rival { person.gender.object() } else { person.name }.to_owned()
    }

    /// A thing or container: "it" if it is what the last clause was about.
    pub(super) fn item(&mut self, world: &World, rng: &mut ChaCha8Rng, item: Item) -> String {
        let first = self.next_theme.is_none();
        self.next_theme.get_or_insert(item);
        if first && self.theme == Some(item) && self.theme_is_near {
            return "it".to_owned();
        }
        let may_be_it = !first && self.theme == Some(item) && self.theme_is_near;
        match item {
            // "took the key out of it": the clause has named another thing first.
            Item::Container(_) if may_be_it && self.next_theme != Some(item) => "it".to_owned(),
            Item::Container(id) => self.container(world, id),
            Item::Thing(id) => format!("the {}", thing_label(world, rng, id)),
        }
    }

    /// A container is told by its colour, unless the sentence has just done so.
    fn container(&mut self, world: &World, id: ContainerId) -> String {
        let container = world.container(id);
        if self.containers_now.contains(&id) {
            return format!("the {}", container.noun);
        }
        self.containers_now.push(id);
        format!("the {} {}", container.colour, container.noun)
    }

    /// A thing by its label, where "it" would read badly.
    pub(super) fn described(&mut self, world: &World, rng: &mut ChaCha8Rng, id: ThingId) -> String {
        format!("the {}", self.label(world, rng, id))
    }

    /// The label of a thing that is spoken of within quotation marks.
    pub(super) fn label(&mut self, world: &World, rng: &mut ChaCha8Rng, id: ThingId) -> String {
        self.next_theme = Some(Item::Thing(id));
        thing_label(world, rng, id)
    }

    fn has_rival(world: &World, who: PersonId, said: &[PersonId]) -> bool {
        let gender = world.person(who).gender;
        said.iter().any(|&other| other != who && world.person(other).gender == gender)
    }
}

/// "ball" where there is only one, else "red ball"; sometimes "red ball" all the same.
pub(super) fn thing_label(world: &World, rng: &mut ChaCha8Rng, id: ThingId) -> String {
    let thing = world.thing(id);
    if world.is_only_one(id) && rng.random_bool(0.7) {
        thing.noun.to_owned()
    } else {
        format!("{} {}", thing.colour, thing.noun)
    }
}
