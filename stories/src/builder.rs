//! Builds a scenario: applies the events of a plot to a scene and records them as steps.
//!
//! The compound actions (fetch a thing, stow it, meet somebody) live here, the plots made of them
//! in `scenario`.

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;

use crate::event::StoryEvent;
use crate::scene::{ContainerId, Lid, PersonId, PlaceId, Scene, Spot, ThingId};

/// One step of a story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Event(StoryEvent),
    /// A feeling, wish or speech that leaves the scene as it is.
    Remark(Remark, Slots),
    TimeShift(TimeShift),
}

/// The people and things that fill the slots of a sentence template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots {
    /// The subject.
    pub(crate) actor: Option<PersonId>,
    pub(crate) other: Option<PersonId>,
    /// A third person who is mentioned.
    pub(crate) third: Option<PersonId>,
    pub(crate) thing: Option<ThingId>,
    pub(crate) container: Option<ContainerId>,
    pub(crate) place: Option<PlaceId>,
}

/// The kinds of remarks. The actor is the subject; the other slots depend on the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remark {
    /// The actor loves the thing they hold.
    Treasures,
    /// The actor wants to keep the thing they hold safe.
    KeepSafe,
    /// The actor wants to give the other a present.
    Present,
    LikesColour,
    /// The actor finds that the thing is not in the container.
    NotThere,
    Sad,
    Glad,
    Thanks,
    /// The actor asks the other where the thing is.
    AskWhere,
    /// The actor says that the thing is in the container.
    TellContainer,
    /// The actor asks the other for the thing the other holds.
    AskFor,
    Agree,
    /// The actor notices that the thing is gone.
    Missed,
    /// The two want to play hide and seek with the thing.
    Game,
    /// The actor asks the other to bring the thing to the third.
    Errand,
    Tidy,
    Trade,
    /// The actor, who does not have the thing, wants it.
    Wants,
    /// The actor is glad to hold the thing again.
    HasAgain,
}

/// How the time of the story moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeShift {
    Meanwhile,
    Later,
    Evening,
}

/// The scene as a plot changes it, and the steps so far.
pub(crate) struct ScenarioBuilder<'a> {
    pub(crate) scene: Scene,
    pub(crate) steps: Vec<Step>,
    pub(crate) rng: &'a mut ChaCha8Rng,
}

impl<'a> ScenarioBuilder<'a> {
    pub(crate) fn new(scene: Scene, rng: &'a mut ChaCha8Rng) -> Self {
        Self { scene, steps: Vec::new(), rng }
    }

    /// Applies an event and records it.
    pub(crate) fn act(&mut self, event: StoryEvent) {
        self.scene.apply(event).expect("a plot does only what its scene allows");
        self.steps.push(Step::Event(event));
    }

    pub(crate) fn remark(&mut self, remark: Remark, actor: PersonId, slots: Slots) {
        self.steps.push(Step::Remark(remark, Slots { actor: Some(actor), ..slots }));
    }

    pub(crate) fn shift_time(&mut self, shift: TimeShift) {
        self.steps.push(Step::TimeShift(shift));
    }

    /// Goes to a place, if not already there.
    pub(crate) fn go(&mut self, who: PersonId, place: PlaceId) {
        if self.scene.person(who).place != place {
            self.act(StoryEvent::Go(who, place));
        }
    }

    /// Goes to where the other person is.
    pub(crate) fn meet(&mut self, who: PersonId, other: PersonId) {
        self.go(who, self.scene.person(other).place);
    }

    /// Goes to a container and opens it if it is shut.
    pub(crate) fn reach(&mut self, who: PersonId, container: ContainerId) {
        self.go(who, self.scene.container(container).place);
        self.undo_close(who, container);
        if self.scene.container(container).lid == Lid::Shut {
            self.act(StoryEvent::Open(who, container));
        }
    }

    /// Takes back a step in which the same person has just closed what they now want to open.
    fn undo_close(&mut self, who: PersonId, container: ContainerId) {
        if self.steps.last() == Some(&Step::Event(StoryEvent::Close(who, container))) {
            self.steps.pop();
            // By hand: an opening event would be a step of the story.
            self.scene.containers[container.0].lid = Lid::Open;
        }
    }

    /// Gets hold of a thing wherever it is, asking for it if somebody else has it.
    pub(crate) fn fetch(&mut self, who: PersonId, thing: ThingId) {
        match self.scene.thing(thing).spot {
            Spot::With(holder) if holder == who => {}
            Spot::With(holder) => self.ask_for(who, holder, thing),
            Spot::Inside(container) => {
                self.reach(who, container);
                self.act(StoryEvent::Take(who, thing));
            }
            Spot::Lying(place) => {
                self.go(who, place);
                self.act(StoryEvent::Take(who, thing));
            }
        }
    }

    fn ask_for(&mut self, who: PersonId, holder: PersonId, thing: ThingId) {
        self.meet(who, holder);
        let slots = Slots { other: Some(holder), thing: Some(thing), ..Slots::default() };
        self.remark(Remark::AskFor, who, slots);
        self.act(StoryEvent::Give(holder, who, thing));
    }

    /// Puts a held thing into a container, and sometimes closes it.
    pub(crate) fn stow(&mut self, who: PersonId, thing: ThingId, container: ContainerId) {
        self.reach(who, container);
        self.act(StoryEvent::Put(who, thing, container));
        self.maybe_close(who, container);
    }

    /// As `stow`, but hidden.
    pub(crate) fn hide(&mut self, who: PersonId, thing: ThingId, container: ContainerId) {
        self.reach(who, container);
        self.act(StoryEvent::Hide(who, thing, container));
        self.maybe_close(who, container);
    }

    fn maybe_close(&mut self, who: PersonId, container: ContainerId) {
        if self.scene.container(container).lid == Lid::Open && self.rng.random_bool(0.25) {
            self.act(StoryEvent::Close(who, container));
        }
    }

    /// Goes to the other person and gives them the thing.
    pub(crate) fn bring(&mut self, who: PersonId, thing: ThingId, other: PersonId) {
        self.meet(who, other);
        self.act(StoryEvent::Give(who, other, thing));
    }

    /// Some place that is none of these.
    pub(crate) fn place_besides(&mut self, avoided: &[PlaceId]) -> PlaceId {
        let places = (0..self.scene.places.len()).map(PlaceId);
        let free = places.filter(|place| !avoided.contains(place));
        // A scene has four places and plots avoid three at most, so one is always free.
        free.choose(self.rng).unwrap_or(PlaceId(0))
    }

    /// Some container that is none of these.
    pub(crate) fn container_besides(&mut self, avoided: &[ContainerId]) -> ContainerId {
        let containers = (0..self.scene.containers.len()).map(ContainerId);
        let free = containers.filter(|container| !avoided.contains(container));
        free.choose(self.rng).unwrap_or(ContainerId(0))
    }

    /// Some person who is none of these, if there is one.
    pub(crate) fn person_besides(&mut self, avoided: &[PersonId]) -> Option<PersonId> {
        let people = (0..self.scene.people.len()).map(PersonId);
        people.filter(|person| !avoided.contains(person)).choose(self.rng)
    }

    /// Whether one of the last three steps involved the person.
    pub(crate) fn acted_recently(&self, who: PersonId) -> bool {
        self.steps.iter().rev().take(3).any(|step| match *step {
            // The one who is given something is busy too, but not the event's actor.
            Step::Event(StoryEvent::Give(from, to, _)) => from == who || to == who,
            Step::Event(event) => event.actor() == who,
            Step::Remark(_, slots) => slots.actor == Some(who) || slots.other == Some(who),
            Step::TimeShift(_) => false,
        })
    }

    pub(crate) fn is_shorter_than(&self, steps: usize) -> bool {
        self.steps.len() < steps
    }
}

#[cfg(test)]
impl Remark {
    /// Whether what the remark says is true of a scene.
    pub(crate) fn holds(self, scene: &Scene, slots: Slots) -> bool {
        let actor = slots.actor.expect("every remark has an actor");
        let at = scene.person(actor).place;
        let meets = || slots.other.is_some_and(|other| scene.person(other).place == at);
        let thing = || scene.thing(slots.thing.expect("this remark has a thing")).spot;
        match self {
            Self::Treasures | Self::KeepSafe | Self::HasAgain => thing() == Spot::With(actor),
            Self::Thanks | Self::AskWhere | Self::Errand => meets(),
            Self::AskFor => meets() && slots.other.is_some_and(|o| thing() == Spot::With(o)),
            Self::NotThere => slots.container.is_some_and(|id| {
                let container = scene.container(id);
                container.place == at && container.lid != Lid::Shut && thing() != Spot::Inside(id)
            }),
            Self::TellContainer => slots.container.map(Spot::Inside) == Some(thing()),
            Self::Missed | Self::Wants => thing() != Spot::With(actor),
            Self::Trade => meets() && thing() == Spot::With(actor),
            _ => true,
        }
    }
}
