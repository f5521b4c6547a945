//! The arithmetic of the int8 encoder between its products of bytes, over slices, for the processor at hand. No ONNX Runtime
//! here: [`crate::operators`] gives these functions the tensors of a graph.
//!
//! Activations are rounded to unsigned bytes with one scale for each row, and a product of bytes is multiplied by the scales
//! of its rows by the function that reads it.

pub mod attention;
pub mod channels;
mod products;
pub mod rows;

use std::fmt;

/// The byte that means zero in rows that [`rows::round_row`] has written.
pub const ROW_ZERO: u8 = 128;

/// The scale of a row or column of zeros must not be zero.
const LEAST_SCALE: f32 = 1e-20;

/// Adding this to a number of less than 22 bits rounds it to an integer, ties to even, which then is in the lowest bits.
pub(crate) const ROUNDING: f32 = 12_582_912.0;

/// Instructions that this processor has, and that a function may use: only [`Self::detect`] and [`Self::all`] make one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InstructionSet(InstructionKind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InstructionKind {
    /// AVX-512 with products of bfloat16.
    Avx512Bf16,
    Avx512,
    Avx2,
    /// What the compiler may assume of any processor.
    Portable,
}

impl InstructionSet {
    /// The fastest.
    pub fn detect() -> Self {
        Self::all().next().unwrap_or(Self(InstructionKind::Portable))
    }

    /// All, the fastest first.
    pub fn all() -> impl Iterator<Item = Self> {
        let kinds =
            [InstructionKind::Avx512Bf16, InstructionKind::Avx512, InstructionKind::Avx2, InstructionKind::Portable];
        kinds.into_iter().filter(|kind| kind.is_available()).map(Self)
    }
}

impl fmt::Debug for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl InstructionKind {
    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        match self {
            Self::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
            Self::Avx512 => avx512,
            Self::Avx2 => avx2,
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }
}

/// `a * b + c`.
pub(crate) trait MultiplyAdd {
    fn multiply_add(a: f32, b: f32, c: f32) -> f32;
}

/// One instruction, where the processor has it.
pub(crate) struct FusedMultiplyAdd;

impl MultiplyAdd for FusedMultiplyAdd {
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Two instructions: without one instruction for both, `mul_add` is a slow function.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) struct SeparateMultiplyAdd;

/// What any processor of this architecture has.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) use SeparateMultiplyAdd as PortableMultiplyAdd;

/// What any processor of this architecture has.
#[cfg(target_arch = "aarch64")]
pub(crate) use FusedMultiplyAdd as PortableMultiplyAdd;

#[cfg(not(target_arch = "aarch64"))]
impl MultiplyAdd for SeparateMultiplyAdd {
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// 2 to the power of `x`, which is limited to -126 to 126, with a relative error below 3e-6.
#[inline(always)]
pub(crate) fn exp2<M: MultiplyAdd>(x: f32) -> f32 {
    let x = if x > -126.0 { x } else { -126.0 };
    let x = if x < 126.0 { x } else { 126.0 };
    let shifted = x + ROUNDING;
    let fraction = x - (shifted - ROUNDING);

    // 2 to the power of -0.5 to 0.5: the polynomial of this degree with the least relative error.
    let mut power = 0.009_570_102;
    for coefficient in [0.055_917_862, 0.240_247_45, 0.693_121_8, 0.999_999_3] {
        power = M::multiply_add(power, fraction, coefficient);
    }

    f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// Defines `$name`, which calls `$generic` compiled for an [`InstructionSet`].
macro_rules! for_each_instruction_set {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident = $generic:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?) => {
        $(#[$doc])*
        #[allow(unsafe_code, reason = "calls a function that is compiled for instructions which only some processors have")]
        $visibility fn $name(instructions: $crate::kernels::InstructionSet, $($argument: $type),*) $(-> $result)? {
            use $crate::kernels::PortableMultiplyAdd;

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::{FusedMultiplyAdd, InstructionKind};

                #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    $generic::<FusedMultiplyAdd>($($argument),*)
                }

                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    $generic::<FusedMultiplyAdd>($($argument),*)
                }

                // SAFETY: an `InstructionSet` is one that this processor has.
                match instructions.0 {
                    InstructionKind::Avx512Bf16 | InstructionKind::Avx512 => return unsafe { avx512($($argument),*) },
                    InstructionKind::Avx2 => return unsafe { avx2($($argument),*) },
                    InstructionKind::Portable => {}
                }
            }

            let _ = instructions;
            $generic::<PortableMultiplyAdd>($($argument),*)
        }
    };
}
pub(crate) use for_each_instruction_set;

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from a seed.
    pub struct Numbers(u64);

    impl Numbers {
        pub fn new(seed: u64) -> Self {
            Self(seed)
        }

        /// `count` numbers between `-size` and `size`.
        pub fn take(&mut self, count: usize, size: f32) -> Vec<f32> {
            (0..count).map(|_| size * self.next()).collect()
        }

        fn next(&mut self) -> f32 {
            // Knuth's linear congruential generator.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
        }
    }

    /// What rows in bytes stand for.
    pub fn real_rows(bytes: &[u8], scales: &[f32], columns: usize, zero: u8) -> Vec<f32> {
        let value = |(at, byte): (usize, &u8)| (f32::from(*byte) - f32::from(zero)) * scales[at / columns];
        bytes.iter().enumerate().map(value).collect()
    }

    for_each_instruction_set! {
        fn powers = powers_of(values: &mut [f32])
    }

    #[inline(always)]
    fn powers_of<M: MultiplyAdd>(values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value = exp2::<M>(*value));
    }

    #[test]
    fn powers_of_two_have_six_digits() {
        for instructions in InstructionSet::all() {
            let exponents: Vec<f32> = (-12_600..=12_600).map(|hundredth| hundredth as f32 / 100.0).collect();
            let mut found = exponents.clone();
            powers(instructions, &mut found);

            for (found, exponent) in found.iter().zip(&exponents) {
                let ratio = f64::from(*found) / f64::from(*exponent).exp2();
                assert!((ratio - 1.0).abs() < 3e-6, "{instructions:?}: 2^{exponent} became {found}, {ratio}");
            }

            let mut beyond = [f32::NEG_INFINITY, -1000.0, f32::NAN, 1000.0];
            powers(instructions, &mut beyond);
            assert!(beyond[..3].iter().all(|power| (0.0..1e-30).contains(power)), "{beyond:?}");
            assert!(beyond[3].is_finite());
        }
    }

    #[test]
    fn a_processor_has_at_least_portable_instructions() {
        assert_eq!(InstructionSet::all().last(), Some(InstructionSet(InstructionKind::Portable)));
    }
}
