//! Python's `random.Random`: the Mersenne Twister with Python's ways to seed it and to draw from it. The
//! harness draws few-shot examples and bootstrap samples with it.

const N: usize = 624;
const M: usize = 397;

/// A generator in the state of `random.Random(seed)`.
pub(crate) struct PythonRandom {
    state: [u32; N],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    pub(crate) fn new(seed: u32) -> Self {
        let mut random = Self { state: initial(19_650_218), next: N };
        random.mix_in(seed);
        random
    }

    /// `init_by_array` with one word.
    fn mix_in(&mut self, seed: u32) {
        let mut at = 1;
        for _ in 0..N {
            let mixed = self.state[at] ^ self.before(at).wrapping_mul(1_664_525);
            self.set(&mut at, mixed.wrapping_add(seed));
        }
        for _ in 0..N - 1 {
            let mixed = self.state[at] ^ self.before(at).wrapping_mul(1_566_083_941);
            let word = mixed.wrapping_sub(at as u32);
            self.set(&mut at, word);
        }
        self.state[0] = 0x8000_0000;
    }

    fn before(&self, at: usize) -> u32 {
        let word = self.state[at - 1];
        word ^ (word >> 30)
    }

    fn set(&mut self, at: &mut usize, word: u32) {
        self.state[*at] = word;
        *at += 1;
        if *at == N {
            self.state[0] = self.state[N - 1];
            *at = 1;
        }
    }

    fn word(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// `random()`: a number in `[0, 1)`.
    fn unit(&mut self) -> f64 {
        let (a, b) = (self.word() >> 5, self.word() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `_randbelow(limit)`.
    fn below(&mut self, limit: usize) -> usize {
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

fn initial(seed: u32) -> [u32; N] {
    let mut state = [seed; N];
    for i in 1..N {
        let before = state[i - 1] ^ (state[i - 1] >> 30);
        state[i] = before.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
    }
    state
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
