//! Choosing a token from logits, and the probability of the choice.

/// Exponents below this do not change a sum over a vocabulary.
const NEGLIGIBLE: f32 = -30.0;

/// Values of a part of the vocabulary whose largest is computed at a time.
const CHUNK: usize = 64;

/// Calls `$portable`, compiled for AVX2 if the processor has it. The result is the same to the last bit: the operations and
/// their order are those of the source, only more of them are done at once.
macro_rules! with_widest_vectors {
    ($portable:ident($($argument:ident: $type:ty),*) -> $result:ty) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn with_avx2($($argument: $type),*) -> $result {
                $portable($($argument),*)
            }

            if is_x86_feature_detected!("avx2") {
                #[allow(unsafe_code, reason = "a function for processors with AVX2")]
                // SAFETY: the processor has AVX2.
                return unsafe { with_avx2($($argument),*) };
            }
        }

        $portable($($argument),*)
    }};
}

/// The index of the largest value; the first of equals.
pub fn arg_max(logits: &[f32]) -> usize {
    let largest = maximum(logits);
    let chunk = logits.chunks(CHUNK).position(|values| maximum_of_lanes(values) == largest).unwrap_or(0);
    let first = chunk * CHUNK;
    let inside = logits.get(first..).and_then(|values| values.iter().position(|logit| *logit == largest));
    inside.map_or(0, |inside| first + inside)
}

/// The largest value; minus infinity for an empty slice.
pub(super) fn maximum(logits: &[f32]) -> f32 {
    with_widest_vectors!(maximum_of_lanes(logits: &[f32]) -> f32)
}

#[inline(always)]
fn maximum_of_lanes(logits: &[f32]) -> f32 {
    // So many lanes that the compiler uses several vector registers, which do not wait for each other.
    const LANES: usize = 32;

    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }

    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max)
}

/// The indices of the `count` largest values, the largest first; equals keep their order.
pub fn largest(logits: &[f32], count: usize) -> Vec<usize> {
    let mut found: Vec<(f32, usize)> = Vec::with_capacity(count + 1);
    for (chunk, values) in logits.chunks(CHUNK).enumerate() {
        let full = found.len() == count;
        if full && found.last().is_none_or(|(least, _)| maximum(values) <= *least) {
            continue;
        }

        for (index, value) in values.iter().copied().enumerate() {
            if found.len() == count && found.last().is_none_or(|(least, _)| value <= *least) {
                continue;
            }
            let at = found.partition_point(|(other, _)| *other >= value);
            found.insert(at, (value, chunk * CHUNK + index));
            found.truncate(count);
        }
    }

    found.into_iter().map(|(_, index)| index).collect()
}

pub fn log_sum_exp(logits: &[f32]) -> f64 {
    log_sum_exp_below(logits, maximum(logits))
}

/// Like [`log_sum_exp`]. `largest`: the largest of the values.
pub(super) fn log_sum_exp_below(logits: &[f32], largest: f32) -> f64 {
    if !largest.is_finite() {
        return f64::from(largest);
    }

    f64::from(largest) + sum_of_powers(logits, largest).ln()
}

/// The sum of `e^(value - largest)`.
fn sum_of_powers(logits: &[f32], largest: f32) -> f64 {
    with_widest_vectors!(sum_of_powers_of_lanes(logits: &[f32], largest: f32) -> f64)
}

#[inline(always)]
fn sum_of_powers_of_lanes(logits: &[f32], largest: f32) -> f64 {
    /// Terms that are added in f32 before the sum continues in f64.
    const TERMS: usize = 128;

    // The powers are computed in a loop of their own: the compiler vectorises it only without the sum.
    let mut powers = [0.0_f32; TERMS];
    let mut sum = 0.0;

    for values in logits.chunks(TERMS) {
        for (power, value) in powers.iter_mut().zip(values) {
            *power = exp(value - largest);
        }

        let mut lanes = [0.0_f32; 8];
        let (eights, rest) = powers[..values.len()].as_chunks::<8>();
        for eight in eights {
            for (lane, power) in lanes.iter_mut().zip(eight) {
                *lane += power;
            }
        }

        sum += lanes.into_iter().chain(rest.iter().copied()).map(f64::from).sum::<f64>();
    }

    sum
}

/// `e^x` for `x` of at most zero, within 2e-7 of its value, and zero below [`NEGLIGIBLE`]. It has no branches and calls, so
/// that the compiler vectorises it: it is computed for the whole vocabulary, for each token of each row.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;

    // ln 2 in two parts; the first has few digits, so that its multiples are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    // Adding and subtracting this rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;

    let clamped = if x > NEGLIGIBLE { x } else { NEGLIGIBLE };
    let shifted = clamped * LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = clamped - whole * LN_2_HIGH - whole * LN_2_LOW;

    // The polynomial of Cephes' expf.
    let mut power = 1.987_569_2e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        power = power * rest + coefficient;
    }

    let power = power * rest * rest + rest + 1.0;

    // The whole part is written directly to the exponent.
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let value = power * f32::from_bits(bits);

    if x > NEGLIGIBLE { value } else { 0.0 }
}

/// The natural logarithm of the probability of `token`.
pub fn log_probability(logits: &[f32], token: usize) -> f64 {
    logits.get(token).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit) - log_sum_exp(logits))
}

/// Draws a token with probability `softmax(logits / temperature)`.
pub fn draw(logits: &[f32], temperature: f32, random: &mut Random) -> usize {
    let largest = maximum(logits);
    let weight = |logit: f32| f64::from(exp((logit - largest) / temperature));
    let total: f64 = logits.iter().copied().map(weight).sum();
    let mut left = random.unit() * total;
    let mut chosen = arg_max(logits);

    for (token, logit) in logits.iter().enumerate() {
        let weight = weight(*logit);
        if weight > 0.0 {
            chosen = token;
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
    }

    chosen
}

/// A small random generator (SplitMix64): the same seed gives the same text on every machine and in every version.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// `parts` distinguish the draws of one request: window, attempt, candidate.
    pub fn new(seed: u64, parts: &[u64]) -> Self {
        let mut random = Self(seed);
        for part in parts {
            random.0 = random.next() ^ part.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        random
    }

    /// A seed for draws that further parts distinguish.
    pub fn seed(mut self) -> u64 {
        self.next()
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniformly from 0 up to, but not including, 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_of_equals_wins() {
        assert_eq!(arg_max(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(arg_max(&[f32::NEG_INFINITY; 20]), 0);
        assert_eq!(arg_max(&[]), 0);
    }

    #[test]
    fn the_largest_are_found_in_order() {
        assert_eq!(largest(&[1.0, 3.0, 3.0, 2.0], 3), [1, 2, 3]);
        assert_eq!(largest(&[1.0], 3), [0]);
        assert_eq!(largest(&[f32::NEG_INFINITY; 200], 2), [0, 1]);
        assert!(largest(&[], 2).is_empty());
    }

    #[test]
    fn exponentials_are_exact_to_their_last_digits() {
        for step in 0..30_000 {
            let x = step as f32 * -1e-3;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= 3e-7 * exact, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(-31.0), exp(f32::NEG_INFINITY)), (0.0, 0.0));
    }

    proptest! {
        /// The functions for the widest vectors compute what the portable ones do, to the last bit.
        #[test]
        fn wide_vectors_change_no_bit(logits in prop::collection::vec(-60.0_f32..60.0, 0..700)) {
            let largest = maximum(&logits);
            prop_assert_eq!(largest.to_bits(), maximum_of_lanes(&logits).to_bits());
            prop_assert_eq!(largest, logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let (wide, portable) = (sum_of_powers(&logits, largest), sum_of_powers_of_lanes(&logits, largest));
            prop_assert_eq!(wide.to_bits(), portable.to_bits());
            prop_assert_eq!(arg_max(&logits), logits.iter().position(|logit| *logit == largest).unwrap_or(0));
        }
    }

    #[test]
    fn forbidden_tokens_are_never_drawn() {
        let mut logits = vec![f32::NEG_INFINITY; 50];
        logits[7] = 1.0;
        logits[9] = 0.5;
        let mut random = Random::new(3, &[]);
        for _ in 0..1000 {
            assert!([7, 9].contains(&draw(&logits, 1.0, &mut random)));
        }

        assert_eq!(draw(&logits, 1e-6, &mut random), 7);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0_f32, 1.0, 2.0];
        for temperature in [0.5, 1.0] {
            let mut random = Random::new(11, &[1, 2]);
            let mut counts = [0.0_f64; 3];
            for _ in 0..20_000 {
                counts[draw(&logits, temperature, &mut random)] += 1.0 / 20_000.0;
            }

            let scaled: Vec<f32> = logits.iter().map(|logit| logit / temperature).collect();
            for (token, count) in counts.iter().enumerate() {
                assert!((count - log_probability(&scaled, token).exp()).abs() < 0.02, "{token}: {count}");
            }
        }
    }

    #[test]
    fn seeds_and_parts_tell_sequences_apart() {
        let first = |seed, parts: &[u64]| Random::new(seed, parts).next();
        assert_eq!(first(1, &[0, 3]), first(1, &[0, 3]));
        assert_ne!(first(1, &[0, 3]), first(2, &[0, 3]));
        assert_ne!(first(1, &[0, 3]), first(1, &[3, 0]));
    }

    proptest! {
        #[test]
        fn the_largest_are_those_of_a_sort(values in prop::collection::vec(-9_i8..9, 0..300), count in 0_usize..9) {
            let logits: Vec<f32> = values.iter().map(|value| f32::from(*value)).collect();
            let mut sorted: Vec<usize> = (0..logits.len()).collect();
            sorted.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            sorted.truncate(count);
            prop_assert_eq!(largest(&logits, count), sorted);
        }

        #[test]
        fn probabilities_sum_to_one(logits in prop::collection::vec(-40.0_f32..40.0, 1..100)) {
            let total: f64 = (0..logits.len()).map(|token| log_probability(&logits, token).exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-5, "{}", total);
        }
    }
}
