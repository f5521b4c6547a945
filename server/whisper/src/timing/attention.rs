//! Computes, from the attention weights of several heads, one number for each token and frame that is high where the token
//! is spoken.

/// Width of the median filter.
const WIDTH: usize = 7;
const HALF: usize = WIDTH / 2;

/// Cross-attention of the alignment heads: `[heads, tokens, frames]`, each row a distribution over the frames.
pub struct AlignmentAttention {
    pub weights: Vec<f32>,
    pub heads: usize,
    pub tokens: usize,
    pub frames: usize,
}

impl AlignmentAttention {
    /// `[tokens, frames]` over the first `frames`: each head's weights renormalised, standardised over the tokens and
    /// smoothed over time, then their mean.
    pub fn matrix(&self, frames: usize) -> Vec<f32> {
        let frames = frames.min(self.frames);
        let mut matrix = vec![0.0; self.tokens * frames];
        if self.tokens == 0 || frames == 0 || self.heads == 0 {
            return matrix;
        }

        let mut head = vec![0.0; matrix.len()];

        for whole in self.weights.chunks_exact(self.tokens * self.frames) {
            for (row, whole) in head.chunks_exact_mut(frames).zip(whole.chunks_exact(self.frames)) {
                renormalise(&whole[..frames], row);
            }
            standardise(&mut head, frames);
            for (row, sum) in head.chunks_exact(frames).zip(matrix.chunks_exact_mut(frames)) {
                add_medians(row, sum);
            }
        }

        let share = 1.0 / self.heads as f32;
        matrix.iter_mut().for_each(|value| *value *= share);

        matrix
    }
}

/// The softmax over a part of the frames is that part of the softmax over all frames, scaled.
fn renormalise(part: &[f32], out: &mut [f32]) {
    let total: f64 = part.iter().copied().map(f64::from).sum();
    let scale = if total > 0.0 { 1.0 / total } else { 0.0 };
    for (value, out) in part.iter().zip(out) {
        *out = (f64::from(*value) * scale) as f32;
    }
}

/// Scales each frame to mean 0 and deviation 1 over the tokens.
fn standardise(head: &mut [f32], frames: usize) {
    let tokens = (head.len() / frames) as f64;
    let mut sums = vec![(0.0_f64, 0.0_f64); frames];
    for row in head.chunks_exact(frames) {
        for ((sum, _), value) in sums.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }

    for (sum, _) in &mut sums {
        *sum /= tokens;
    }

    for row in head.chunks_exact(frames) {
        for ((mean, squares), value) in sums.iter_mut().zip(row) {
            *squares += (f64::from(*value) - *mean).powi(2);
        }
    }

    for row in head.chunks_exact_mut(frames) {
        for ((mean, squares), value) in sums.iter().zip(row) {
            let deviation = (squares / tokens).sqrt();
            // If all tokens have the same attention, the frame says nothing.
            *value = if deviation > 0.0 { ((f64::from(*value) - mean) / deviation) as f32 } else { 0.0 };
        }
    }
}

/// Adds the median of the seven values around each position; the row is mirrored at its ends.
fn add_medians(row: &[f32], sum: &mut [f32]) {
    if row.len() <= HALF {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        return;
    }

    let last = row.len() - 1;
    let mirrored = |at: isize| {
        let at = at.unsigned_abs();
        row[if at > last { 2 * last - at } else { at }]
    };

    for (at, sum) in sum.iter_mut().enumerate() {
        let mut window = [0.0; WIDTH];
        if at >= HALF && at + HALF <= last {
            window.copy_from_slice(&row[at - HALF..=at + HALF]);
        } else {
            for (offset, value) in window.iter_mut().enumerate() {
                *value = mirrored(at as isize + offset as isize - HALF as isize);
            }
        }

        window.sort_unstable_by(f32::total_cmp);
        *sum += window[HALF];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medians(row: &[f32]) -> Vec<f32> {
        let mut sum = vec![0.0; row.len()];
        add_medians(row, &mut sum);
        sum
    }

    #[test]
    fn medians_mirror_the_ends() {
        // scipy.ndimage.median_filter([5, 1, 4, 2, 8, 0, 3, 7], 7, mode="mirror")
        assert_eq!(medians(&[5.0, 1.0, 4.0, 2.0, 8.0, 0.0, 3.0, 7.0]), [2.0, 4.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0]);
        assert_eq!(medians(&[1.0, 9.0, 2.0]), [1.0, 9.0, 2.0]);
        assert_eq!(medians(&[1.0, 9.0, 2.0, 4.0]), [4.0, 2.0, 4.0, 2.0]);
    }

    #[test]
    fn each_frame_has_mean_0_and_deviation_1() {
        let mut head = vec![1.0, 5.0, 2.0, 3.0, 5.0, 2.0];
        standardise(&mut head, 3);
        assert_eq!(head, [-1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn frames_beyond_the_audio_do_not_count() {
        let weights = vec![0.1, 0.1, 0.3, 0.5, 0.3, 0.1, 0.1, 0.5];
        let attention = AlignmentAttention { weights, heads: 1, tokens: 2, frames: 4 };
        assert_eq!(attention.matrix(2), [-1.0, 1.0, 1.0, -1.0]);
        assert_eq!(attention.matrix(9).len(), 8);
        assert!(attention.matrix(0).is_empty());
    }
}
