//! Memory for results that are about to be written, which nobody clears before.
#![expect(unsafe_code, reason = "a vector whose values are whatever the memory holds")]

/// Numbers that any bits are.
pub trait PlainNumber: Copy {
    /// What is there where tests run: something that no product gives.
    const FORGOTTEN: Self;
}

impl PlainNumber for f32 {
    const FORGOTTEN: Self = f32::NAN;
}

impl PlainNumber for i8 {
    const FORGOTTEN: Self = i8::MIN;
}

/// `count` numbers, each of which the caller writes before it is read. To clear them first took a
/// thirtieth of a training step. With debug assertions all of them are [`PlainNumber::FORGOTTEN`], so that a test sees
/// a place which was not written.
pub fn unwritten<T: PlainNumber>(count: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(count);
    if cfg!(debug_assertions) || !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        values.resize(count, T::FORGOTTEN);
        return values;
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        // Memory that was never written has no value as Rust sees it. To the compiler these no instructions may have
        // written all of it, so it has the value that lies there.
        // SAFETY: nothing is executed.
        unsafe {
            std::arch::asm!(
                "/* {} */",
                in(reg) values.as_mut_ptr(),
                options(nostack, preserves_flags),
            );
        }
        // SAFETY: there is room for as many, and any bits are such a number.
        unsafe { values.set_len(count) };
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(not(debug_assertions), ignore = "places are marked with debug assertions only")]
    fn a_place_that_was_forgotten_is_seen() {
        assert!(unwritten::<f32>(100).iter().all(|value| value.is_nan()));
        assert_eq!(unwritten::<i8>(3), [i8::MIN; 3]);
        assert!(unwritten::<f32>(0).is_empty());
    }
}
