//! Both forms against their formulas in tensor operations, whose gradients Burn's autodiff derives.

use super::*;
use crate::ops::testing::{
    PRECISIONS, assert_within, cases, draw, gradient, host, leaf, of_draws, tolerance,
};
use bitnet_kernels::Operands;
use burn::tensor::{Int, TensorData, activation::log_softmax};
use proptest::prelude::*;

/// Sizes of a case; `known` words of each token, or a whole teacher.
#[derive(Clone, Copy)]
struct Sizes {
    time: usize,
    width: usize,
    teacher_width: usize,
    vocab: usize,
    known: Option<usize>,
}

/// One draw of a case.
struct Case {
    sizes: Sizes,
    hidden: Tensor<3>,
    head: Tensor<2>,
    teacher_hidden: Tensor<3>,
    teacher_head: Tensor<2>,
    targets: Targets,
    terms: DistillationTerms,
}

impl Case {
    fn new(sizes: Sizes, seed: u64) -> Self {
        let Sizes { time, width, teacher_width, vocab, .. } = sizes;
        let device = burn::tensor::Device::flex();
        let fixed = |name: &str, shape: [usize; 2]| {
            Tensor::<2>::from_data(
                TensorData::new(draw(seed, name, shape[0] * shape[1]), shape),
                &device,
            )
        };
        let teacher_hidden = fixed("teacher hidden", [time, teacher_width]);
        let weight = |x: &f32| if *x < -0.5 { 0.0 } else { x.abs() };
        let id = |x: &f32| (x.abs() * 1e4) as i32 % vocab as i32;
        let temperature = [1.0, 2.0, 5.0, 0.5][seed as usize % 4];
        Self {
            sizes,
            hidden: leaf(draw(seed, "hidden", time * width), [1, time, width]),
            head: leaf(draw(seed, "head", vocab * width), [vocab, width]),
            teacher_hidden: teacher_hidden.reshape([1, time, teacher_width]),
            teacher_head: fixed("teacher head", [vocab, teacher_width]),
            targets: Targets {
                ids: Arc::new(draw(seed, "ids", time).iter().map(id).collect()),
                weights: Arc::new(draw(seed, "weights", time).iter().map(weight).collect()),
            },
            terms: DistillationTerms { cross_entropy: 0.7, logits: 1.3, temperature },
        }
    }

    /// What the operation is given.
    fn teacher(&self) -> TeacherLogits<'static> {
        let hidden = self.teacher_hidden.clone();
        let head = HeadOperand { tensor: self.teacher_head.clone(), outside: None };
        match self.sizes.known {
            None => TeacherLogits::Whole { hidden, head },
            Some(count) => {
                let backend = OpBackend::native(Operands::F32);
                TeacherLogits::Top(top_outcomes(hidden, head, &self.targets, count, backend))
            }
        }
    }

    /// Losses, and the gradients of hidden states and head.
    fn results(&self, losses: &Tensor<1>) -> Vec<Vec<f32>> {
        let mut grads = losses.clone().narrow(0, 0, 1).backward();
        let gradients = [gradient(&self.hidden, &mut grads), gradient(&self.head, &mut grads)];
        [host(losses.clone())].into_iter().chain(gradients).collect()
    }

    fn run(&self, backend: OpBackend) -> Vec<Vec<f32>> {
        let head = HeadOperand { tensor: self.head.clone(), outside: None };
        let (hidden, targets) = (self.hidden.clone(), self.targets.clone());
        self.results(&distillation(hidden, head, self.teacher(), targets, self.terms, backend))
    }

    /// From log-probabilities of all words.
    fn expected(&self) -> Vec<Vec<f32>> {
        let Sizes { time, width, teacher_width, .. } = self.sizes;
        let (a, b) = (self.terms.cross_entropy, self.terms.logits);
        let logits =
            self.hidden.clone().reshape([time, width]).matmul(self.head.clone().transpose());
        let theirs = self.teacher_hidden.clone().reshape([time, teacher_width]);
        let theirs = theirs.matmul(self.teacher_head.clone().transpose()).autodiff();
        let device = logits.device();
        let ids = TensorData::new(self.targets.ids.to_vec(), [time, 1]);
        let ids = Tensor::<2, Int>::from_data(ids, &device);
        let weights = TensorData::new(self.targets.weights.to_vec(), [time, 1]);
        let weights = Tensor::<2>::from_data(weights, &device);
        let losses = log_softmax(logits.clone(), 1).gather(1, ids).neg();
        let [student, teacher] = match self.sizes.known {
            None => [logits, theirs],
            Some(count) => self.joined(&logits, &theirs, count),
        };
        let tempered = |values: Tensor<2>| log_softmax(values / self.terms.temperature, 1);
        let (student, teacher) = (tempered(student), tempered(teacher));
        let divergence = (teacher.clone().exp() * (teacher - student)).sum_dim(1);
        let sum = |losses: Tensor<2>| (losses * weights.clone()).sum();
        let (losses, divergence) = (sum(losses), sum(divergence));
        let total = losses.clone() * a + divergence.clone() * b;
        self.results(&Tensor::cat(vec![total, losses, divergence], 0))
    }

    /// The logits of the `k` words that the teacher likes best, and of all others as one.
    fn joined(&self, logits: &Tensor<2>, theirs: &Tensor<2>, count: usize) -> [Tensor<2>; 2] {
        let Sizes { time, vocab, .. } = self.sizes;
        let values = host(theirs.clone());
        let orders = values.chunks_exact(vocab).map(|row| {
            let mut order: Vec<i32> = (0..vocab as i32).collect();
            order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
            order
        });
        let orders: Vec<i32> = orders.flatten().collect();
        let orders = TensorData::new(orders, [time, vocab]);
        let orders = Tensor::<2, Int>::from_data(orders, &logits.device());
        [logits, theirs].map(|logits| {
            let sorted = logits.clone().gather(1, orders.clone());
            let known = sorted.clone().narrow(1, 0, count);
            if count == vocab {
                return known;
            }
            let others = sorted.narrow(1, count, vocab - count);
            let largest = others.clone().detach().max_dim(1);
            let sum = (others - largest.clone()).exp().sum_dim(1);
            Tensor::cat(vec![known, sum.log() + largest], 1)
        })
    }
}

fn check(sizes: Sizes, draws: u64, seed: u64) {
    let of = |run: &dyn Fn(&Case) -> Vec<Vec<f32>>| {
        of_draws(draws, seed, |seed| run(&Case::new(sizes, seed)))
    };
    let expected = of(&Case::expected);
    for operands in PRECISIONS {
        // Sums over more words differ by more; the logits of two models are rounded to bf16.
        let within = 2.0 * tolerance(operands) * (1.0 + sizes.vocab as f64 / 1000.0);
        for backend in [OpBackend::native(operands), OpBackend::reference(operands)] {
            let found = of(&|case| case.run(backend));
            assert_within(&found, &expected, within, &format!("{backend:?}"));
        }
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn a_whole_teacher_gives_the_loss_and_gradients_of_the_formula(
        time in 1usize..200, width in 1usize..40, teacher_width in 1usize..40,
        vocab in 2usize..200, seed in 0u64..1 << 60,
    ) {
        check(Sizes { time, width, teacher_width, vocab, known: None }, 8, seed);
    }

    #[test]
    fn the_most_likely_words_give_the_loss_and_gradients_of_the_formula(
        time in 1usize..200, width in 1usize..40, teacher_width in 1usize..40,
        vocab in 2usize..200, share in 0.0f64..1.0, seed in 0u64..1 << 60,
    ) {
        let known = Some(1 + (share * vocab as f64) as usize).map(|known| known.min(vocab));
        check(Sizes { time, width, teacher_width, vocab, known }, 8, seed);
    }
}

/// Several blocks of words and chunks of tokens, then a vocabulary too large for its logits to be kept.
#[test]
fn large_vocabularies_give_the_loss_and_gradients_of_the_formula() {
    for known in [None, Some(5), Some(700)] {
        let sizes = Sizes { time: 700, width: 12, teacher_width: 9, vocab: 1100, known };
        check(sizes, 1, 1);
        check(Sizes { time: 513, width: 6, teacher_width: 7, vocab: 9000, known }, 1, 2);
    }
}

#[test]
fn all_words_known_say_what_a_whole_teacher_says() {
    let sizes = Sizes { time: 40, width: 16, teacher_width: 8, vocab: 90, known: None };
    for seed in 0..4 {
        let whole = Case::new(sizes, seed);
        let known = Case::new(Sizes { known: Some(90), ..sizes }, seed);
        let backend = OpBackend::native(Operands::F32);
        assert_within(&known.run(backend), &whole.run(backend), 2e-5, "all words");
    }
}

#[test]
fn a_student_that_equals_its_teacher_has_no_divergence_and_only_the_gradient_of_its_targets() {
    for (seed, known) in [(0, None), (1, None), (2, Some(7)), (3, Some(7))] {
        let sizes = Sizes { time: 30, width: 8, teacher_width: 8, vocab: 60, known };
        let mut case = Case::new(sizes, seed);
        case.teacher_hidden = case.hidden.clone().inner();
        case.teacher_head = case.head.clone().inner();
        let found = case.run(OpBackend::native(Operands::F32));
        assert!(found[0][2].abs() < 1e-4, "{:?}", found[0]);
        case.terms.logits = 0.0;
        let plain = case.run(OpBackend::native(Operands::F32));
        assert_within(&found[1..], &plain[1..], 1e-5, "the gradient of cross-entropy");
    }
}

#[test]
fn the_most_likely_words_are_those_of_a_sort_and_leave_the_rest() {
    for (vocab, count) in [(9, 9), (700, 1), (700, 64), (1300, 33)] {
        let sizes = Sizes { time: 20, width: 4, teacher_width: 5, vocab, known: Some(count) };
        let case = Case::new(sizes, 5);
        let head = HeadOperand { tensor: case.teacher_head.clone(), outside: None };
        let run = |backend| {
            let hidden = case.teacher_hidden.clone();
            top_outcomes(hidden, head.clone(), &case.targets, count, backend)
        };
        let found = run(OpBackend::native(Operands::Bf16));
        let expected = run(OpBackend::reference(Operands::F32));
        for token in case.targets.trained() {
            assert_eq!(found.ids(token), expected.ids(token));
            let pairs = found.log_probs(token).iter().zip(expected.log_probs(token));
            for (found, expected) in pairs {
                let same = found.to_bits() == expected.to_bits() || (found - expected).abs() < 2e-5;
                assert!(same, "{found} {expected}");
            }
            let all: f64 = found.log_probs(token).iter().map(|&one| f64::from(one).exp()).sum();
            assert!((all - 1.0).abs() < 1e-5, "{all}");
        }
    }
}

#[test]
fn heads_outside_of_tensors_give_the_same_bits() {
    for known in [None, Some(11)] {
        let sizes = Sizes { time: 50, width: 8, teacher_width: 6, vocab: 130, known };
        let case = Case::new(sizes, 3);
        let expected = case.run(OpBackend::native(Operands::F32));
        let latents = |head: &Tensor<2>| {
            Latents::new(LatentFormat::F32, head.dims(), &to_host(untracked(head.clone())))
        };
        let (own, theirs) = (latents(&case.head), latents(&case.teacher_head));
        let empty = leaf(Vec::new(), [0, 0]);
        let head = HeadOperand { tensor: empty.clone(), outside: Some(&own) };
        let teacher = match case.teacher() {
            TeacherLogits::Whole { hidden, .. } => {
                let tensor = Tensor::zeros([0, 0], &burn::tensor::Device::flex());
                let head = HeadOperand { tensor, outside: Some(&theirs) };
                TeacherLogits::Whole { hidden, head }
            }
            top @ TeacherLogits::Top(_) => top,
        };
        let backend = OpBackend::native(Operands::F32);
        let (hidden, targets) = (case.hidden.clone(), case.targets.clone());
        let losses = distillation(hidden, head, teacher, targets, case.terms, backend);
        let mut grads = losses.clone().narrow(0, 0, 1).backward();
        let found =
            [host(losses), gradient(&case.hidden, &mut grads), gradient(&empty, &mut grads)];
        assert!(found[..] == expected[..]);
    }
}

#[test]
fn threads_and_kernels_change_no_bit() {
    for known in [None, Some(30)] {
        let sizes = Sizes { time: 120, width: 24, teacher_width: 12, vocab: 700, known };
        let case = Case::new(sizes, 9);
        let expected = case.run(OpBackend::native(Operands::F32));
        for kernel in bitnet_kernels::Kernel::available() {
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut backend = OpBackend::native(Operands::F32);
                backend.kernel = kernel;
                let found = pool.install(|| case.run(backend));
                assert!(found == expected, "{kernel:?}, {threads} threads");
            }
        }
    }
}
