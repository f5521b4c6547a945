//! Searches over several rows of a window (beams, candidates of best-of). Searches with the same number of rows take their
//! steps together.

use super::{
    decode_worker::{ActiveSearch, StepOutcome},
    kv_cache::{DecoderSession, KvCache, StepInput, combined_need},
    worker_handle::WindowId,
};
use crate::decoding::{NeededScores, TokenRanges};

/// The active searches with the same number of rows, and their keys and values.
pub struct BeamBatch {
    rows: usize,
    cache: KvCache,
    /// In the order of their KV slots.
    members: Vec<BeamMember>,
}

struct BeamMember {
    window: WindowId,
    search: ActiveSearch,
    /// For each row of the search, its row within the KV slot.
    cache_rows: Vec<usize>,
}

impl BeamBatch {
    pub fn new(decoder: &DecoderSession, rows: usize) -> Result<Self, ort::Error> {
        Ok(Self { rows, cache: KvCache::new(decoder, rows, 1)?, members: Vec::new() })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn used_rows(&self) -> usize {
        self.members.len() * self.rows
    }

    /// Adds a search whose window is in `slot` of `single_rows`. `max_rows` is the most rows of all batches together.
    pub fn add(
        &mut self,
        decoder: &mut DecoderSession,
        single_rows: &mut KvCache,
        slot: usize,
        window: WindowId,
        search: ActiveSearch,
        max_rows: usize,
    ) -> Result<(), (ActiveSearch, ort::Error)> {
        let used = self.members.len();
        let needed = (used + 1).next_power_of_two().min((max_rows / self.rows).max(used + 1));
        let grown = if self.cache.slots() < needed { self.cache.grow(decoder, needed, used) } else { Ok(()) };
        if let Err(error) = grown.and_then(|()| self.cache.fork(single_rows, slot, used, search.length)) {
            return Err((search, error));
        }

        self.members.push(BeamMember { window, search, cache_rows: (0..self.rows).collect() });
        Ok(())
    }

    /// Runs one decode step: one token for each row.
    pub fn step(&mut self, decoder: &mut DecoderSession) {
        if self.members.is_empty() {
            return;
        }

        let max_tokens = decoder.shape.max_tokens;
        let fits = self.members.iter().all(|member| member.search.length < max_tokens);
        let mut ended = Vec::new();

        if !(fits && self.step_members(decoder, 0, self.members.len(), &mut ended)) {
            // Each search is stepped alone, so that only those fail that cannot be continued.
            for slot in 0..self.members.len() {
                self.step_members(decoder, slot, 1, &mut ended);
            }
        }

        // From the last slot to the first: to remove a member moves only members in later slots.
        ended.sort_by_key(|(slot, _)| std::cmp::Reverse(*slot));

        for (slot, outcome) in ended {
            self.remove_at(slot, outcome);
        }
    }

    /// Steps `count` members from `first` on, and appends those that ended to `ended`. Returns `false` if a call for
    /// several members failed, which should then be tried alone.
    fn step_members(
        &mut self,
        decoder: &mut DecoderSession,
        first: usize,
        count: usize,
        ended: &mut Vec<(usize, StepOutcome)>,
    ) -> bool {
        let Self { rows, cache, members } = self;
        let members = &mut members[first..first + count];

        let tokens = next_tokens(members, *rows);
        let lengths: Vec<usize> =
            members.iter().flat_map(|member| std::iter::repeat_n(member.search.length, *rows)).collect();
        let needed = combined_need(members.iter().map(|member| member.search.strategy().needed_scores()));
        let ranges = if needed == NeededScores::Logits { Vec::new() } else { token_ranges(members, *rows) };
        let step = StepInput { tokens: &tokens, lengths: &lengths, ranges: &ranges, needed };

        let mut scores = match cache.run(decoder, first..first + count, &step) {
            Ok(scores) => scores,
            Err(error) if count == 1 => {
                ended.push((first, StepOutcome::Failed(error)));
                return true;
            }
            Err(error) => {
                tracing::warn!("a step over {count} searches failed, trying each: {error}");
                return false;
            }
        };

        let mut outcomes = Vec::with_capacity(count);
        for (index, BeamMember { search, cache_rows, .. }) in members.iter_mut().enumerate() {
            search.length += 1;
            let own_rows = index * *rows..(index + 1) * *rows;
            outcomes.push(search.choose_tokens(&mut scores.of_rows(own_rows, count * *rows, cache_rows)));
        }

        for (index, mut outcome) in outcomes.into_iter().enumerate() {
            if matches!(outcome, StepOutcome::Continue)
                && let Err(error) = members[index].apply_parents(cache, (first + index) * *rows)
            {
                outcome = StepOutcome::Failed(error);
            }

            if !matches!(outcome, StepOutcome::Continue) {
                ended.push((first + index, outcome));
            }
        }

        true
    }

    pub fn remove(&mut self, window: WindowId) {
        if let Some(slot) = self.members.iter().position(|member| member.window == window) {
            self.remove_at(slot, StepOutcome::Cancelled);
        }
    }

    /// Ends the search in `slot`; the search in the last slot moves there.
    fn remove_at(&mut self, slot: usize, outcome: StepOutcome) {
        self.members.swap_remove(slot).search.end(outcome);
        let last = self.members.len();
        if slot == last {
            return;
        }

        let length = self.members[slot].search.length;
        if let Err(error) = self.cache.copy_window(last, slot, length) {
            // The copy may be incomplete, so the moved search cannot go on.
            self.remove_at(slot, StepOutcome::Failed(error));
        }
    }
}

impl BeamMember {
    /// Makes each row continue its parent: renames rows, and copies those that several others continue. `base` is the
    /// first row of the member's slot in `cache`.
    fn apply_parents(&mut self, cache: &mut KvCache, base: usize) -> Result<(), ort::Error> {
        let Some(parents) = self.search.parents.take() else { return Ok(()) };
        let (cache_rows, copies) = rearranged(&self.cache_rows, &parents);

        for (source, target) in copies {
            cache.copy_row(base + source, base + target, self.search.length)?;
        }

        self.cache_rows = cache_rows;
        Ok(())
    }
}

/// The next token of each row, in the order in which the rows lie in memory.
fn next_tokens(members: &[BeamMember], rows: usize) -> Vec<u32> {
    let mut tokens = vec![0; members.len() * rows];
    for (member, tokens) in members.iter().zip(tokens.chunks_exact_mut(rows)) {
        for (token, row) in member.search.tokens.iter().zip(&member.cache_rows) {
            tokens[*row] = *token;
        }
    }
    tokens
}

/// The tokens that may follow in each row, in the order in which the rows lie in memory.
fn token_ranges(members: &[BeamMember], rows: usize) -> Vec<TokenRanges> {
    let mut ranges = vec![TokenRanges { words: 0..0, times: 0..0 }; members.len() * rows];
    for (member, ranges) in members.iter().zip(ranges.chunks_exact_mut(rows)) {
        for (row, cache_row) in member.cache_rows.iter().enumerate() {
            ranges[*cache_row] = member.search.strategy().ranges(row);
        }
    }
    ranges
}

/// The row in memory of each row of the search after row `i` continues row `parents[i]`, and the copies `(source,
/// target)` of rows in memory that are needed first. A row that several rows continue stays where it is for the first.
fn rearranged(cache_rows: &[usize], parents: &[usize]) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut is_taken = vec![false; cache_rows.len()];
    let mut copies = Vec::new();

    let in_place: Vec<Option<usize>> = parents
        .iter()
        .map(|parent| {
            let row = cache_rows[*parent];
            (!std::mem::replace(&mut is_taken[row], true)).then_some(row)
        })
        .collect();

    // There are as many free rows as rows of the search that need a copy.
    let mut free_rows = (0..cache_rows.len()).filter(|row| !is_taken[*row]);
    let rows = in_place.into_iter().zip(parents).filter_map(|(row, parent)| {
        row.or_else(|| {
            let target = free_rows.next()?;
            copies.push((cache_rows[*parent], target));
            Some(target)
        })
    });

    (rows.collect(), copies)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn distinct_parents_need_no_copy() {
        assert_eq!(rearranged(&[0, 1, 2], &[2, 0, 1]), (vec![2, 0, 1], vec![]));
        assert_eq!(rearranged(&[2, 0, 1], &[2, 0, 1]), (vec![1, 2, 0], vec![]));
    }

    #[test]
    fn a_parent_of_several_is_copied_over_those_that_end() {
        assert_eq!(rearranged(&[0, 1, 2], &[1, 1, 0]), (vec![1, 2, 0], vec![(1, 2)]));
    }

    proptest! {
        #[test]
        fn every_row_continues_its_parent(
            (order, parents) in (1_usize..9).prop_flat_map(|rows| (
                Just((0..rows).collect::<Vec<_>>()).prop_shuffle(),
                prop::collection::vec(0..rows, rows),
            )),
        ) {
            // The row of the search that each row of memory holds.
            let mut memory = vec![0; order.len()];
            order.iter().enumerate().for_each(|(row, cache_row)| memory[*cache_row] = row);
            let (cache_rows, copies) = rearranged(&order, &parents);
            for (source, target) in &copies {
                memory[*target] = memory[*source];
            }

            let mut seen = cache_rows.clone();
            seen.sort_unstable();

            prop_assert_eq!(seen, (0..order.len()).collect::<Vec<_>>());

            for (cache_row, parent) in cache_rows.iter().zip(&parents) {
                prop_assert_eq!(memory[*cache_row], *parent);
            }

            let mut distinct = parents.clone();
            distinct.sort_unstable();
            distinct.dedup();

            prop_assert_eq!(copies.len(), parents.len() - distinct.len());
        }
    }
}
