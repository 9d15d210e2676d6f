//! What an instruction set brings to attention, and what keys and values are held in.

use half::f16;
use half::vec::HalfBitsVecExt;

use crate::pages::LANES;

/// Sixteen f32 side by side.
pub trait Vector: Copy {
    /// # Safety
    /// The instructions of the implementation.
    unsafe fn splat(x: f32) -> Self;
    /// # Safety
    /// The instructions of the implementation.
    unsafe fn load(values: &[f32; LANES]) -> Self;
    /// # Safety
    /// The instructions of the implementation.
    unsafe fn load_half(values: &[f16; LANES]) -> Self;
    /// `self + a · b`, rounded once.
    ///
    /// # Safety
    /// The instructions of the implementation.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// # Safety
    /// The instructions of the implementation.
    unsafe fn store(self, places: &mut [f32; LANES]);
    /// Prefetches the memory at `there`.
    fn fetch<E>(_there: &E) {}
}

/// A type that vectors of f32 are loaded from.
pub trait Load: Copy + Send + Sync + 'static {
    /// # Safety
    /// The instructions of `V`.
    unsafe fn load<V: Vector>(values: &[Self; LANES]) -> V;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(values: &[Self; LANES]) -> V {
        // SAFETY: the caller has the instructions of `V`.
        unsafe { V::load(values) }
    }
}

impl Load for f16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(values: &[Self; LANES]) -> V {
        // SAFETY: the caller has the instructions of `V`.
        unsafe { V::load_half(values) }
    }
}

/// What keys and values are held in: f32, or f16 in half the memory, which converts to f32 exactly.
pub trait Element: Load {
    /// The nearest value, ties to even; beyond the largest finite one, that one.
    fn nearest(x: f32) -> Self;
    /// Whether both are the same to the bit: 0 is not −0.
    fn has_bits_of(self, other: Self) -> bool;
    /// `count` zeros. The system gives memory only where something else is written.
    fn zeros(count: usize) -> Vec<Self>;
}

impl Element for f32 {
    fn nearest(x: f32) -> Self {
        x
    }

    fn has_bits_of(self, other: Self) -> bool {
        self.to_bits() == other.to_bits()
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }
}

impl Element for f16 {
    fn nearest(x: f32) -> Self {
        // An infinite key would make every score of its token NaN.
        f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
    }

    fn has_bits_of(self, other: Self) -> bool {
        self.to_bits() == other.to_bits()
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }
}

impl Vector for [f32; LANES] {
    unsafe fn splat(x: f32) -> Self {
        [x; LANES]
    }

    unsafe fn load(values: &[f32; LANES]) -> Self {
        *values
    }

    unsafe fn load_half(values: &[f16; LANES]) -> Self {
        values.map(f16::to_f32)
    }

    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], self[lane]))
    }

    unsafe fn store(self, places: &mut [f32; LANES]) {
        *places = self;
    }
}
