//! Tensors of a call, checked, and work that threads share.

use std::sync::{Mutex, PoisonError};

use ort::{
    Error,
    operator::ComputeContext,
    value::{DynValue, ValueRef, ValueRefMut},
};

/// The numbers of an input and the sides of its shape; a shape with fewer sides begins with ones.
#[derive(Clone, Copy)]
pub struct InputTensor<'v> {
    name: &'static str,
    pub values: &'v [f32],
    pub windows: usize,
    pub rows: usize,
    pub columns: usize,
}

impl<'v> InputTensor<'v> {
    pub fn read(name: &'static str, value: &'v DynValue) -> Result<Self, Error> {
        let (shape, values) = value.try_extract_tensor::<f32>()?;
        let mut sides = [1; 3];
        let Some(skipped) = sides.len().checked_sub(shape.len()) else {
            return Err(Error::new(format!("the input `{name}` has {} sides, expected 3 at most", shape.len())));
        };

        for (side, given) in sides[skipped..].iter_mut().zip(shape.iter()) {
            *side = usize::try_from(*given).unwrap_or_default();
        }

        let [windows, rows, columns] = sides;

        Ok(Self { name, values, windows, rows, columns })
    }

    /// The sides, if they are as expected.
    pub fn expect(self, sides: [usize; 3]) -> Result<Self, Error> {
        let found = [self.windows, self.rows, self.columns];
        if found == sides && found.iter().all(|side| *side > 0) {
            return Ok(self);
        }

        Err(Error::new(format!("the input `{}` has the shape {found:?}, expected {sides:?}", self.name)))
    }

    /// The numbers of one window.
    pub fn window(&self, window: usize) -> &'v [f32] {
        let length = self.rows * self.columns;
        &self.values[window * length..][..length]
    }
}

pub fn input<'c>(context: &'c ComputeContext, index: usize, name: &str) -> Result<ValueRef<'c>, Error> {
    context.input(index)?.ok_or_else(|| Error::new(format!("the input `{name}` is missing")))
}

pub fn output<'c>(context: &'c ComputeContext, index: usize, shape: &[usize]) -> Result<ValueRefMut<'c>, Error> {
    let sides: Vec<i64> = shape.iter().map(|side| *side as i64).collect();
    context.output(index, sides)?.ok_or_else(|| Error::new(format!("there is no output {index}")))
}

/// Gives each of `parts` to one of the session's threads, and returns when all are done.
pub fn share<T: Send>(context: &ComputeContext, parts: Vec<T>, work: impl Fn(T) + Send + Sync) -> Result<(), Error> {
    let parts: Vec<Mutex<Option<T>>> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();

    context.par_for(parts.len(), parts.len(), |index| {
        let part = parts.get(index).and_then(|part| part.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(part) = part {
            work(part);
        }
    })
}
