//! Python's `random.Random`: the Mersenne Twister with Python's ways to seed it and to draw from
//! it. The harness draws few-shot examples and bootstrap samples with it.

use rand_mt::Mt;

/// A generator in the state of `random.Random(seed)`.
pub(crate) struct PythonRandom(Mt);

impl PythonRandom {
    /// `random.Random(seed)`.
    pub(crate) fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    fn word(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// `random()`: a number in `[0, 1)`.
    fn unit(&mut self) -> f64 {
        // 27 and 26 bits make the 53 of a double: `(a·2²⁶ + b) / 2⁵³`.
        let (a, b) = (self.word() >> 5, self.word() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `_randbelow(limit)`.
    fn below(&mut self, limit: usize) -> usize {
        // `bit_length` of the limit itself, so a power of two draws one bit more than it needs, and
        // half of its draws are thrown away. CPython does, and each throw takes a word of the
        // generator.
        let bits = usize::BITS - limit.leading_zeros();
        loop {
            let drawn = (self.word() >> (32 - bits)) as usize;
            if drawn < limit {
                return drawn;
            }
        }
    }

    /// `sample(range(length), count)`, for `count <= length` and fewer than 2³² values.
    pub(crate) fn sample(&mut self, length: usize, count: usize) -> Vec<usize> {
        // CPython's estimate of the memory of a set against that of a list. It decides which of two
        // ways draws, and they draw other numbers, so the constants are part of the result.
        let mut set_size = 21;
        if count > 5 {
            set_size += 4_usize.pow(((count * 3) as f64).log(4.0).ceil() as u32);
        }
        if length > set_size {
            let mut drawn = Vec::with_capacity(count);
            while drawn.len() < count {
                let next = self.below(length);
                if !drawn.contains(&next) {
                    drawn.push(next);
                }
            }
            return drawn;
        }
        let mut pool: Vec<usize> = (0..length).collect();
        let draw = |i| {
            let at = self.below(length - i);
            let drawn = pool[at];
            // The drawn place is filled from the end of what is left: the draws are without
            // repetition.
            pool[at] = pool[length - i - 1];
            drawn
        };
        (0..count).map(draw).collect()
    }

    /// One index of `choices(range(length), k=…)`.
    pub(crate) fn choice(&mut self, length: usize) -> usize {
        (self.unit() * length as f64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `CPython` 3.11.
    #[test]
    fn it_draws_what_python_draws() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.unit().to_bits(), 0.966_453_535_692_138_8_f64.to_bits());
        assert_eq!(random.unit().to_bits(), 0.440_732_599_175_352_7_f64.to_bits());
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(9741, 11), SAMPLE_9741_11);
        assert_eq!(random.sample(20, 6), SAMPLE_20_6);
        let mut random = PythonRandom::new(7);
        let drawn: Vec<usize> = (0..8).map(|_| random.choice(10)).collect();
        assert_eq!(drawn, CHOICES_10);
    }

    const SAMPLE_9741_11: [usize; 11] =
        [7220, 1914, 122, 1485, 9539, 572, 1375, 1612, 5810, 3879, 285];
    const SAMPLE_20_6: [usize; 6] = [0, 19, 11, 15, 14, 2];
    const CHOICES_10: [usize; 8] = [3, 1, 6, 0, 5, 3, 0, 5];
}
