//! The packed export against transformers' `pack_weights`, byte for byte.

use bitnet_format::StoredModel;
use bitnet_format::convert::hf::write_packed;
use bitnet_format::tensors::TensorFile;
use bitnet_format::{DType, TensorSource, WeightForm, tensor_table};

use super::sets::{self, check};

#[test]
fn golden_packed_bytes_and_scales() {
    for set in sets::with("packed/model.safetensors") {
        let out = tempfile::tempdir().unwrap();
        let master = set.file("model.safetensors");
        write_packed(out.path(), &set.spec(), |entry| master.0.floats(&entry.name, &entry.shape))
            .unwrap();
        let ours = TensorFile::open(&out.path().join("model.safetensors")).unwrap();
        let theirs = set.file("packed/model.safetensors");
        let mut names = ours.names();
        let mut expected = theirs.0.names();
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
        let mut ulps = 0;
        for name in names {
            let info = theirs.0.info(&name).unwrap();
            if name.ends_with("_scale") {
                let bits = |file: &TensorFile| file.floats(&name, &[1]).unwrap()[0].to_bits();
                ulps = ulps.max(bits(&ours).abs_diff(bits(&theirs.0)));
            } else {
                let raw = |file: &TensorFile| file.raw(&name, &info.shape, info.dtype).unwrap();
                assert_eq!(raw(&ours), raw(&theirs.0), "{name}");
            }
        }
        check(&set, "weight_scale, ulp", f64::from(ulps), 2.0);
    }
}

#[test]
fn golden_packed_codes_are_read_back() {
    for set in sets::with("packed/expected.safetensors") {
        let folder = StoredModel::open(&set.dir.join("packed")).unwrap();
        let StoredModel::Folder(inner) = &folder else { panic!("a folder is opened as one") };
        assert_eq!(inner.form(), WeightForm::PackedMultiplying);
        let expected = set.file("packed/expected.safetensors");
        for entry in tensor_table(folder.spec()) {
            if entry.is_ternary(folder.spec()) {
                let (packed, _) = folder.ternary(&entry).unwrap();
                let name = format!("code.{}", entry.name.trim_end_matches(".weight"));
                let codes = expected.0.raw(&name, &entry.shape, DType::I8).unwrap();
                assert_eq!(packed.codes(), bytemuck::cast_slice::<u8, i8>(&codes), "{name}");
            }
        }
    }
}
