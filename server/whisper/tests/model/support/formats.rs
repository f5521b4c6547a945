//! The bundled checkpoint in the file formats of other programs, written in the same way as by these programs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use hush_whisper::checkpoint::Config;
use serde_json::{Value, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::checkpoints::{CONFIG, WEIGHTS, load};

/// Shape and values of every tensor, by its name without `model.`.
pub type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads dimensions and tensors of a Hugging Face folder of 16-bit values.
pub fn read(folder: &Path) -> (Config, Tensors) {
    let config = serde_json::from_slice(&fs::read(folder.join(CONFIG)).unwrap()).unwrap();
    let tensors = load(&folder.join(WEIGHTS))
        .into_iter()
        .map(|(name, (dtype, shape, bytes))| {
            let halves = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
            let values = match dtype {
                safetensors::Dtype::F16 => halves.map(|b| f16::from_le_bytes(b).to_f32()).collect(),
                safetensors::Dtype::BF16 => halves.map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
                other => panic!("{other:?}"),
            };
            (name.trim_start_matches("model.").to_owned(), (shape, values))
        })
        .collect();

    (config, tensors)
}

fn f16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// How CTranslate2 stores matrices, and other values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantisation {
    Float32,
    Float16,
    Bfloat16,
    Int8Float16,
    Int8Float32,
    Int16,
}

/// A variable of a CTranslate2 file: name, shape, number of its type, values.
type Ctranslate2Variable = (String, Vec<usize>, u8, Vec<u8>);

/// Collects the variables of a CTranslate2 file.
struct Ctranslate2Writer<'a> {
    tensors: &'a Tensors,
    quantisation: Quantisation,
    variables: Vec<Ctranslate2Variable>,
    /// The values that each variable has after it is read back.
    stored_values: HashMap<String, Vec<f32>>,
    /// The variable of each tensor, and its position among the projections in that variable.
    origins: Vec<(String, String, usize)>,
}

impl Ctranslate2Writer<'_> {
    /// Adds a variable, quantised if it is a matrix.
    fn variable(&mut self, name: String, shape: Vec<usize>, values: &[f32], is_matrix: bool) {
        let stored: Vec<f32> = match self.quantisation {
            Quantisation::Int8Float16 | Quantisation::Int8Float32 if is_matrix => self.int8(&name, shape, values),
            Quantisation::Int16 if is_matrix => {
                let largest = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                let scale = 1024.0 / largest;
                let quants: Vec<i16> = values.iter().map(|v| (v * scale).round_ties_even() as i16).collect();
                let bytes = quants.iter().flat_map(|q| q.to_le_bytes()).collect();
                self.variables.push((name.clone(), shape, 2, bytes));
                self.variables.push((format!("{name}_scale"), vec![], 0, f32_bytes(&[scale])));
                quants.iter().map(|q| f32::from(*q) / scale).collect()
            }
            Quantisation::Float32 | Quantisation::Int8Float32 | Quantisation::Int16 => {
                self.variables.push((name.clone(), shape, 0, f32_bytes(values)));
                values.to_vec()
            }
            Quantisation::Float16 | Quantisation::Int8Float16 => {
                self.variables.push((name.clone(), shape, 4, f16_bytes(values)));
                values.iter().map(|v| f16::from_f32(*v).to_f32()).collect()
            }
            Quantisation::Bfloat16 => {
                let bytes = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
                self.variables.push((name.clone(), shape, 5, bytes));
                values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
            }
        };

        self.stored_values.insert(name, stored);
    }

    /// Adds a matrix in 8 bits and its scales, one for each row; returns the values after reading back.
    fn int8(&mut self, name: &str, shape: Vec<usize>, values: &[f32]) -> Vec<f32> {
        let rows = shape[0];
        let (mut scales, mut bytes, mut read_back) = (Vec::new(), Vec::new(), Vec::new());

        for row in values.chunks_exact(values.len() / rows) {
            let largest = row.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let scale = 127.0 / if largest == 0.0 { 127.0 } else { largest };
            scales.push(scale);
            for quant in row.iter().map(|v| (v * scale).round_ties_even() as i8) {
                bytes.push(quant as u8);
                read_back.push(f32::from(quant) / scale);
            }
        }

        self.variables.push((name.to_owned(), shape, 1, bytes));
        self.variables.push((format!("{name}_scale"), vec![rows], 0, f32_bytes(&scales)));
        read_back
    }

    /// Adds a variable with one tensor.
    fn tensor(&mut self, stored: String, canonical: String, is_matrix: bool) {
        let (shape, values) = self.tensors[&canonical].clone();
        self.variable(stored.clone(), shape, &values, is_matrix);
        self.origins.push((canonical, stored, 0));
    }

    /// Adds the weight matrix and the bias of a projection or a convolution.
    fn linear(&mut self, stored: &str, canonical: &str) {
        self.tensor(format!("{stored}/weight"), format!("{canonical}.weight"), true);
        self.tensor(format!("{stored}/bias"), format!("{canonical}.bias"), false);
    }

    fn norm(&mut self, stored: &str, canonical: &str) {
        self.tensor(format!("{stored}/gamma"), format!("{canonical}.weight"), false);
        self.tensor(format!("{stored}/beta"), format!("{canonical}.bias"), false);
    }

    /// Adds the tensors of the encoder or the decoder that have variables of their own.
    fn side(&mut self, side: &str, layers: usize) {
        self.tensor(format!("{side}/position_encodings/encodings"), format!("{side}.embed_positions.weight"), false);
        self.norm(&format!("{side}/layer_norm"), &format!("{side}.layer_norm"));

        for layer in 0..layers {
            let (stored, canonical) = (format!("{side}/layer_{layer}"), format!("{side}.layers.{layer}"));
            self.norm(&format!("{stored}/self_attention/layer_norm"), &format!("{canonical}.self_attn_layer_norm"));
            self.norm(&format!("{stored}/ffn/layer_norm"), &format!("{canonical}.final_layer_norm"));
            for (linear, name) in
                [("ffn/linear_0", "fc1"), ("ffn/linear_1", "fc2"), ("self_attention/linear_1", "self_attn.out_proj")]
            {
                self.linear(&format!("{stored}/{linear}"), &format!("{canonical}.{name}"));
            }

            if side == "decoder" {
                self.norm(&format!("{stored}/attention/layer_norm"), &format!("{canonical}.encoder_attn_layer_norm"));
                for (linear, name) in [("attention/linear_0", "q_proj"), ("attention/linear_2", "out_proj")] {
                    self.linear(&format!("{stored}/{linear}"), &format!("{canonical}.encoder_attn.{name}"));
                }
            }
        }
    }

    /// Adds the projections of an attention that share one matrix. Only keys have no bias; it is stored as zeros.
    fn packed(&mut self, stored: &str, attention: &str, projections: &[&str]) {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        let mut width = 0;

        for (index, projection) in projections.iter().enumerate() {
            let canonical = format!("{attention}.{projection}");
            let (shape, values) = &self.tensors[&format!("{canonical}.weight")];
            width = shape[1];
            weights.extend_from_slice(values);
            self.origins.push((format!("{canonical}.weight"), format!("{stored}/weight"), index));

            match self.tensors.get(&format!("{canonical}.bias")) {
                Some((_, values)) => biases.extend_from_slice(values),
                None => biases.resize(biases.len() + shape[0], 0.0),
            }
            if *projection != "k_proj" {
                self.origins.push((format!("{canonical}.bias"), format!("{stored}/bias"), index));
            }
        }

        self.variable(format!("{stored}/weight"), vec![width * projections.len(), width], &weights, true);
        self.variable(format!("{stored}/bias"), vec![width * projections.len()], &biases, false);
    }

    /// The bytes of `model.bin`.
    fn file(&self) -> Vec<u8> {
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u16 + 1).to_le_bytes());
            file.extend(text.as_bytes());
            file.push(0);
        };

        let mut file = Vec::new();
        file.extend(6_u32.to_le_bytes());
        text(&mut file, "WhisperSpec");
        file.extend(3_u32.to_le_bytes());
        file.extend((self.variables.len() as u32).to_le_bytes());

        for (name, shape, kind, bytes) in &self.variables {
            text(&mut file, name);
            file.push(shape.len() as u8);
            shape.iter().for_each(|n| file.extend((*n as u32).to_le_bytes()));
            file.push(*kind);
            file.extend((bytes.len() as u32).to_le_bytes());
            file.extend(bytes);
        }

        file.extend(1_u32.to_le_bytes());
        text(&mut file, "decoder/projection/weight");
        text(&mut file, "decoder/embeddings/weight");
        file
    }

    /// The tensors with the values that they have in the file.
    fn read_back(self) -> Tensors {
        self.origins
            .into_iter()
            .map(|(canonical, stored, index)| {
                let shape = self.tensors[&canonical].0.clone();
                let length: usize = shape.iter().product();
                let values = self.stored_values[&stored][index * length..(index + 1) * length].to_vec();
                (canonical, (shape, values))
            })
            .collect()
    }
}

/// Writes a CTranslate2 folder, with `tokenizer.json` if `tokenizer` is set. Returns the values in the folder, under the
/// names of Hugging Face.
pub fn write_ctranslate2(source: &Path, target: &Path, quantisation: Quantisation, tokenizer: bool) -> Tensors {
    let (config, tensors) = read(source);
    let (variables, stored_values, origins) = (Vec::new(), HashMap::new(), Vec::new());
    let mut writer = Ctranslate2Writer { tensors: &tensors, quantisation, variables, stored_values, origins };

    for conv in ["conv1", "conv2"] {
        writer.linear(&format!("encoder/{conv}"), &format!("encoder.{conv}"));
    }
    writer.tensor("decoder/embeddings/weight".into(), "decoder.embed_tokens.weight".into(), true);

    for (side, layers) in [("encoder", config.encoder_layers), ("decoder", config.decoder_layers)] {
        writer.side(side, layers);

        for layer in 0..layers {
            let (stored, canonical) = (format!("{side}/layer_{layer}"), format!("{side}.layers.{layer}"));
            let attention = format!("{canonical}.self_attn");
            writer.packed(&format!("{stored}/self_attention/linear_0"), &attention, &["q_proj", "k_proj", "v_proj"]);
            if side == "decoder" {
                let attention = format!("{canonical}.encoder_attn");
                writer.packed(&format!("{stored}/attention/linear_1"), &attention, &["k_proj", "v_proj"]);
            }
        }
    }

    let heads = |n: usize| (n as i16).to_le_bytes().to_vec();
    writer.variables.push(("encoder/num_heads".into(), vec![], 2, heads(config.encoder_attention_heads)));
    writer.variables.push(("decoder/num_heads".into(), vec![], 2, heads(config.decoder_attention_heads)));
    writer.variables.sort();
    fs::write(target.join("model.bin"), writer.file()).unwrap();

    let generation: Value = serde_json::from_slice(&fs::read(source.join("generation_config.json")).unwrap()).unwrap();
    let fields = json!({
        "alignment_heads": generation["alignment_heads"],
        "suppress_ids": generation["suppress_tokens"],
        "suppress_ids_begin": generation["begin_suppress_tokens"],
        "lang_ids": [50259],
    });
    fs::write(target.join(CONFIG), fields.to_string()).unwrap();
    if tokenizer {
        fs::copy(source.join("tokenizer.json"), target.join("tokenizer.json")).unwrap();
    }

    writer.read_back()
}

/// The name of a tensor in openai/whisper, by a table that is independent of the reader's.
pub fn openai_name(canonical: &str) -> String {
    let mut name = format!("{canonical}.");

    for (from, to) in [
        (".layers.", ".blocks."),
        (".self_attn_layer_norm.", ".attn_ln."),
        (".encoder_attn_layer_norm.", ".cross_attn_ln."),
        (".final_layer_norm.", ".mlp_ln."),
        (".self_attn.", ".attn."),
        (".encoder_attn.", ".cross_attn."),
        (".q_proj.", ".query."),
        (".k_proj.", ".key."),
        (".v_proj.", ".value."),
        (".out_proj.", ".out."),
        (".fc1.", ".mlp.0."),
        (".fc2.", ".mlp.2."),
        ("encoder.layer_norm.", "encoder.ln_post."),
        ("decoder.layer_norm.", "decoder.ln."),
        (".embed_positions.weight.", ".positional_embedding."),
        (".embed_tokens.weight.", ".token_embedding.weight."),
    ] {
        name = name.replace(from, to);
    }

    name.trim_end_matches('.').to_owned()
}

fn dimensions(config: &Config) -> [(&'static str, usize); 10] {
    [
        ("n_mels", config.num_mel_bins),
        ("n_vocab", config.vocab_size),
        ("n_audio_ctx", config.max_source_positions),
        ("n_audio_state", config.d_model),
        ("n_audio_head", config.encoder_attention_heads),
        ("n_audio_layer", config.encoder_layers),
        ("n_text_ctx", config.max_target_positions),
        ("n_text_state", config.d_model),
        ("n_text_head", config.decoder_attention_heads),
        ("n_text_layer", config.decoder_layers),
    ]
}

/// Writes opcodes of a pickle of protocol 2 in the same way as PyTorch.
#[derive(Default)]
pub struct Pickler(pub Vec<u8>);

impl Pickler {
    pub fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    pub fn number(&mut self, number: usize) {
        self.0.push(b'J');
        self.0.extend((number as i32).to_le_bytes());
    }

    pub fn global(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").into_bytes());
    }

    fn sizes(&mut self, sizes: &[usize]) {
        self.0.push(b'(');
        sizes.iter().for_each(|n| self.number(*n));
        self.0.push(b't');
    }

    pub fn tensor(&mut self, key: &str, kind: &str, offset: usize, shape: &[usize], strides: &[usize]) {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.0.extend(b"((");
        self.text("storage");
        self.global("torch", kind);
        self.text(key);
        self.text("cpu");
        self.number(shape.iter().product());
        self.0.extend(b"tQ");
        self.number(offset);
        self.sizes(shape);
        self.sizes(strides);
        self.0.push(0x89);
        self.global("collections", "OrderedDict");
        self.0.extend(b")RtR");
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

/// Writes a `.pt` file of openai/whisper in float16. `spoil` may change each tensor's shape and strides before.
pub fn write_openai(source: &Path, target: &Path, spoil: impl Fn(&str, &mut Vec<usize>, &mut Vec<usize>)) -> PathBuf {
    let (config, tensors) = read(source);
    let mut names: Vec<&String> = tensors.keys().filter(|name| !name.starts_with("proj_out")).collect();
    names.sort();
    let mut pickle = Pickler(vec![0x80, 2, b'}', b'q', 0, b'(']);
    pickle.text("dims");
    pickle.0.extend([b'}', b'q', 1, b'(']);

    for (name, value) in dimensions(&config) {
        pickle.text(name);
        pickle.number(value);
    }

    pickle.0.push(b'u');
    pickle.text("model_state_dict");
    pickle.global("collections", "OrderedDict");
    pickle.0.extend([b')', b'R', b'q', 2, b'(']);

    for (key, name) in names.iter().enumerate() {
        let mut shape = tensors[*name].0.clone();
        let mut strides = strides(&shape);
        let name = openai_name(name);
        spoil(&name, &mut shape, &mut strides);
        pickle.text(&name);
        pickle.tensor(&key.to_string(), "HalfStorage", 0, &shape, &strides);
    }

    // The attribute `_metadata` of the state.
    pickle.0.extend([b'u', b'}']);
    pickle.text("_metadata");
    pickle.0.extend(b"}sbu.");
    let files = names.iter().enumerate().map(|(key, name)| (format!("data/{key}"), f16_bytes(&tensors[*name].1)));

    write_archive(target, "model.pt", &pickle.0, files)
}

/// Writes an archive in the same way as `torch.save`.
pub fn write_archive(
    target: &Path,
    name: &str,
    pickle: &[u8],
    files: impl IntoIterator<Item = (String, Vec<u8>)>,
) -> PathBuf {
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).with_alignment(64);
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));

    archive.start_file("archive/data.pkl", options).unwrap();
    archive.write_all(pickle).unwrap();
    for (name, bytes) in files {
        archive.start_file(format!("archive/{name}"), options).unwrap();
        archive.write_all(&bytes).unwrap();
    }

    archive.start_file("archive/version", options).unwrap();
    archive.write_all(b"3\n").unwrap();

    let path = target.join(name);
    fs::write(&path, archive.finish().unwrap().into_inner()).unwrap();
    path
}

/// A tensor of a ggml file: its `ggml_type` and its bytes.
pub type EncodedTensor = (i32, Vec<u8>);

pub fn ggml_f16(values: &[f32]) -> EncodedTensor {
    (1, f16_bytes(values))
}

pub fn ggml_f32(values: &[f32]) -> EncodedTensor {
    (0, f32_bytes(values))
}

/// Writes a `ggml-*.bin` file; `encode` chooses how each tensor is stored.
pub fn write_ggml(source: &Path, target: &Path, name: &str, encode: impl Fn(&str, &[f32]) -> EncodedTensor) -> PathBuf {
    let (config, tensors) = read(source);
    let mut file = b"lmgg".to_vec();
    let int = |file: &mut Vec<u8>, n: usize| file.extend((n as i32).to_le_bytes());
    let dimension = |field: &str| dimensions(&config).into_iter().find(|(name, _)| *name == field).unwrap().1;

    for field in [
        "n_vocab",
        "n_audio_ctx",
        "n_audio_state",
        "n_audio_head",
        "n_audio_layer",
        "n_text_ctx",
        "n_text_state",
        "n_text_head",
        "n_text_layer",
        "n_mels",
    ] {
        int(&mut file, dimension(field));
    }

    int(&mut file, 1);
    int(&mut file, config.num_mel_bins);
    int(&mut file, 201);
    file.extend(vec![0; config.num_mel_bins * 201 * 4]);

    let tokens = token_bytes(source);
    int(&mut file, tokens.len());

    for token in tokens {
        int(&mut file, token.len());
        file.extend(token);
    }

    let mut names: Vec<&String> = tensors.keys().filter(|name| !name.starts_with("proj_out")).collect();
    names.sort();

    for name in names {
        let (mut shape, values) = tensors[name].clone();
        let name = openai_name(name);
        let (kind, bytes) = encode(&name, &values);

        if name.contains("conv") && name.ends_with("bias") {
            shape.push(1);
        }

        int(&mut file, shape.len());
        int(&mut file, name.len());
        file.extend(kind.to_le_bytes());
        shape.iter().rev().for_each(|n| int(&mut file, *n));
        file.extend(name.as_bytes());
        file.extend(bytes);
    }

    let path = target.join(name);
    File::create(&path).unwrap().write_all(&file).unwrap();

    path
}

/// The bytes of each text token of a `tokenizer.json`, in the order of the ids.
fn token_bytes(folder: &Path) -> Vec<Vec<u8>> {
    let whole: Value = serde_json::from_slice(&fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    let printable = (0..=255_u8).filter(|b| matches!(b, 33..=126 | 161..=172 | 174..=255));
    let mut bytes: HashMap<char, u8> = printable.map(|b| (char::from(b), b)).collect();
    let rest: Vec<u8> = (0..=255_u8).filter(|b| !bytes.contains_key(&char::from(*b))).collect();

    bytes.extend(rest.into_iter().zip(0x100_u32..).map(|(byte, code)| (char::from_u32(code).unwrap(), byte)));
    let mut tokens: Vec<(u64, Vec<u8>)> = whole["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(token, _)| !token.starts_with("<|"))
        .map(|(token, id)| (id.as_u64().unwrap(), token.chars().map(|c| bytes[&c]).collect()))
        .collect();

    tokens.sort();

    tokens.into_iter().map(|(_, bytes)| bytes).collect()
}
