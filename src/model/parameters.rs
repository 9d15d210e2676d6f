//! The model's parameters as one list of flat tensors, in the order of `bitnet_format::tensor_table`.
//! Optimizer, clipping and checkpoints walk this list and need not know any module.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};

use crate::model::LanguageModel;

/// All parameters without autodiff: one flat tensor `[elements]` for each table entry.
pub fn values(model: &LanguageModel) -> Vec<Tensor<1>> {
    named_values(model).into_iter().map(|(_, value)| value).collect()
}

/// All parameters with their Hugging Face names.
pub fn named_values(model: &LanguageModel) -> Vec<(String, Tensor<1>)> {
    let mut visitor = CollectValues { path: Vec::new(), found: Vec::new() };
    model.visit(&mut visitor);
    visitor.found
}

/// Takes the gradient of every parameter of a model, or of a part of one, out of `grads`, flat, in
/// table order; a [frozen](freeze) one has none.
///
/// # Panics
/// When a parameter took no part in the loss.
pub fn gradients(module: &impl Module, grads: &mut Gradients) -> Vec<Option<Tensor<1>>> {
    let mut visitor = TakeGradients { grads, found: Vec::new() };
    module.visit(&mut visitor);
    visitor.found
}

/// Parameters of a model, or of a part of one.
pub(crate) fn parameter_count(module: &impl Module) -> usize {
    let mut visitor = Count(0);
    module.visit(&mut visitor);
    visitor.0
}

/// The model with parameter `i` replaced by `new[i]` (flat, same number of elements).
pub fn replace_values(model: LanguageModel, new: Vec<Tensor<1>>) -> LanguageModel {
    model.map(&mut ReplaceValues { new: new.into_iter() })
}

/// The model with parameter `i` outside of every graph where `frozen[i]`: no gradient of it is kept.
pub fn freeze(model: LanguageModel, frozen: &[bool]) -> LanguageModel {
    model.map(&mut Freeze { frozen: frozen.iter() })
}

/// Moves all parameters out of the model, so that an optimizer can update them in place. What is
/// left is a model of the same shapes without memory, to be filled by [`replace_values`].
pub fn take_values(model: LanguageModel) -> (LanguageModel, Vec<Tensor<1>>) {
    let mut mapper = TakeValues { found: Vec::new() };
    let shapes = model.map(&mut mapper);
    (shapes, mapper.found)
}

struct CollectValues {
    path: Vec<String>,
    found: Vec<(String, Tensor<1>)>,
}

impl ModuleVisitor for CollectValues {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.push((self.path.join("."), param.val().inner().flatten(0, D - 1)));
    }
}

struct Count(usize);

impl ModuleVisitor for Count {
    fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
        self.0 += 1;
    }
}

struct TakeGradients<'a> {
    grads: &'a mut Gradients,
    found: Vec<Option<Tensor<1>>>,
}

impl ModuleVisitor for TakeGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let gradient = value.is_require_grad().then(|| {
            let gradient = value.grad_remove(self.grads);
            gradient.expect("every parameter takes part in the loss").flatten(0, D - 1)
        });
        self.found.push(gradient);
    }
}

struct Freeze<'a> {
    frozen: std::slice::Iter<'a, bool>,
}

impl ModuleMapper for Freeze<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let frozen = *self.frozen.next().expect("one decision for each parameter");
        param.map(|value| if frozen { value.set_require_grad(false) } else { value })
    }
}

/// `value` in a graph as `old` is: a leaf, frozen, or without autodiff.
fn tracked_as<const D: usize>(value: Tensor<D>, old: &Tensor<D>) -> Tensor<D> {
    match (old.is_autodiff(), old.is_require_grad()) {
        // A new leaf: nothing of the last step's graph hangs on it.
        (true, true) => value.autodiff().require_grad(),
        (true, false) => value.autodiff(),
        (false, _) => value,
    }
}

struct TakeValues {
    found: Vec<Tensor<1>>,
}

impl ModuleMapper for TakeValues {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|old| {
            if old.shape().num_elements() == 0 {
                // It stands for latents outside; there is nothing to move.
                self.found.push(old.clone().inner().flatten(0, D - 1));
                return old;
            }
            // A view: one number stands for all elements.
            let nothing = Tensor::<1>::zeros([1], &old.device().inner()).reshape([1; D]);
            let nothing = tracked_as(nothing.expand(old.dims()), &old);
            self.found.push(old.inner().flatten(0, D - 1));
            nothing
        })
    }
}

struct ReplaceValues {
    new: std::vec::IntoIter<Tensor<1>>,
}

impl ModuleMapper for ReplaceValues {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let new = self.new.next().expect("one new value for each parameter");
        param.map(|old| {
            // What stands for latents outside is empty, and Burn's reshape takes 0 for "as it is".
            let is_empty = old.shape().num_elements() == 0;
            let value = if is_empty { old.clone().inner() } else { new.reshape(old.dims()) };
            tracked_as(value, &old)
        })
    }
}
