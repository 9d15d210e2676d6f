//! The two quantisers against transformers, code for code.

use bitnet_format::quant::{WeightScale, quantise_row, ternary_codes};

use super::sets;

#[test]
fn golden_weight_quantiser_gives_the_same_codes_and_the_same_scale_to_two_ulp() {
    for set in sets::with("forward.safetensors") {
        let file = set.file("forward.safetensors");
        for part in ["", "tie_", "zero_"] {
            let latents = file.floats(&format!("unit.wq.{part}in"));
            let scale = WeightScale::of_latents(&latents);
            let expected = file.floats(&format!("unit.wq.{part}out"));
            let codes = ternary_codes(&latents, scale);
            for (code, expected) in codes.into_iter().zip(expected) {
                // HF dequantises by dividing through s = 1 / mean|w|; torch's mean is a sum in f32.
                let found = f32::from(code) / scale.inverse();
                assert_eq!(found == 0.0, expected == 0.0, "{} {part}", set.name());
                let ulps = found.abs().to_bits().abs_diff(expected.abs().to_bits());
                assert!(found * expected >= 0.0 && ulps <= 2, "{found:e} {expected:e}");
            }
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
