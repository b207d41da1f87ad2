//! What PEFT 0.21 does not load of models' modules, by their families.

use super::last;

/// Families whose `conv1d` and `out_proj` are read by a kernel, past what PEFT puts around them.
const MAMBA: [&str; 5] = ["falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"];

/// Families whose experts transformers stacks when it loads them. PEFT takes the names of all their products for names of experts.
const STACKED: [&str; 19] = [
    "afmoe",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v_moe",
    "glm_moe_dsa",
    "hunyuan_v1_moe",
    "longcat_flash",
    "olmoe",
    "qwen3_moe",
    "qwen3_next",
    "solar_open",
];

/// Those that it takes for Mixtral.
const MIXTRAL: [&str; 3] = ["minimax", "minimax_m2", "mixtral"];

/// The layers of an expert.
const LAYERS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const LAYERS_OF_MIXTRAL: [&str; 3] = ["w1", "w2", "w3"];

/// The experts that a module is one of, where PEFT stacks their factors: those of all their layers, or none.
pub(super) fn stack<'a>(family: &str, module: &'a str) -> Option<&'a str> {
    let layers = if MIXTRAL.contains(&family) { LAYERS_OF_MIXTRAL } else { LAYERS };
    let (expert, own) = module.rsplit_once('.')?;
    let (stack, number) = expert.rsplit_once('.')?;
    let is_stacked = MIXTRAL.contains(&family) || STACKED.contains(&family);
    let is_expert = last(stack) == "experts" && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_stacked && is_expert && layers.contains(&own)).then_some(stack)
}

/// Whether PEFT refuses an adapter with a product of that module: routers that are no linear layers in transformers, modules whose
/// weights are read past their layer, and embeddings of positions that compute their indices themselves.
pub(super) fn refuses(family: &str, module: &str) -> bool {
    let own = last(module);
    let is_router = match family {
        "qwen2_moe" => own == "gate",
        "gpt_oss" | "jamba" => own == "router",
        _ => false,
    };
    is_router || is_in_kernel(family, module) || own == "embed_positions"
}

/// Whether a kernel reads the weight of that module past whatever PEFT puts around it, a copy that is saved whole too.
pub(super) fn is_in_kernel(family: &str, module: &str) -> bool {
    MAMBA.contains(&family) && ["conv1d", "out_proj"].contains(&last(module))
}

/// Whether PEFT loads an adapter with a product of that module, and leaves the product out without a word.
pub(super) fn passes_over(family: &str, module: &str) -> bool {
    let is_expert = module.contains(".experts.");
    let is_fused = LAYERS.contains(&last(module));
    match family {
        "jamba" | "qwen2_moe" => is_expert,
        family => STACKED.contains(&family) && is_fused && !is_expert,
    }
}
