//! Refuses a run that cannot fit into memory before it starts, with the table of `plan` and with what
//! would make it fit. The memory is the machine's, or that of the card on which a run computes.

use std::fmt::Write;

use bitnet_format::ModelSpec;
use bitnet_format::figures::size;
use burn::tensor::Device;

use crate::card_memory::CardMemory;
use crate::device;
use crate::error::TrainError;
use crate::estimate::{MemoryEstimate, RankLayout, RankWorkload, TeacherLoad, memory};
use crate::latents::{LatentFormat, LeanSettings, MomentFormat, UpdateTime};
use crate::model::ActivationMemory;
use crate::platform::free_memory;
use crate::recipe::{Recipe, StageKind};
use crate::speed::TrainWorkload;

impl RankLayout {
    /// The layout of a recipe on `ranks` ranks.
    pub fn of(recipe: &Recipe, ranks: usize) -> Self {
        let train = &recipe.train;
        let sharded = train.shard_optimizer && ranks > 1;
        Self { ranks: ranks as u64, sharded, comm_dtype: train.reduce_precision }
    }
}

impl RankWorkload {
    /// The workload of the rank with the largest share.
    pub fn of(recipe: &Recipe, ranks: usize) -> Self {
        let train = &recipe.train;
        // Ranks that do not divide the batch have shares that differ by one.
        let share = train.batch.div_ceil(ranks);
        let micro_batch = train.micro_batch.min(share);
        Self {
            items: micro_batch as u64,
            copies: train.gradient_copies as u64,
            rows_an_item: if recipe.stage == StageKind::Dpo { 2 } else { 1 },
            seq_len: recipe.data.seq_len as u64,
            micro_batches: share.div_ceil(micro_batch) as u64,
            activations: train.activations(),
            lean: recipe.lean(),
            update: train.update,
            adapter: recipe.adapter.as_ref().map(|adapter| (adapter.kind, adapter.rank as u64)),
            muon: recipe.optimizer.muon.is_some(),
            teacher: None,
        }
    }

    /// The same with a teacher of this shape, where the recipe lets one run beside the student.
    #[must_use]
    pub fn taught(self, recipe: &Recipe, teacher: Option<&ModelSpec>) -> Self {
        let beside = recipe.distill.as_ref().is_some_and(|distill| distill.top_k.is_none());
        Self { teacher: teacher.filter(|_| beside).map(TeacherLoad::of), ..self }
    }
}

impl TrainWorkload {
    /// The work of the rank with the largest share, and all ranks.
    pub fn share(&self) -> (RankWorkload, RankLayout) {
        let ranks = self.comm.world_size();
        let load = RankWorkload {
            items: self.rows.div_ceil(ranks) as u64,
            copies: self.copies as u64,
            rows_an_item: 1,
            seq_len: self.seq_len as u64,
            micro_batches: 1,
            activations: self.activations,
            ..RankWorkload::default()
        };
        let (sharded, comm_dtype) = (self.sharded && ranks > 1, self.comm_dtype);
        (load, RankLayout { ranks: ranks as u64, sharded, comm_dtype })
    }
}

/// What is to run.
#[derive(Clone, Copy, Debug)]
pub struct MemoryDemand<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// For each of its tensors whether it is not trained; empty where all are.
    pub frozen: &'a [bool],
    /// The work of a rank.
    pub load: RankWorkload,
    /// All ranks.
    pub ranks: RankLayout,
    /// Ranks of this machine.
    pub here: usize,
    /// Where it computes.
    pub device: &'a Device,
    /// What the advice names.
    pub settings: Settings,
}

/// Where the settings stand that decide how much memory is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    /// In a recipe, as keys.
    Recipe,
    /// On the command line of the benchmark, as flags. A step there is one micro-batch.
    BenchFlags,
}

/// The memory that a run may have now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeMemory {
    /// So many bytes of this machine's.
    Machine(u64),
    /// Some of a card's. Ranks of a machine have a card each.
    Card(CardMemory),
    /// The system or the driver does not tell.
    NotKnown,
}

impl FreeMemory {
    /// That of a device.
    pub fn of(device: &Device) -> Self {
        if device::shares_memory(device) {
            return free_memory().map_or(Self::NotKnown, Self::Machine);
        }
        device::own_memory(device).map_or(Self::NotKnown, Self::Card)
    }

    /// As many bytes as a run may have.
    fn bytes(self) -> u64 {
        match self {
            Self::Machine(free) => free,
            Self::Card(card) => card.free,
            // Nothing is refused then.
            Self::NotKnown => u64::MAX,
        }
    }

    /// How much is free, and where.
    fn in_words(self) -> String {
        match self {
            Self::Machine(free) => format!("free on this machine: {}", size(free)),
            Self::Card(CardMemory { total, free }) => {
                format!("free on the card: {} of its {}", size(free), size(total))
            }
            Self::NotKnown => "the memory of this device is not known".to_owned(),
        }
    }
}

/// Refuses what needs more memory than the machine, or its card, can give now. A device whose memory is
/// not known says so itself when it is full.
///
/// # Errors
/// With the parts of the memory, and the settings that need less.
pub fn require_memory(demand: MemoryDemand) -> Result<(), TrainError> {
    demand.check(FreeMemory::of(demand.device))
}

impl MemoryDemand<'_> {
    fn estimate(&self, load: RankWorkload) -> MemoryEstimate {
        memory(self.spec, self.frozen, load, self.ranks, self.device)
    }

    /// The memory of a rank.
    pub fn memory(&self) -> MemoryEstimate {
        self.estimate(self.load)
    }

    /// What each setting that saves memory saves, with all others as they are.
    pub fn savings(&self) -> Vec<(&'static str, u64)> {
        let RankWorkload { lean, update, activations, .. } = self.load;
        let with_lean = |lean| RankWorkload { lean, ..self.load };
        let mut without = Vec::new();
        // Updates in the backward pass need recomputed blocks: the two are not taken apart.
        if activations == ActivationMemory::Recomputed && update == UpdateTime::After {
            let kept = RankWorkload { activations: ActivationMemory::Kept, ..self.load };
            without.push(("train.recompute", kept));
        }
        if lean.latents.is_some_and(|format| format != LatentFormat::F32) {
            let lean = LeanSettings { latents: Some(LatentFormat::F32), ..lean };
            without.push(("train.latents", with_lean(lean)));
        }
        if lean.moments != MomentFormat::F32 {
            let lean = LeanSettings { moments: MomentFormat::F32, ..lean };
            without.push(("optimizer.moments", with_lean(lean)));
        }
        if update == UpdateTime::During {
            let after = RankWorkload { update: UpdateTime::After, ..self.load };
            without.push(("train.update", after));
        }
        let total = self.memory().total();
        let saved = |load| self.estimate(load).total().saturating_sub(total);
        without.into_iter().map(|(key, load)| (key, saved(load))).collect()
    }

    /// What is free, and where that is too little, the settings that need less.
    pub fn outlook(&self, free: FreeMemory) -> String {
        let (needed, there) = (self.bytes(self.load, free), free.in_words());
        match free {
            FreeMemory::NotKnown => format!("{there}: whether this run fits shows when it runs"),
            _ if needed <= free.bytes() => format!("{there}, enough"),
            _ => format!("{there}, too little for this run\n{}", self.advice(free)),
        }
    }

    /// Whether it needs no more than this share of what is free.
    pub fn fits(&self, free: FreeMemory, share: f64) -> bool {
        self.bytes(self.load, free) as f64 <= share * free.bytes() as f64
    }

    /// What this memory must hold: on a machine all parts of all its ranks, on a card those of the rank
    /// that computes there.
    fn bytes(&self, load: RankWorkload, free: FreeMemory) -> u64 {
        let estimate = self.estimate(load);
        match free {
            FreeMemory::Card(_) => estimate.on_a_card().total(),
            FreeMemory::Machine(_) | FreeMemory::NotKnown => {
                estimate.total().saturating_mul(self.here as u64)
            }
        }
    }

    fn check(&self, free: FreeMemory) -> Result<(), TrainError> {
        let needed = self.bytes(self.load, free);
        if needed <= free.bytes() {
            return Ok(());
        }
        let estimate = self.estimate(self.load);
        let (needs, estimate) = match free {
            // Burn's own operations keep more there than ours do, so it is at least this.
            FreeMemory::Card(_) => ("at least", estimate.on_a_card()),
            FreeMemory::Machine(_) | FreeMemory::NotKnown => ("about", estimate),
        };
        let together = self.here > 1 && matches!(free, FreeMemory::Machine(_));
        let ranks = if together { format!(" for {} ranks", self.here) } else { String::new() };
        let mut what = format!(
            "this needs {needs} {} of memory{ranks}; {} (--force starts it anyway)\n",
            size(needed),
            free.in_words()
        );
        for line in estimate.lines() {
            let _ = writeln!(what, "{line}");
        }
        what.push_str(&self.advice(free));
        Err(TrainError::NoMemory(what))
    }

    /// The settings that need less, the mildest first.
    fn advice(&self, free: FreeMemory) -> String {
        let micro_batches = match self.settings {
            Settings::Recipe => self.load.micro_batches.saturating_mul(self.load.items),
            Settings::BenchFlags => 1,
        };
        // As many micro-batches as there were items: their gradients are then summed.
        let items = RankWorkload { items: 1, micro_batches, ..self.load };
        let recompute = |load| RankWorkload { activations: ActivationMemory::Recomputed, ..load };
        let lean = |load| RankWorkload {
            micro_batches: 1,
            // What `memory = "lean"` chooses, and the one micro-batch a step that it needs.
            lean: LeanSettings::PRESET,
            update: UpdateTime::During,
            ..recompute(load)
        };
        let [one_item, again, otherwise] = self.settings.names();
        let mut ways = vec![
            (one_item, items),
            (again, recompute(self.load)),
            ("both of them", recompute(items)),
        ];
        // The benches have no flag for it, and it runs on the CPU only.
        if self.settings == Settings::Recipe && !matches!(free, FreeMemory::Card(_)) {
            let one = RankWorkload { items: 1, ..self.load };
            ways.push((
                "train.memory = \"lean\" (and train.micro_batch = train.batch)",
                lean(self.load),
            ));
            ways.push(("the same and train.batch = 1", lean(one)));
        }
        let mut text = String::new();
        for (setting, load) in ways {
            let needed = self.bytes(load, free);
            let fits = if needed <= free.bytes() { ", which fits" } else { "" };
            let _ = writeln!(text, "with {setting}: {}{fits}", size(needed));
        }
        let larger = match free {
            FreeMemory::Card(_) => "or a card with more memory (or the CPU, --device cpu)",
            FreeMemory::Machine(_) | FreeMemory::NotKnown => {
                "fewer --threads, or a machine with more memory"
            }
        };
        format!("{text}otherwise: {otherwise}, a smaller model, {larger}")
    }
}

impl Settings {
    /// What makes a pass over one item, what recomputes, and what else needs less.
    fn names(self) -> [&'static str; 3] {
        match self {
            Self::Recipe => [
                "train.micro_batch = 1",
                "train.recompute = true",
                "train.freeze of some tensors, a shorter data.seq_len",
            ],
            Self::BenchFlags => [
                "--batch 1 for each rank",
                "--recompute",
                "--shard-optimizer on several ranks, a shorter --seq-len, a smaller --vocab-size",
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(spec: &ModelSpec, items: u64, seq_len: u64) -> Result<(), TrainError> {
        demand_of(spec, items, seq_len, Settings::Recipe)
    }

    fn demand_of(
        spec: &ModelSpec,
        items: u64,
        seq_len: u64,
        settings: Settings,
    ) -> Result<(), TrainError> {
        let load = RankWorkload {
            items,
            rows_an_item: 1,
            seq_len,
            micro_batches: 1,
            ..RankWorkload::default()
        };
        let (ranks, device) = (RankLayout::SINGLE, &device::cpu());
        let demand = MemoryDemand { spec, frozen: &[], load, ranks, here: 1, device, settings };
        let free = FreeMemory::Machine(8_000_000_000);
        let checked = demand.check(free);
        assert_eq!(demand.outlook(free).ends_with("enough"), checked.is_ok());
        checked
    }

    #[test]
    fn every_saving_is_named_with_what_it_saves() {
        let spec: ModelSpec = toml::from_str(include_str!("../configs/2b4t.toml")).unwrap();
        let load = RankWorkload {
            items: 1,
            rows_an_item: 1,
            seq_len: 512,
            micro_batches: 1,
            activations: ActivationMemory::Recomputed,
            lean: LeanSettings::PRESET,
            update: UpdateTime::During,
            ..RankWorkload::default()
        };
        let (ranks, device, settings) = (RankLayout::SINGLE, &device::cpu(), Settings::Recipe);
        let demand =
            MemoryDemand { spec: &spec, frozen: &[], load, ranks, here: 1, device, settings };
        let saved: Vec<_> = demand.savings();
        let names: Vec<_> = saved.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["train.latents", "optimizer.moments", "train.update"]);
        // Two bytes a latent, six of both moments, all gradients but a block's and the embedding's.
        let parameters = spec.parameters() as f64;
        for ((name, saved), bytes) in saved.iter().zip([2.0, 5.9, 3.3]) {
            let found = *saved as f64 / parameters;
            assert!((found - bytes).abs() < 0.1, "{name}: {found} bytes a parameter");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_parts_and_what_would_fit() {
        let spec: ModelSpec = toml::from_str(include_str!("../configs/125m.toml")).unwrap();
        demand(&spec, 2, 512).unwrap();
        let error = demand(&spec, 256, 2048).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        let text = error.to_string();
        for part in
            ["activations", "weights", "total", "free on this machine: 8.00 GB", "which fits"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        let vast = demand(&spec, u64::from(u32::MAX), u64::from(u32::MAX)).unwrap_err();
        assert!(vast.to_string().contains("a smaller model"), "{vast}");
    }

    #[test]
    fn messages_name_flags_for_the_benchmark_and_keys_for_a_run() {
        let spec: ModelSpec = toml::from_str(include_str!("../configs/125m.toml")).unwrap();
        let text = |settings| demand_of(&spec, 256, 2048, settings).unwrap_err().to_string();
        let (run, bench) = (text(Settings::Recipe), text(Settings::BenchFlags));
        assert!(run.contains("train.micro_batch") && !run.contains("--batch"), "{run}");
        assert!(bench.contains("--batch 1") && bench.contains("which fits"), "{bench}");
        assert!(!bench.contains("train.") && !bench.contains("data."), "{bench}");
    }

    /// A card of 8 GB of which something else has one.
    const CARD: FreeMemory =
        FreeMemory::Card(CardMemory { total: 8_000_000_000, free: 7_000_000_000 });

    /// `125m` with so many rows of 2,048 tokens a step, on one of two ranks.
    fn on_a_rank(items: u64, look: impl Fn(&MemoryDemand)) {
        let spec: ModelSpec = toml::from_str(include_str!("../configs/125m.toml")).unwrap();
        let load = RankWorkload {
            items,
            rows_an_item: 1,
            seq_len: 2048,
            micro_batches: 1,
            ..RankWorkload::default()
        };
        let ranks = RankLayout { ranks: 2, ..RankLayout::SINGLE };
        let (device, settings) = (&device::cpu(), Settings::Recipe);
        look(&MemoryDemand { spec: &spec, frozen: &[], load, ranks, here: 2, device, settings });
    }

    #[test]
    fn what_does_not_fit_on_a_card_is_refused_with_the_parts_that_lie_there() {
        on_a_rank(64, |demand| {
            let error = demand.check(CARD).unwrap_err();
            assert_eq!(error.exit_code(), 5);
            let text = error.to_string();
            let parts = ["weights", "gradients", "moments", "activations", "logits", "total"];
            let words =
                ["at least", "free on the card: 7.00 GB of its 8.00 GB", "--force", "which fits"];
            for part in parts.iter().chain(&words) {
                assert!(text.contains(part), "{part} in {text}");
            }
            // Those of the host, what runs on the CPU only, and what saves the host's memory.
            for other in ["program", "exchange", "ranks", "lean", "--threads"] {
                assert!(!text.contains(other), "{other} in {text}");
            }
            assert!(demand.outlook(CARD).contains("too little for this run"));
            assert!(!demand.fits(CARD, 1.0));
        });
    }

    #[test]
    fn ranks_of_a_machine_have_a_card_each_and_share_its_own_memory() {
        on_a_rank(2, |demand| {
            let on_the_card = demand.memory().on_a_card().total();
            assert_eq!(demand.bytes(demand.load, CARD), on_the_card);
            let machine = FreeMemory::Machine(7_000_000_000);
            assert_eq!(demand.bytes(demand.load, machine), 2 * demand.memory().total());
            demand.check(CARD).unwrap();
            assert!(demand.outlook(CARD).ends_with("7.00 GB of its 8.00 GB, enough"));
            let full = FreeMemory::Card(CardMemory { total: 8_000_000_000, free: on_the_card });
            assert!(demand.fits(full, 1.0) && !demand.fits(full, 0.8));
        });
    }

    #[test]
    fn memory_that_is_not_known_refuses_nothing_and_plan_says_so() {
        on_a_rank(u64::from(u32::MAX), |demand| {
            demand.check(FreeMemory::NotKnown).unwrap();
            assert!(demand.fits(FreeMemory::NotKnown, 0.8));
            let text = demand.outlook(FreeMemory::NotKnown);
            assert!(text.starts_with("the memory of this device is not known"), "{text}");
        });
    }
}
