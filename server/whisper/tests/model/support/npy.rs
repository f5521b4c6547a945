//! The part of NumPy's file format that the fixtures use: version 1, little-endian floats, C order.

use std::fs;
use std::path::Path;

use half::f16;
use ndarray::{ArrayD, IxDyn};

pub fn read(path: &Path) -> ArrayD<f32> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));

    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}", path.display());

    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let text = std::str::from_utf8(&bytes[10..header]).unwrap();

    assert!(text.contains("'fortran_order': False"), "{text}");

    let (_, shape) = text.split_once("'shape': (").unwrap();
    let (shape, _) = shape.split_once(')').unwrap();
    let shape: Vec<usize> = shape.split(',').filter_map(|d| d.trim().parse().ok()).collect();
    let data = &bytes[header..];
    let values = if text.contains("<f4") {
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    } else if text.contains("<f2") {
        data.chunks_exact(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
    } else {
        panic!("{}: {text}", path.display())
    };

    ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap()
}
