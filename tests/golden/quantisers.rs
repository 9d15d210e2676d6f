//! The two quantisers against transformers, bit for bit.

use bitnet_format::quant::{WeightScale, quantise_row, ternary_codes};

use super::sets;

#[test]
fn golden_weight_quantiser_is_bit_exact() {
    for set in sets::with("forward.safetensors") {
        let file = set.file("forward.safetensors");
        for part in ["", "tie_", "zero_"] {
            let latents = file.floats(&format!("unit.wq.{part}in"));
            let scale = WeightScale::of_latents(&latents);
            // HF dequantises by dividing through s = 1 / mean|w|.
            let dequantised: Vec<f32> = ternary_codes(&latents, scale)
                .into_iter()
                .map(|code| f32::from(code) / scale.inverse())
                .collect();
            assert_eq!(dequantised, file.floats(&format!("unit.wq.{part}out")), "{part}");
        }
    }
}

#[test]
fn golden_activation_quantiser_is_bit_exact() {
    for set in sets::with("forward.safetensors") {
        let file = set.file("forward.safetensors");
        for part in ["", "tie_"] {
            let name = format!("unit.aq.{part}in");
            let width = file.shape(&name)[1];
            let mut dequantised = Vec::new();
            for row in file.floats(&name).chunks(width) {
                let mut codes = vec![0; width];
                let scale = quantise_row(row, &mut codes);
                dequantised.extend(codes.iter().map(|&c| f32::from(c) / scale.multiplier()));
            }
            assert_eq!(dequantised, file.floats(&format!("unit.aq.{part}out")), "{part}");
        }
    }
}
