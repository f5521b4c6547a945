//! Limits for bytes that all requests together may hold. Bytes are taken before they are held, and given back by a
//! drop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A limit for bytes. Cheap to clone; all clones are the same budget.
#[derive(Clone, Debug)]
pub struct ByteBudget {
    state: Arc<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    /// What the budget limits and which option sets it, for the error message.
    what: &'static str,
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

/// The budget has too little left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: all requests together may hold {limit_bytes} bytes, and these are in use; try again later")]
pub struct BudgetSpent {
    pub what: &'static str,
    pub limit_bytes: u64,
}

impl PartialEq for ByteBudget {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Eq for ByteBudget {}

impl ByteBudget {
    /// `what` begins the error message.
    pub fn new(what: &'static str, limit_bytes: u64) -> Self {
        Self { state: Arc::new(BudgetState { what, limit_bytes, used_bytes: AtomicU64::new(0) }) }
    }

    pub fn used_bytes(&self) -> u64 {
        self.state.used_bytes.load(Ordering::Acquire)
    }

    /// A share for one request, which is empty at first.
    pub fn share(&self) -> ByteShare {
        ByteShare { budget: self.clone(), bytes: 0 }
    }

    fn take(&self, bytes: u64) -> Result<(), BudgetSpent> {
        let BudgetState { what, limit_bytes, used_bytes } = &*self.state;

        let more = |used: u64| used.checked_add(bytes).filter(|used| used <= limit_bytes);
        let taken = used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.map(drop).map_err(|_| BudgetSpent { what, limit_bytes: *limit_bytes })
    }
}

/// The bytes that one holder has taken of a budget. Its drop gives all of them back.
#[derive(Debug)]
pub struct ByteShare {
    budget: ByteBudget,
    bytes: u64,
}

impl ByteShare {
    /// Grows the share to `bytes`, or changes nothing where the budget has too little left.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), BudgetSpent> {
        let missing = bytes.saturating_sub(self.bytes);
        if missing > 0 {
            self.budget.take(missing)?;
            self.bytes = bytes;
        }
        Ok(())
    }
}

impl Drop for ByteShare {
    fn drop(&mut self) {
        self.budget.state.used_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_and_is_given_back_whole() {
        let budget = ByteBudget::new("test", 100);
        let (mut one, mut other) = (budget.share(), budget.share());
        one.grow_to(60).unwrap();
        one.grow_to(30).unwrap();
        assert_eq!(other.grow_to(41), Err(BudgetSpent { what: "test", limit_bytes: 100 }));

        other.grow_to(40).unwrap();
        assert_eq!(budget.used_bytes(), 100);
        assert!(other.grow_to(u64::MAX).is_err());

        drop(one);
        assert_eq!(budget.used_bytes(), 40);

        drop(other);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn threads_never_take_more_than_there_is() {
        let budget = ByteBudget::new("test", 1000);

        let held: u64 = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut share = budget.share();
                        let taken = (1..=1000).take_while(|bytes| share.grow_to(*bytes).is_ok()).count() as u64;
                        assert!(budget.used_bytes() <= 1000);
                        (share, taken)
                    })
                })
                .collect();

            let shares: Vec<_> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
            shares.iter().map(|(_, taken)| taken).sum()
        });

        assert_eq!(held, 1000);
        assert_eq!(budget.used_bytes(), 0);
    }
}
