//! `AdamW` with decoupled weight decay (arXiv 1711.05101) over the ordered parameter list, in the
//! order of operations of `torch.optim.AdamW`. The learning rate and the decay come with every
//! step, because two-phase training changes both. With `muon` the matrices of blocks are updated by
//! that (`muon`), and everything else as before.

use bitnet_format::{ModelSpec, TensorEntry, TensorRole, tensor_table};
use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::lean::{self, LeanMoments};
use super::moments::{Moment, MomentKind};
use super::muon::{self, MuonSettings, MuonState};
use crate::host::to_host;
use crate::latents::codec::{CHUNK, LatentChunk};
use crate::latents::rounding::RoundingKey;
use crate::latents::{Latents, LeanSettings};
use crate::model::WidthRatio;
use crate::ops::{self, AdamWUpdate, OpBackend};
use crate::recipe::StepRates;

/// The constants of an [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// What updates the matrices of blocks in its place.
    pub muon: Option<MuonSettings>,
    /// How the rates depend on the width of the model.
    pub width: WidthRatio,
}

impl Default for AdamWSettings {
    /// The betas of the training tips (Table 2) and torch's eps.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, muon: None, width: WidthRatio::default() }
    }
}

/// The two of them, in the order of a checkpoint.
pub(crate) const MOMENTS: [MomentKind; 2] = [MomentKind::First, MomentKind::Second];

/// Moments of every parameter that is trained, flat and in table order.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    decayed: Vec<bool>,
    /// What the rate of each parameter is multiplied by.
    rate_factors: Vec<f64>,
    frozen: Vec<bool>,
    /// Updates made so far; the bias correction depends on it.
    pub updates: u64,
    /// First moments `[elements]`, of a frozen or lean parameter `[0]`.
    pub first: Vec<Tensor<1>>,
    /// Second moments, likewise.
    pub second: Vec<Tensor<1>>,
    lean: LeanSettings,
    /// Squares of the last step's gradients by tensor, for clipping during the backward pass.
    pub(crate) last_squares: Vec<f32>,
    /// The moments of parameters that are updated chunk by chunk.
    pub(crate) chunked: Vec<Option<ChunkedState>>,
}

/// What the update of a matrix keeps that is made chunk by chunk.
#[derive(Clone, Debug)]
pub(crate) enum ChunkedState {
    AdamW(LeanMoments),
    Muon(MuonState),
}

impl ChunkedState {
    /// Zeros, if this parameter is updated so.
    fn of(entry: &TensorEntry, settings: AdamWSettings, lean: LeanSettings) -> Option<Self> {
        let moment = |kind| Moment::zeros(lean.moments, kind, entry.elements());
        if settings.muon.is_some() && trained_by_muon(entry) {
            let shape = [entry.shape[0], entry.shape[1]];
            return Some(Self::Muon(MuonState { momentum: moment(MomentKind::First), shape }));
        }
        (lean.is_lean() && entry.is_matrix()).then(|| Self::AdamW(MOMENTS.map(moment)))
    }

    /// A moment, if it has that.
    pub(crate) fn moment(&self, kind: MomentKind) -> Option<&Moment> {
        match (self, kind) {
            (Self::AdamW(moments), kind) => Some(&moments[kind as usize]),
            (Self::Muon(state), MomentKind::First) => Some(&state.momentum),
            (Self::Muon(_), MomentKind::Second) => None,
        }
    }

    /// The same, to be replaced.
    pub(crate) fn moment_mut(&mut self, kind: MomentKind) -> Option<&mut Moment> {
        match (self, kind) {
            (Self::AdamW(moments), kind) => Some(&mut moments[kind as usize]),
            (Self::Muon(state), MomentKind::First) => Some(&mut state.momentum),
            (Self::Muon(_), MomentKind::Second) => None,
        }
    }
}

/// Whether Muon trains this parameter, where it is the optimizer.
pub(crate) fn trained_by_muon(entry: &TensorEntry) -> bool {
    matches!(entry.role, TensorRole::Linear(_))
}

impl AdamW {
    /// Zero moments for parameters of these `sizes`; `decayed[i]` says whether weight decay acts
    /// on parameter `i`.
    pub fn new(
        settings: AdamWSettings,
        sizes: &[usize],
        decayed: Vec<bool>,
        device: &Device,
    ) -> Self {
        assert_eq!(sizes.len(), decayed.len(), "one decision for each parameter");
        let zeros = || sizes.iter().map(|&size| Tensor::zeros([size], device)).collect();
        Self {
            settings,
            decayed,
            rate_factors: vec![1.0; sizes.len()],
            frozen: vec![false; sizes.len()],
            updates: 0,
            first: zeros(),
            second: zeros(),
            lean: LeanSettings::default(),
            last_squares: Vec::new(),
            chunked: vec![None; sizes.len()],
        }
    }

    /// Zero moments for a model: weight decay acts on matrices (embedding included), not on norms.
    pub fn for_model(spec: &ModelSpec, settings: AdamWSettings, device: &Device) -> Self {
        Self::for_trained(spec, settings, &vec![false; tensor_table(spec).len()], device)
    }

    /// The same without moments of parameter `i` where `frozen[i]`; it must have no gradient either.
    pub fn for_trained(
        spec: &ModelSpec,
        settings: AdamWSettings,
        frozen: &[bool],
        device: &Device,
    ) -> Self {
        Self::with_lean(&tensor_table(spec), settings, LeanSettings::default(), frozen, device)
    }

    /// The same with what matrices need kept in fewer bits, of the parameters of this `table`.
    pub fn with_lean(
        table: &[TensorEntry],
        settings: AdamWSettings,
        lean: LeanSettings,
        frozen: &[bool],
        device: &Device,
    ) -> Self {
        assert_eq!(frozen.len(), table.len(), "one decision for each parameter");
        let pairs = || table.iter().zip(frozen);
        let state = |(entry, frozen): (&TensorEntry, &bool)| {
            if *frozen { None } else { ChunkedState::of(entry, settings, lean) }
        };
        let chunked: Vec<_> = pairs().map(state).collect();
        let size = |((entry, frozen), chunked): ((&TensorEntry, &bool), &Option<_>)| {
            if *frozen || chunked.is_some() { 0 } else { entry.elements() }
        };
        let sizes: Vec<usize> = pairs().zip(&chunked).map(size).collect();
        let decayed = table.iter().map(TensorEntry::is_matrix).collect();
        let rate_factors = table.iter().map(|entry| settings.width.adamw_rate(entry)).collect();
        let new = Self::new(settings, &sizes, decayed, &device.clone().inner());
        Self { rate_factors, frozen: frozen.to_vec(), lean, chunked, ..new }
    }

    /// Zero moments for parts of parameters, each so many of its numbers; a matrix that Muon trains is
    /// there as a whole.
    pub(crate) fn of_parts<'a>(
        settings: AdamWSettings,
        parts: impl Iterator<Item = (&'a TensorEntry, usize)> + Clone,
        device: &Device,
    ) -> Self {
        let state = |(entry, count): (&TensorEntry, usize)| {
            // Without fewer bits only Muon's matrices have chunks of state.
            let state = ChunkedState::of(entry, settings, LeanSettings::default())?;
            assert_eq!(count, entry.elements(), "Muon needs whole matrices");
            Some(state)
        };
        let chunked: Vec<_> = parts.clone().map(state).collect();
        let sizes = parts.clone().zip(&chunked);
        let size =
            |((_, count), chunked): (_, &Option<_>)| if chunked.is_some() { 0 } else { count };
        let sizes: Vec<usize> = sizes.map(size).collect();
        let rate_factors =
            parts.clone().map(|(entry, _)| settings.width.adamw_rate(entry)).collect();
        let decayed = parts.map(|(entry, _)| entry.is_matrix()).collect();
        Self { rate_factors, chunked, ..Self::new(settings, &sizes, decayed, device) }
    }

    /// A moment as f32; empty if the parameter does not have it.
    pub(crate) fn floats(&self, index: usize, kind: MomentKind) -> Vec<f32> {
        match &self.chunked[index] {
            Some(state) => state.moment(kind).map_or_else(Vec::new, Moment::floats),
            None if kind == MomentKind::First => to_host(self.first[index].clone()),
            None => to_host(self.second[index].clone()),
        }
    }

    /// How its state is kept.
    pub fn lean(&self) -> LeanSettings {
        self.lean
    }

    /// Whether parameter `index`, which is trained, has this moment.
    pub(crate) fn has_moment(&self, index: usize, kind: MomentKind) -> bool {
        self.chunked[index].as_ref().is_none_or(|state| state.moment(kind).is_some())
    }

    /// For each parameter whether it has no moments.
    pub fn frozen(&self) -> &[bool] {
        &self.frozen
    }

    /// One update: parameters and gradients (flat, table order), each gradient times `factor` → new
    /// parameters; one without a gradient stays as it is.
    pub fn update(
        &mut self,
        values: Vec<Tensor<1>>,
        gradients: Vec<Option<Tensor<1>>>,
        factor: f64,
        rates: StepRates,
        backend: OpBackend,
    ) -> Vec<Tensor<1>> {
        self.update_all(values, &[], gradients, (factor, rates), backend)
    }

    /// The same of a model of which some parameters are latents `outside` of tensors: their values are
    /// empty, and they are updated where they lie.
    pub(crate) fn update_all(
        &mut self,
        values: Vec<Tensor<1>>,
        outside: &[Option<Latents>],
        gradients: Vec<Option<Tensor<1>>>,
        (factor, rates): (f64, StepRates),
        backend: OpBackend,
    ) -> Vec<Tensor<1>> {
        // One count for all parameters: the bias correction of a step is the same everywhere.
        self.updates += 1;
        each(values, gradients, |index, [value, gradient]| match outside.get(index) {
            Some(Some(latents)) => {
                self.update_outside(index, latents, gradient, (factor, rates), backend);
                value
            }
            _ => self.update_one(index, [value, gradient], (factor, rates), backend),
        })
    }

    /// Updates the latents of parameter `index` where they lie; part of the update that was just
    /// counted.
    pub(crate) fn update_outside(
        &mut self,
        index: usize,
        latents: &Latents,
        gradient: Tensor<1>,
        (factor, rates): (f64, StepRates),
        backend: OpBackend,
    ) {
        let gradient = to_host(gradient);
        self.update_chunks(index, &gradient, (factor, rates), backend, |work| latents.update(work));
    }

    /// Updates a matrix chunk by chunk; `open` hands its chunks over.
    fn update_chunks(
        &mut self,
        index: usize,
        gradient: &[f32],
        (factor, rates): (f64, StepRates),
        backend: OpBackend,
        open: impl FnOnce(&mut dyn FnMut(Vec<LatentChunk>)),
    ) {
        let (adamw, key) = (self.coefficients(index, factor, rates), self.rounding(index));
        let muon = self.settings.muon;
        match self.chunked[index].as_mut().expect("such a matrix has chunks of state") {
            ChunkedState::AdamW(moments) => open(&mut |chunks| {
                lean::update(chunks, moments, gradient, (adamw, key), backend.kernel);
            }),
            ChunkedState::Muon(state) => {
                let muon = muon.expect("it has made this state");
                let update = muon.update(state.shape, factor, (rates, self.settings.width));
                let direction = state.direction(gradient, update, backend);
                open(&mut |chunks| muon::step(chunks, &direction, (update, key), backend));
            }
        }
    }

    /// The random bits of the update that was just counted.
    fn rounding(&self, index: usize) -> RoundingKey {
        RoundingKey::new(self.lean.seed, self.updates, index)
    }

    /// As [`AdamW::update`], but the device decides. The host counts the update as made and takes the
    /// count back in `DeviceStep::sync`; until then the bias correction counts a skipped step too.
    pub(crate) fn update_where(
        &mut self,
        mask: &UpdateMask,
        values: Vec<Tensor<1>>,
        gradients: Vec<Option<Tensor<1>>>,
        rates: StepRates,
        backend: OpBackend,
    ) -> Vec<Tensor<1>> {
        self.updates += 1;
        each(values, gradients, |index, pair| {
            self.update_one_where(index, mask, pair, rates, backend)
        })
    }

    fn update_one_where(
        &mut self,
        index: usize,
        mask: &UpdateMask,
        [value, gradient]: [Tensor<1>; 2],
        rates: StepRates,
        backend: OpBackend,
    ) -> Tensor<1> {
        let gradient = gradient * mask.factor.clone();
        let old = [value, self.first[index].clone(), self.second[index].clone()];
        let [value, first, second] = old.clone();
        let update = self.coefficients(index, 1.0, rates);
        let new = ops::adamw(value, gradient, first, second, update, backend);
        let [value, first, second] = mask.select(new, old);
        self.first[index] = first;
        self.second[index] = second;
        value
    }

    /// As [`AdamW::update_outside`], of a tensor.
    pub(crate) fn update_one(
        &mut self,
        index: usize,
        [value, gradient]: [Tensor<1>; 2],
        (factor, rates): (f64, StepRates),
        backend: OpBackend,
    ) -> Tensor<1> {
        if self.chunked[index].is_some() {
            let (device, mut value) = (value.device(), to_host(value));
            let gradient = to_host(gradient);
            self.update_chunks(index, &gradient, (factor, rates), backend, |work| {
                work(value.chunks_mut(CHUNK).map(LatentChunk::F32).collect());
            });
            let count = value.len();
            return Tensor::from_data(TensorData::new(value, [count]), &device);
        }
        let update = self.coefficients(index, factor, rates);
        // Taken out, so that nothing else holds them and the update works in place.
        let empty = || Tensor::zeros([0], &value.device());
        let first = std::mem::replace(&mut self.first[index], empty());
        let second = std::mem::replace(&mut self.second[index], empty());
        let [value, first, second] = ops::adamw(value, gradient, first, second, update, backend);
        self.first[index] = first;
        self.second[index] = second;
        value
    }

    /// The coefficients of the update that was just counted.
    fn coefficients(&self, index: usize, factor: f64, rates: StepRates) -> AdamWUpdate {
        let AdamWSettings { beta1, beta2, eps, .. } = self.settings;
        let count = self.updates as f64;
        let decay = if self.decayed[index] { rates.weight_decay } else { 0.0 };
        AdamWUpdate {
            gradient: factor as f32,
            beta1,
            beta2,
            eps,
            keep: 1.0 - rates.learning_rate * decay,
            step: rates.learning_rate * self.rate_factors[index] / (1.0 - beta1.powf(count)),
            root: (1.0 - beta2.powf(count)).sqrt(),
        }
    }
}

/// Each value after `step(index, [value, gradient])`; one without a gradient stays as it is.
fn each(
    values: Vec<Tensor<1>>,
    gradients: Vec<Option<Tensor<1>>>,
    mut step: impl FnMut(usize, [Tensor<1>; 2]) -> Tensor<1>,
) -> Vec<Tensor<1>> {
    let pairs = values.into_iter().zip(gradients).enumerate();
    let new = |(index, (value, gradient))| match gradient {
        Some(gradient) => step(index, [value, gradient]),
        None => value,
    };
    pairs.map(new).collect()
}

/// A device's decision about a step, unread by the host.
pub(crate) struct UpdateMask {
    /// What gradients are multiplied by, `[1]`.
    pub(crate) factor: Tensor<1>,
    /// Whether the update is made, `[1]`.
    pub(crate) passed: Tensor<1, Bool>,
}

impl UpdateMask {
    /// The new tensors of a parameter where the step passed, else the old ones; `[elements]` each.
    fn select<const N: usize>(&self, new: [Tensor<1>; N], old: [Tensor<1>; N]) -> [Tensor<1>; N] {
        let passed = self.passed.clone().expand(new[0].dims());
        let mut new = new.into_iter();
        old.map(|old| old.mask_where(passed.clone(), new.next().expect("as many as old ones")))
    }
}
