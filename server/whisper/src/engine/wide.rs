//! Searches over several rows of a window (beams, candidates of best-of): those with the same number of rows take their
//! steps together.

use super::{
    kv_cache::{Decoder, KvCache, StepInput, wanted_together},
    owner::{Course, Decoding},
    window::WindowId,
};
use crate::decoding::{TokenRanges, Wanted};

pub struct Wide {
    rows: usize,
    cache: KvCache,
    /// In the order of their places.
    members: Vec<Member>,
}

struct Member {
    window: WindowId,
    decoding: Decoding,
    /// The row in memory of each row of the search.
    order: Vec<usize>,
}

impl Wide {
    pub fn new(decoder: &Decoder, rows: usize) -> Result<Self, ort::Error> {
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

    /// Takes in a search whose window lies at `place` of `single`. `most_rows` is how many there may be of all widths.
    pub fn add(
        &mut self,
        decoder: &mut Decoder,
        single: &mut KvCache,
        place: usize,
        window: WindowId,
        decoding: Decoding,
        most_rows: usize,
    ) -> Result<(), (Decoding, ort::Error)> {
        let used = self.members.len();
        let wanted = (used + 1).next_power_of_two().min((most_rows / self.rows).max(used + 1));
        let grown = if self.cache.places() < wanted { self.cache.grow(decoder, wanted, used) } else { Ok(()) };
        if let Err(error) = grown.and_then(|()| self.cache.fork(single, place, used, decoding.length)) {
            return Err((decoding, error));
        }
        self.members.push(Member { window, decoding, order: (0..self.rows).collect() });
        Ok(())
    }

    /// One token for each row.
    pub fn step(&mut self, decoder: &mut Decoder) {
        if self.members.is_empty() {
            return;
        }

        let slots = decoder.shape.slots;
        let fits = self.members.iter().all(|member| member.decoding.length < slots);
        let mut ended = Vec::new();

        if !(fits && self.run(decoder, 0, self.members.len(), &mut ended)) {
            // Each by itself: only what cannot be done fails.
            for place in 0..self.members.len() {
                self.run(decoder, place, 1, &mut ended);
            }
        }

        // From the back, so that the places before stay what they are.
        ended.sort_by_key(|(place, _)| std::cmp::Reverse(*place));

        for (place, course) in ended {
            self.take(place, course);
        }
    }

    /// Steps `count` members from `first` on; `false` when several failed together and should be tried alone.
    fn run(&mut self, decoder: &mut Decoder, first: usize, count: usize, ended: &mut Vec<(usize, Course)>) -> bool {
        let Self { rows, cache, members } = self;
        let members = &mut members[first..first + count];
        let mut tokens = vec![0; count * *rows];

        for (member, tokens) in members.iter().zip(tokens.chunks_exact_mut(*rows)) {
            for (token, place) in member.decoding.tokens.iter().zip(&member.order) {
                tokens[*place] = *token;
            }
        }

        let lengths: Vec<usize> =
            members.iter().flat_map(|member| std::iter::repeat_n(member.decoding.length, *rows)).collect();
        let wanted = wanted_together(members.iter().map(|member| member.decoding.search().wants()));
        let ranges = if wanted == Wanted::Logits { Vec::new() } else { ranges(members, *rows) };
        let step = StepInput { tokens: &tokens, lengths: &lengths, ranges: &ranges, wanted };
        let mut scores = match cache.run(decoder, first..first + count, &step) {
            Ok(scores) => scores,
            Err(error) if count == 1 => {
                ended.push((first, Course::Failed(error)));
                return true;
            }
            Err(error) => {
                tracing::warn!("a step over {count} searches failed, trying each: {error}");
                return false;
            }
        };

        let mut courses = Vec::with_capacity(count);

        for (index, Member { decoding, order, .. }) in members.iter_mut().enumerate() {
            decoding.length += 1;
            let own_rows = index * *rows..(index + 1) * *rows;
            courses.push(decoding.choose(&mut scores.of_rows(own_rows, count * *rows, order)));
        }

        for (index, mut course) in courses.into_iter().enumerate() {
            let member = &mut members[index];

            if matches!(course, Course::On)
                && let Some(from) = member.decoding.from.take()
            {
                let (order, copies) = rearranged(&member.order, &from);
                let base = (first + index) * *rows;
                let length = member.decoding.length;
                let mut copied =
                    copies.into_iter().map(|(source, target)| cache.copy_row(base + source, base + target, length));

                match copied.find_map(Result::err) {
                    Some(error) => course = Course::Failed(error),
                    None => member.order = order,
                }
            }

            if !matches!(course, Course::On) {
                ended.push((first + index, course));
            }
        }

        true
    }

    pub fn remove(&mut self, window: WindowId) {
        if let Some(place) = self.members.iter().position(|member| member.window == window) {
            self.take(place, Course::Gone);
        }
    }

    /// Ends a search; the last one moves to its place.
    fn take(&mut self, place: usize, course: Course) {
        self.members.swap_remove(place).decoding.end(course);
        let last = self.members.len();
        if place == last {
            return;
        }

        let length = self.members[place].decoding.length;

        if let Err(error) = self.cache.copy_window(last, place, length) {
            // Nobody knows what is left of it.
            self.take(place, Course::Failed(error));
        }
    }
}

/// The tokens that may follow in each row, in the order in which the rows lie in memory.
fn ranges(members: &[Member], rows: usize) -> Vec<TokenRanges> {
    let mut ranges = vec![TokenRanges { words: 0..0, times: 0..0 }; members.len() * rows];
    for (member, ranges) in members.iter().zip(ranges.chunks_exact_mut(rows)) {
        for (row, place) in member.order.iter().enumerate() {
            ranges[*place] = member.decoding.search().ranges(row);
        }
    }
    ranges
}

/// Where each row lies after row `i` continues row `from[i]`, and which copies of rows in memory come first. A row that
/// others continue stays where it is for the first of them.
fn rearranged(order: &[usize], from: &[usize]) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut taken = vec![false; order.len()];
    let mut copies = Vec::new();
    let places: Vec<Option<usize>> = from
        .iter()
        .map(|parent| {
            let place = order[*parent];
            (!std::mem::replace(&mut taken[place], true)).then_some(place)
        })
        .collect();

    let mut free = (0..order.len()).filter(|place| !taken[*place]);
    let places = places.into_iter().zip(from).filter_map(|(place, parent)| {
        // There are as many free places as rows without one.
        place.or_else(|| {
            let place = free.next()?;
            copies.push((order[*parent], place));
            Some(place)
        })
    });

    (places.collect(), copies)
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
            (order, from) in (1_usize..9).prop_flat_map(|rows| (
                Just((0..rows).collect::<Vec<_>>()).prop_shuffle(),
                prop::collection::vec(0..rows, rows),
            )),
        ) {
            // What memory holds: the row of the search that lies there.
            let mut memory = vec![0; order.len()];
            order.iter().enumerate().for_each(|(row, place)| memory[*place] = row);
            let (places, copies) = rearranged(&order, &from);
            for (source, target) in &copies {
                memory[*target] = memory[*source];
            }

            let mut seen = places.clone();
            seen.sort_unstable();

            prop_assert_eq!(seen, (0..order.len()).collect::<Vec<_>>());

            for (place, parent) in places.iter().zip(&from) {
                prop_assert_eq!(memory[*place], *parent);
            }

            let mut distinct = from.clone();
            distinct.sort_unstable();
            distinct.dedup();

            prop_assert_eq!(copies.len(), from.len() - distinct.len());
        }
    }
}
