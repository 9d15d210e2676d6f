//! The container as a whole: frozen bytes, round trips, bad files, mutated files.

mod bad_files;
mod good_files;
mod mutations;
mod raw;
mod two_bit;

use std::path::Path;

use super::{GgufFile, GgufTensor, GgufWriter, Metadata, Value};
use crate::writer::TensorPlan;
use crate::{DType, FormatError};

/// All bytes of a tensor.
fn bytes_of(file: &GgufFile, tensor: &GgufTensor) -> Vec<u8> {
    file.part(tensor, 0..tensor.len()).unwrap()
}

type Tensor = (&'static str, &'static [usize], DType, Vec<u8>);

fn open(bytes: Vec<u8>) -> Result<GgufFile, FormatError> {
    GgufFile::from_bytes(Path::new("m.gguf"), bytes)
}

fn plan(tensors: &[Tensor]) -> Vec<TensorPlan> {
    let plan = |(name, shape, dtype, _): &Tensor| TensorPlan::new(*name, *dtype, shape);
    tensors.iter().map(plan).collect()
}

/// The bytes of a written file.
fn written(metadata: &Metadata, tensors: &[Tensor]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut writer = GgufWriter::create(&path, metadata, &plan(tensors)).unwrap();
    for (_, _, _, bytes) in tensors {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        writer.write(first).unwrap();
        writer.write(second).unwrap();
        writer.end_tensor().unwrap();
    }
    writer.finish().unwrap();
    fs_err::read(&path).unwrap()
}

/// One value and one array of each type.
fn sample_metadata() -> Metadata {
    use super::Array;
    let mut metadata = Metadata::new();
    let scalars = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("text\n\u{1f40b}".to_owned()),
        Value::String(String::new()),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(-0.25),
    ];
    let arrays = [
        Array::U8(vec![1, 2]),
        Array::I8(vec![-1]),
        Array::U16(vec![3]),
        Array::I16(vec![-3]),
        Array::U32(vec![4]),
        Array::I32(vec![1, -4]),
        Array::F32(vec![1.5]),
        Array::Bool(vec![true, false]),
        Array::String(vec![String::new(), "b".to_owned()]),
        Array::String(vec![]),
        Array::U64(vec![5]),
        Array::I64(vec![-5]),
        Array::F64(vec![2.5]),
    ];
    let values = scalars.into_iter().chain(arrays.into_iter().map(Value::Array));
    for (index, value) in values.enumerate() {
        metadata.insert(format!("bitnet-b1.58.key_{index}"), value);
    }
    metadata
}

/// A tensor of each type, the sizes not multiples of the alignment where they can be.
fn sample_tensors() -> Vec<Tensor> {
    let shapes: [&'static [usize]; 11] = [
        &[3],
        &[1, 5],
        &[2, 32],
        &[1, 256],
        &[7, 1],
        &[2, 256],
        &[1, 1, 1, 256],
        &[2, 64],
        &[3, 192],
        &[1, 128],
        &[2, 128],
    ];
    let names = ["a", "b", "c", "d", "e", "f", "g", "blk.0.attn_q.weight", "h", "i", "j"];
    let describe = |((name, shape), dtype): ((&'static str, &'static [usize]), DType)| {
        let len = super::layout::tensor_bytes(shape, dtype).unwrap();
        (name, shape, dtype, (0..len).map(|byte| byte as u8).collect())
    };
    names.into_iter().zip(shapes).zip(DType::of_gguf()).map(describe).collect()
}
