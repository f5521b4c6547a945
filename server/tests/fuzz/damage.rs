//! Damages that a property applies to valid bytes.

use proptest::prelude::*;

#[derive(Clone, Debug)]
pub enum Damage {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    /// Overwrites four bytes, like a length or a count.
    Field(prop::sample::Index, u32),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn one() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    let wild = prop_oneof![Just(0), Just(1), Just(u32::MAX), Just(0x7fff_ffff), Just(0x8000_0000), any::<u32>()];

    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (at(), wild).prop_map(|(at, value)| Damage::Field(at, value)),
        at().prop_map(Damage::Cut),
        (at(), 1..200_usize).prop_map(|(at, n)| Damage::Remove(at, n)),
        (at(), 1..2_000_usize).prop_map(|(at, n)| Damage::Repeat(at, n)),
    ]
}

/// Up to a dozen damages, half of them in the first kilobyte, where headers are.
pub fn damages() -> impl Strategy<Value = Damages> {
    prop::collection::vec((any::<bool>(), one()), 1..12).prop_map(Damages)
}

#[derive(Clone, Debug)]
pub struct Damages(Vec<(bool, Damage)>);

impl Damages {
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        apply(bytes, &self.0);
    }
}

fn apply(bytes: &mut Vec<u8>, damages: &[(bool, Damage)]) {
    for (in_head, damage) in damages {
        let len = if *in_head { bytes.len().min(1_024) } else { bytes.len() };
        if len == 0 {
            return;
        }

        match damage {
            Damage::Set(at, byte) => bytes[at.index(len)] = *byte,
            Damage::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Damage::Field(at, value) => {
                let at = at.index(len);
                for (byte, new) in bytes[at..].iter_mut().zip(value.to_be_bytes()) {
                    *byte = new;
                }
            }
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Remove(at, n) => {
                let at = at.index(len);
                let end = bytes.len().min(at + n);
                bytes.drain(at..end);
            }
            Damage::Repeat(at, n) => {
                let at = at.index(len);
                let part = bytes[at..bytes.len().min(at + n)].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}
