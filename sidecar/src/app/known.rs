//! The apps whose descriptions are part of the program.

use std::sync::LazyLock;

use super::App;

/// Name and description, as `docs/apps.md` lists them.
pub(super) const DESCRIPTIONS: &[(&str, &str)] = &[
    ("ollama", include_str!("../../apps/ollama.yaml")),
    ("llama-server", include_str!("../../apps/llama-server.yaml")),
    ("llama-server-single", include_str!("../../apps/llama-server-single.yaml")),
    ("llama-swap", include_str!("../../apps/llama-swap.yaml")),
    ("vllm", include_str!("../../apps/vllm.yaml")),
    ("sglang", include_str!("../../apps/sglang.yaml")),
    ("triton", include_str!("../../apps/triton.yaml")),
    ("comfyui", include_str!("../../apps/comfyui.yaml")),
    ("localai", include_str!("../../apps/localai.yaml")),
    ("speaches", include_str!("../../apps/speaches.yaml")),
    ("tei", include_str!("../../apps/tei.yaml")),
    ("infinity", include_str!("../../apps/infinity.yaml")),
    ("a1111", include_str!("../../apps/a1111.yaml")),
    ("forge", include_str!("../../apps/forge.yaml")),
    ("invokeai", include_str!("../../apps/invokeai.yaml")),
    ("xinference", include_str!("../../apps/xinference.yaml")),
    ("koboldcpp", include_str!("../../apps/koboldcpp.yaml")),
    ("tabbyapi", include_str!("../../apps/tabbyapi.yaml")),
    ("lm-studio", include_str!("../../apps/lm-studio.yaml")),
    ("process", include_str!("../../apps/process.yaml")),
];

/// Compiled once. A test compiles every description, so that none is missing here.
pub(super) static APPS: LazyLock<Vec<App>> =
    LazyLock::new(|| DESCRIPTIONS.iter().filter_map(|(_, text)| App::from_yaml(text).ok()).collect());
