//! `AdamW` with decoupled weight decay (arXiv 1711.05101) over the ordered parameter list, in the
//! order of operations of `torch.optim.AdamW`. The learning rate and the decay come with every
//! step, because two-phase training changes both.

use bitnet_format::{ModelSpec, TensorEntry, tensor_table};
use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::lean::{self, LeanMoments};
use super::moments::{Moment, MomentKind};
use crate::host::to_host;
use crate::latents::codec::{CHUNK, LatentChunk};
use crate::latents::rounding::RoundingKey;
use crate::latents::{Latents, LeanSettings};
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
}

impl Default for AdamWSettings {
    /// The betas of the training tips (Table 2) and torch's eps.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8 }
    }
}

/// The two of them, in the order of a checkpoint.
pub(crate) const MOMENTS: [MomentKind; 2] = [MomentKind::First, MomentKind::Second];

/// Moments of every parameter that is trained, flat and in table order.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    decayed: Vec<bool>,
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
    pub(crate) lean_moments: Vec<Option<LeanMoments>>,
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
            frozen: vec![false; sizes.len()],
            updates: 0,
            first: zeros(),
            second: zeros(),
            lean: LeanSettings::default(),
            last_squares: Vec::new(),
            lean_moments: vec![None; sizes.len()],
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
        let is_lean = |entry: &TensorEntry| lean.is_lean() && entry.is_matrix();
        let size = |(entry, frozen): (&TensorEntry, &bool)| {
            if *frozen || is_lean(entry) { 0 } else { entry.elements() }
        };
        let sizes: Vec<usize> = table.iter().zip(frozen).map(size).collect();
        let decayed = table.iter().map(TensorEntry::is_matrix).collect();
        let moments = |(entry, frozen): (&TensorEntry, &bool)| {
            let moment = |kind| Moment::zeros(lean.moments, kind, entry.elements());
            (!frozen && is_lean(entry)).then(|| MOMENTS.map(moment))
        };
        let lean_moments = table.iter().zip(frozen).map(moments).collect();
        let new = Self::new(settings, &sizes, decayed, &device.clone().inner());
        Self { frozen: frozen.to_vec(), lean, lean_moments, ..new }
    }

    /// How its state is kept.
    pub fn lean(&self) -> LeanSettings {
        self.lean
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
        let update = (self.coefficients(index, factor, rates), self.rounding(index));
        let moments = self.lean_moments[index].as_mut().expect("latents outside are lean");
        let gradient = to_host(gradient);
        latents.update(|chunks| lean::update(chunks, moments, &gradient, update, backend.kernel));
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
        let update = self.coefficients(index, factor, rates);
        if self.lean_moments[index].is_some() {
            let key = self.rounding(index);
            let moments = self.lean_moments[index].as_mut().expect("it was just there");
            let (device, mut value) = (value.device(), to_host(value));
            let chunks = value.chunks_mut(CHUNK).map(LatentChunk::F32).collect();
            lean::update(chunks, moments, &to_host(gradient), (update, key), backend.kernel);
            let count = value.len();
            return Tensor::from_data(TensorData::new(value, [count]), &device);
        }
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
        let AdamWSettings { beta1, beta2, eps } = self.settings;
        let count = self.updates as f64;
        let decay = if self.decayed[index] { rates.weight_decay } else { 0.0 };
        AdamWUpdate {
            gradient: factor as f32,
            beta1,
            beta2,
            eps,
            keep: 1.0 - rates.learning_rate * decay,
            step: rates.learning_rate / (1.0 - beta1.powf(count)),
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
