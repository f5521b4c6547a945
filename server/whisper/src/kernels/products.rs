//! Products of packed numbers with registers, for the attention.

#![allow(unsafe_code, reason = "instructions that only some processors have, on addresses that the caller has checked")]

/// Numbers of 32 bits that hold one value in f32 or two neighbouring ones in bfloat16, and the registers that multiply them.
///
/// # Safety
/// The methods may be called only on a processor that has the instructions of the type. Addresses must be those of enough
/// numbers: [`Self::LANES`] for `load` and `store`.
pub(super) trait ProductRegister {
    /// Sums of a register.
    const LANES: usize;
    /// Values of a packed number.
    const PACKED: usize;

    type Sums: Copy;
    type Factors: Copy;

    unsafe fn zero() -> Self::Sums;
    unsafe fn load(from: *const u32) -> Self::Factors;
    /// The same packed number in all lanes.
    unsafe fn splat(number: u32) -> Self::Factors;
    /// `sums + a * b`, over the values of each packed number.
    unsafe fn add_product(sums: Self::Sums, a: Self::Factors, b: Self::Factors) -> Self::Sums;
    unsafe fn store(sums: Self::Sums, to: *mut f32);

    /// Packs a row. `packed` holds as many numbers as `values` need.
    #[inline(always)]
    unsafe fn pack(values: &[f32], packed: &mut [u32]) {
        pack_each::<Self>(values, packed);
    }

    /// One packed number of the values `low` and, where there are two, `high`.
    #[inline(always)]
    fn pair(low: f32, high: f32) -> u32 {
        if Self::PACKED == 1 { low.to_bits() } else { bfloat16(low) >> 16 | bfloat16(high) & 0xffff_0000 }
    }
}

/// Packs a row, one number after the other.
#[inline(always)]
fn pack_each<P: ProductRegister + ?Sized>(values: &[f32], packed: &mut [u32]) {
    for (packed, values) in packed.iter_mut().zip(values.chunks(P::PACKED)) {
        *packed = P::pair(values[0], values.get(1).copied().unwrap_or_default());
    }
}

/// Rounds to the upper 16 bits, ties to even; the lower ones are meaningless.
#[inline(always)]
fn bfloat16(value: f32) -> u32 {
    let bits = value.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1))
}

/// `ROWS` rows of sums, each in two registers.
pub(super) type Tile<P, const ROWS: usize> = [[<P as ProductRegister>::Sums; 2]; ROWS];

/// Multiplies `ROWS` rows of `depth` packed numbers, at `a` and each `stride` numbers further, by `depth` rows of two registers.
///
/// # Safety
/// As for [`ProductRegister`]; there must be so many numbers at `a` and `b`.
#[inline(always)]
pub(super) unsafe fn multiply<P: ProductRegister, const ROWS: usize>(
    a: *const u32,
    stride: usize,
    b: *const u32,
    depth: usize,
) -> Tile<P, ROWS> {
    // SAFETY: this function has the same conditions.
    unsafe {
        let mut sums = [[P::zero(); 2]; ROWS];
        for at in 0..depth {
            let left = P::load(b.add(2 * at * P::LANES));
            let right = P::load(b.add((2 * at + 1) * P::LANES));

            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = P::splat(*a.add(row * stride + at));
                sums[0] = P::add_product(sums[0], factor, left);
                sums[1] = P::add_product(sums[1], factor, right);
            }
        }

        sums
    }
}

/// Defines a register of f32 by its instructions.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! real_register {
    (
        $name:ident,
        $lanes:literal,
        $register:ty,
        $zero:expr,
        $load:ident,
        $splat:ident,
        |$sums:ident, $a:ident, $b:ident| $add_product:expr,
        $store:ident $(,)?
    ) => {
        pub struct $name;

        impl ProductRegister for $name {
            const LANES: usize = $lanes;
            const PACKED: usize = 1;

            type Sums = $register;
            type Factors = $register;

            #[inline(always)]
            unsafe fn zero() -> $register {
                // SAFETY: the processor has the instruction; so it is below.
                unsafe { $zero }
            }

            #[inline(always)]
            unsafe fn load(from: *const u32) -> $register {
                // SAFETY: as above.
                unsafe { $load(from.cast()) }
            }

            #[inline(always)]
            unsafe fn splat(number: u32) -> $register {
                // SAFETY: as above.
                unsafe { $splat(f32::from_bits(number)) }
            }

            #[inline(always)]
            unsafe fn add_product($sums: $register, $a: $register, $b: $register) -> $register {
                // SAFETY: as above.
                unsafe { $add_product }
            }

            #[inline(always)]
            unsafe fn store(sums: $register, to: *mut f32) {
                // SAFETY: as above.
                unsafe { $store(to, sums) }
            }
        }
    };
}

#[cfg(target_arch = "aarch64")]
pub(super) use neon::NeonRegister;

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_f32, vld1q_f32, vst1q_f32};

    use super::ProductRegister;

    // Every processor of this architecture has it.
    real_register!(
        NeonRegister,
        4,
        float32x4_t,
        vdupq_n_f32(0.0),
        vld1q_f32,
        vdupq_n_f32,
        |sums, a, b| vfmaq_f32(sums, a, b),
        vst1q_f32,
    );
}

/// Registers of any processor: the compiler finds instructions for the loops.
#[cfg(not(target_arch = "aarch64"))]
pub(super) struct PortableRegister;

#[cfg(not(target_arch = "aarch64"))]
impl ProductRegister for PortableRegister {
    const LANES: usize = 8;
    const PACKED: usize = 1;

    type Sums = [f32; 8];
    type Factors = [f32; 8];

    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> [f32; 8] {
        // SAFETY: there are eight numbers; their type has no invalid values.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn splat(number: u32) -> [f32; 8] {
        [f32::from_bits(number); 8]
    }

    #[inline(always)]
    unsafe fn add_product(mut sums: [f32; 8], a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
        sums
    }

    #[inline(always)]
    unsafe fn store(sums: [f32; 8], to: *mut f32) {
        // SAFETY: there is room for eight numbers.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(sums) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2Register, Avx512Bf16Register, Avx512Register};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m256bh, __m256i, __m512, __m512bh, __m512i, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps, _mm256_storeu_si256, _mm512_cvtneps_pbh, _mm512_dpbf16_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };
    use std::mem::transmute;

    use super::{ProductRegister, pack_each};

    /// One register of 512 bits with pairs of bfloat16.
    pub struct Avx512Bf16Register;

    impl ProductRegister for Avx512Bf16Register {
        const LANES: usize = 16;
        const PACKED: usize = 2;

        type Sums = __m512;
        type Factors = __m512bh;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the processor has the instruction; so it is below.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m512bh {
            // SAFETY: as above; both types are 512 bits.
            unsafe { transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
        }

        #[inline(always)]
        unsafe fn splat(number: u32) -> __m512bh {
            // SAFETY: as above.
            unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(number.cast_signed())) }
        }

        #[inline(always)]
        unsafe fn add_product(sums: __m512, a: __m512bh, b: __m512bh) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_dpbf16_ps(sums, a, b) }
        }

        #[inline(always)]
        unsafe fn store(sums: __m512, to: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to, sums) }
        }

        #[inline(always)]
        unsafe fn pack(values: &[f32], packed: &mut [u32]) {
            let (parts, rest) = values.as_chunks::<16>();
            let (whole, last) = packed.split_at_mut(8 * parts.len());

            for (part, packed) in parts.iter().zip(whole.as_chunks_mut::<8>().0) {
                // SAFETY: as above; there is a register to read and half of one to write.
                unsafe {
                    let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(part.as_ptr()));
                    _mm256_storeu_si256(packed.as_mut_ptr().cast(), transmute::<__m256bh, __m256i>(rounded));
                }
            }

            pack_each::<Self>(rest, last);
        }
    }

    real_register!(
        Avx512Register,
        16,
        __m512,
        _mm512_setzero_ps(),
        _mm512_loadu_ps,
        _mm512_set1_ps,
        |sums, a, b| _mm512_fmadd_ps(a, b, sums),
        _mm512_storeu_ps,
    );
    real_register!(
        Avx2Register,
        8,
        __m256,
        _mm256_setzero_ps(),
        _mm256_loadu_ps,
        _mm256_set1_ps,
        |sums, a, b| _mm256_fmadd_ps(a, b, sums),
        _mm256_storeu_ps,
    );
}
