//! The graphs of the bundled checkpoint compared with the values of the reference implementation.

use std::process::Command;

use hush_whisper::{Precision, kernels::InstructionSet};
use ndarray::{Array2, ArrayD, Axis, s};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::run::{EncoderTensors, GraphModel, best};
use crate::support::{bundled, fixtures, installed, npy};

/// The reference's values for one recording.
struct Reference {
    mel: ArrayD<f32>,
    hidden: ArrayD<f32>,
    /// For each step: the logits of `sampled`, then the log-sum-exp.
    logits: Array2<f32>,
    sampled: Vec<u32>,
    prompt: Vec<u32>,
    generated: Vec<u32>,
}

impl Reference {
    fn read(name: &str) -> Self {
        let parity = fixtures().join("parity");
        let steps: Value =
            serde_json::from_slice(&std::fs::read(parity.join(format!("{name}.steps.json"))).unwrap()).unwrap();
        let ids = |field: &str| -> Vec<u32> { serde_json::from_value(steps[field].clone()).unwrap() };
        let array = |kind: &str| npy::read(&parity.join(format!("{name}.{kind}.npy")));

        Self {
            mel: array("mel80"),
            hidden: array("encoder"),
            logits: array("logits").into_dimensionality().unwrap(),
            sampled: ids("logit_ids"),
            prompt: ids("prompt"),
            generated: ids("generated"),
        }
    }

    fn mel(&self) -> &[f32] {
        self.mel.as_slice().unwrap()
    }
}

fn model(precision: Precision) -> (GraphModel, TempDir) {
    let models = tempfile::tempdir().unwrap();
    let dir = installed(&bundled(), models.path(), precision);
    (GraphModel::load(&dir), models)
}

fn largest_difference<'a>(a: impl IntoIterator<Item = &'a f32>, b: impl IntoIterator<Item = &'a f32>) -> f32 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The largest differences of the encoder's output and of the logits over all greedy steps. Every token must be the same, or
/// its logit at most `tie` less than the largest one.
fn differences(precision: Precision, name: &str, tie: f32) -> (f32, f32) {
    let reference = Reference::read(name);
    let (mut model, _models) = model(precision);
    let (hidden, cross) = model.encode(&[reference.mel()]);
    let hidden_difference = largest_difference(&hidden, &reference.hidden);

    let (mut cache, mut done, mut logits_difference) = (model.empty(1), 0, 0.0f32);
    let mut next = reference.prompt.clone();

    for (step, expected) in reference.generated.iter().enumerate() {
        let all = model.decode(&[&next], &[done], &cross, &mut cache);
        let logits = all.index_axis(Axis(0), 0);
        let found: Vec<f32> = reference.sampled.iter().map(|id| logits[*id as usize]).collect();
        logits_difference = logits_difference.max(largest_difference(&found, reference.logits.slice(s![step, ..-1])));
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let behind = largest - logits[*expected as usize];
        assert!(behind <= tie, "step {step} of {name}, {precision}: {:?} is ahead by {behind}", best(&all));
        done += next.len();
        next = vec![*expected];
    }

    (hidden_difference, logits_difference)
}

fn assert_within(precision: Precision, hidden: f32, logits: f32, tie: f32) {
    for name in ["en-1", "long-de"] {
        let (hidden_difference, logits_difference) = differences(precision, name, tie);
        assert!(hidden_difference <= hidden, "{name}, {precision}: the encoder differs by {hidden_difference}");
        assert!(logits_difference <= logits, "{name}, {precision}: the logits differ by {logits_difference}");
    }
}

#[test]
fn fp32_computes_what_the_reference_computes() {
    assert_within(Precision::Fp32, 1e-3, 1e-3, 0.0);
}

/// Encoder outputs reach 4.6 and logits 25 here: half precision has three digits.
#[test]
fn fp16_stays_close_and_chooses_the_same_tokens() {
    assert_within(Precision::Fp16, 0.01, 0.03, 0.0);
}

/// 8-bit weights and activations: two digits. Two tokens whose logits differ by less than that may change places.
#[test]
fn int8_stays_close_and_chooses_the_same_tokens_except_in_ties() {
    assert_within(Precision::Int8, 0.4, 1.0, 0.2);
}

/// What an installed model computes does not depend on the processor, except for the last digits.
#[test]
fn int8_encoders_are_as_close_with_all_instructions() {
    let reference = Reference::read("en-1");
    let models = tempfile::tempdir().unwrap();
    let dir = installed(&bundled(), models.path(), Precision::Int8);

    for instructions in InstructionSet::all() {
        let mut model = GraphModel::load_with(&dir, instructions);

        // A window alone, and one that is the second of a call.
        for windows in [&[reference.mel()][..], &[&vec![0.0; reference.mel().len()], reference.mel()]] {
            let (hidden, _) = model.encode(windows);
            let last = hidden.index_axis(Axis(0), windows.len() - 1);
            let difference = largest_difference(last, &reference.hidden);
            assert!(difference <= 0.4, "{instructions:?}, {} windows: differs by {difference}", windows.len());
        }
    }
}

/// A processor without VNNI adds products of bytes in 16 bits. The emulator shows ONNX Runtime such a processor, and the
/// test above runs again in it.
#[test]
fn int8_is_as_close_on_a_processor_without_vnni() {
    const EMULATOR: &str = "qemu-x86_64";
    const SAME: &str = "graphs::int8_stays_close_and_chooses_the_same_tokens_except_in_ties";

    let processor = ["-cpu", "Haswell-noTSX"];
    if !cfg!(target_arch = "x86_64") || Command::new(EMULATOR).arg("--version").output().is_err() {
        eprintln!("skipped: no {EMULATOR} (qemu-user) is installed");
        return;
    }

    let test = std::env::current_exe().unwrap();
    let run = Command::new(EMULATOR).args(processor).arg(test).args(["--exact", SAME]).output().unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && output.contains("1 passed"), "{output}{}", String::from_utf8_lossy(&run.stderr));
}

/// Several rows may attend to the same window; each must compute the same values as alone.
#[test]
fn rows_of_one_window_do_not_disturb_each_other() {
    const GROUP: usize = 3;

    let (en, de) = (Reference::read("en-1"), Reference::read("long-de"));
    for precision in [Precision::Fp32, Precision::Int8] {
        let (mut model, _models) = model(precision);
        let prompts: Vec<Vec<u32>> = [50259, 50261, 50265, 50262, 50260, 50259]
            .iter()
            .map(|language| vec![50258, *language, 50359, 50363])
            .collect();

        let steps: [[u32; 6]; 3] = [[18, 300, 4000, 5, 60, 700], [8, 90, 1000, 11, 1200, 13], [1, 2, 3, 4, 5, 6]];
        let (_, both) = model.encode(&[en.mel(), de.mel()]);

        let run = |model: &mut GraphModel, rows: &[usize], cross: &EncoderTensors| {
            let mut cache = model.empty(rows.len());
            let prompt: Vec<&[u32]> = rows.iter().map(|r| prompts[*r].as_slice()).collect();
            let mut all = vec![model.decode(&prompt, &vec![0; rows.len()], cross, &mut cache)];
            for (i, step) in steps.iter().enumerate() {
                let ids: Vec<&[u32]> = rows.iter().map(|r| &step[*r..=*r]).collect();
                all.push(model.decode(&ids, &vec![4 + i; rows.len()], cross, &mut cache));
            }

            all
        };

        let together = run(&mut model, &[0, 1, 2, 3, 4, 5], &both);
        for row in 0..prompts.len() {
            let window = row / GROUP;
            let cross: EncoderTensors = both.iter().map(|(name, all)| (name.clone(), all.window(window))).collect();
            let alone = run(&mut model, &[row], &cross);
            for (together, alone) in together.iter().zip(&alone) {
                let difference = largest_difference(together.index_axis(Axis(0), row), alone);
                assert!(difference < 1e-3, "row {row}, {precision}: {difference}");
            }
        }
    }
}

/// Rows of different lengths in one step: each has its own part of the cache.
#[test]
fn rows_of_different_lengths_share_a_step() {
    let reference = Reference::read("long-de");
    let (mut model, _models) = model(Precision::Fp32);
    let (_, cross) = model.encode(&[reference.mel()]);
    let tokens: Vec<u32> = reference.prompt.iter().chain(&reference.generated).copied().collect();
    let lengths = [5, 17, 30];
    let mut alone = Vec::new();
    let mut shared = model.empty(lengths.len());

    for (row, length) in lengths.iter().enumerate() {
        let mut cache = model.empty(1);
        model.decode(&[&tokens[..*length]], &[0], &cross, &mut cache);
        for ((_, all), (_, one)) in shared.iter_mut().zip(&cache) {
            all.index_axis_mut(Axis(0), row).assign(&one.index_axis(Axis(0), 0));
        }
        alone.push(model.decode(&[&tokens[*length..=*length]], &[*length], &cross, &mut cache));
    }

    let next: Vec<&[u32]> = lengths.iter().map(|n| &tokens[*n..=*n]).collect();
    let together = model.decode(&next, &lengths, &cross, &mut shared);

    for (row, alone) in alone.iter().enumerate() {
        let difference = largest_difference(together.index_axis(Axis(0), row), alone);
        assert!(difference < 1e-3, "row {row}: {difference}");
    }
}

#[test]
fn alignment_weights_are_a_distribution_over_the_frames() {
    let reference = Reference::read("long-de");
    let tokens: Vec<u32> = reference.prompt.iter().chain(&reference.generated).copied().collect();

    for precision in Precision::ALL {
        let (mut model, _models) = model(precision);
        let (_, cross) = model.encode(&[reference.mel()]);
        let weights = model.align(&[&tokens], &cross);
        assert_eq!(weights.shape(), [1, 2, tokens.len(), 1500]);
        for sum in weights.sum_axis(Axis(3)) {
            assert!((sum - 1.0).abs() < 1e-3, "{precision}: {sum}");
        }
    }
}
