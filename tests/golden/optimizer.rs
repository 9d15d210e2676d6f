//! `AdamW` without a model against `torch.optim.AdamW`.

use bitnet_kernels::Operands;
use bitnet_train::ops::OpBackend;
use bitnet_train::train::{AdamW, AdamWSettings, StepRates};
use burn::tensor::{Device, Tensor};

use super::sets::{self, check, host, relative_distance};

#[test]
fn golden_adamw_unit() {
    let device = Device::flex();
    for set in sets::with("adamw_unit.safetensors") {
        let (file, meta) = (set.file("adamw_unit.safetensors"), set.meta());
        let unit = &meta["adamw_unit"];
        let number = |key: &str, index: usize| unit[key][index].as_f64().unwrap();
        let settings = AdamWSettings {
            beta1: number("betas", 0),
            beta2: number("betas", 1),
            eps: unit["eps"].as_f64().unwrap(),
            ..AdamWSettings::default()
        };
        let change = unit["change_at_step"].as_u64().unwrap() as usize;
        let flat = |values: Vec<f32>| Tensor::<1>::from_floats(values.as_slice(), &device);
        let mut values: Vec<_> =
            ["p0", "p1"].map(|p| flat(file.floats(&format!("{p}.step0")))).into();
        let sizes: Vec<_> = values.iter().map(|value| value.dims()[0]).collect();
        let gradients = ["g0", "g1"].map(|g| file.floats(g));
        let steps = file.shape("g0")[0];
        let mut optimizer = AdamW::new(settings, &sizes, vec![true, false], &device);
        let mut worst = 0.0f64;
        for step in 1..=steps {
            let stage = usize::from(step >= change);
            let rates = StepRates {
                learning_rate: number("lr", stage),
                weight_decay: number("wd_group0", stage),
            };
            let at = |i: usize| flat(gradients[i][(step - 1) * sizes[i]..step * sizes[i]].to_vec());
            values = optimizer.update(
                values,
                vec![Some(at(0)), Some(at(1))],
                1.0,
                rates,
                OpBackend::native(Operands::F32),
            );
            for (i, value) in values.iter().enumerate() {
                let expected = file.floats(&format!("p{i}.step{step}"));
                worst = worst.max(relative_distance(&host(value.clone()), &expected));
            }
        }
        for i in 0..2 {
            let first = relative_distance(
                &host(optimizer.first[i].clone()),
                &file.floats(&format!("p{i}.exp_avg")),
            );
            let second = relative_distance(
                &host(optimizer.second[i].clone()),
                &file.floats(&format!("p{i}.exp_avg_sq")),
            );
            worst = worst.max(first).max(second);
        }
        check(&set, "AdamW unit, relative", worst, 1e-6);
    }
}
